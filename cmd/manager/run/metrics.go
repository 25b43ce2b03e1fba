package run

import (
	"errors"
	"fmt"
	"log/slog"

	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/server"
	"github.com/vextrus/saga-operator/internal/supervise"
)

// metricsConfig says how /metrics is served.
type metricsConfig struct {
	Address           string
	CertFile, KeyFile string
}

// off reports whether metrics are not served.
func (c *metricsConfig) off() bool { return isOff(c.Address) }

func (c *metricsConfig) check() error {
	if c.off() {
		return nil
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("--metrics-tls-cert-file and --metrics-tls-key-file belong together")
	}
	loopback, err := server.IsLoopback(c.Address)
	switch {
	case err != nil:
		return fmt.Errorf("--metrics-address: %w", err)
	case loopback && c.CertFile != "":
		return fmt.Errorf("--metrics-address %s is a loopback address, which is served without TLS: leave out --metrics-tls-cert-file, or choose another address", c.Address)
	}
	return nil
}

// checkPprofAddress returns an error for an address that other machines reach: profiles show memory,
// and making them takes the operator's time.
func checkPprofAddress(address string) error {
	if isOff(address) {
		return nil
	}
	loopback, err := server.IsLoopback(address)
	switch {
	case err != nil:
		return fmt.Errorf("--pprof-address: %w", err)
	case !loopback:
		return fmt.Errorf("--pprof-address %s has to be a loopback address, such as 127.0.0.1:6060, because profiles show memory: reach it with kubectl port-forward", address)
	}
	return nil
}

// isOff reports whether an address says that nothing is served.
func isOff(address string) bool { return address == "0" || address == "" }

// wireMetrics adds the server of /metrics, on every replica.
func wireMetrics(c Config, log *slog.Logger, mgr manager.Manager) error {
	if c.Metrics.off() {
		return nil
	}
	kube, err := operations.NewClient(mgr.GetConfig(), mgr.GetHTTPClient())
	if err != nil {
		return err
	}
	s, err := server.NewMetricsServer(server.MetricsOptions{
		Address: c.Metrics.Address, CertFile: c.Metrics.CertFile, KeyFile: c.Metrics.KeyFile, Client: kube, Metrics: metrics.Registry, Logger: log,
	})
	if err != nil {
		return err
	}
	return supervise.Add(mgr, log, s)
}
