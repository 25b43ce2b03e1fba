package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vextrus/saga-operator/internal/guard"
)

// controllers are those of kube-controller-manager that a cluster without nodes
// has a use for.
var controllers = strings.Join([]string{
	"clusterrole-aggregation-controller",
	"garbage-collector-controller",
	"namespace-controller",
	"serviceaccount-controller",
}, ",")

// program is a process that the cluster runs besides envtest's.
type program struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
}

func (c *Cluster) startControllerManager(ctx context.Context) error {
	port, err := c.port(ctx)
	if err != nil {
		return err
	}
	certificates := c.plane.APIServer.CertDir
	authority := filepath.Join(certificates, "apiserver-ca.crt")
	if err := os.WriteFile(authority, c.Config.CAData, 0o600); err != nil {
		return fmt.Errorf("writing the API server's certificate authority: %w", err)
	}
	log, err := c.log(controllerManager)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()

	cmd := exec.Command(filepath.Join(c.assets, controllerManager),
		"--kubeconfig="+c.kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port="+strconv.Itoa(port.Number),
		"--cert-dir="+filepath.Join(c.guard.Dir(), controllerManager+"-certificates"),
		"--controllers="+controllers,
		"--leader-elect=false",
		"--profiling=false",
		"--use-service-account-credentials=false",
		"--service-account-private-key-file="+filepath.Join(certificates, "sa-signer.key"),
		"--root-ca-file="+authority,
		// The limits meant for large clusters make deletion slow in a small one.
		"--kube-api-qps=500", "--kube-api-burst=1000",
	)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = c.guard.Dir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is the caller's to handle
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting kube-controller-manager: %w", err)
	}
	c.manager = &program{name: controllerManager, cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		c.guard.Remove(controllerManager)
		close(c.manager.exited)
	}()
	if err := c.guard.Add(controllerManager, cmd.Process.Pid); err != nil {
		return err
	}
	url := "https://" + port.Address() + "/healthz"
	if err := c.manager.awaitHealthy(ctx, url); err != nil {
		return fmt.Errorf("%w\n%s", err, guard.Tail(c.logFile(controllerManager), logTail))
	}
	return nil
}

func (p *program) awaitHealthy(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// Its certificate is made at its start and signed by itself.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // our own process on loopback, asked for nothing but its health
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	healthy := func() bool {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		response, err := client.Do(request)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	}
	for !healthy() {
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended at once", p.name)
		case <-ctx.Done():
			return fmt.Errorf("%s does not get healthy: %w", p.name, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
	return nil
}

// stop ends the process, gracefully at first.
func (p *program) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // It may have ended.
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = p.cmd.Process.Kill()
	<-p.exited
	return fmt.Errorf("%s did not stop within %s and was killed", p.name, stopTimeout)
}
