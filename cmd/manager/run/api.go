package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/server"
	"github.com/vextrus/saga-operator/internal/supervise"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// apiConfig is what the HTTP API is told.
type apiConfig struct {
	Address           string
	CertFile, KeyFile string
	Audiences         list
	InsecureHTTP      bool
	Impersonate       bool
	UserRate          float64
	KeptBytes         int64
	MemoryBytes       int64
}

// minAPIMemory has room for two tenants' largest requests.
const minAPIMemory = 64 << 20

// off reports whether there is no API.
func (c *apiConfig) off() bool { return isOff(c.Address) }

func (c *apiConfig) check() error {
	switch {
	case c.off():
		return nil
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("--api-tls-cert-file and --api-tls-key-file belong together")
	case c.UserRate <= 0:
		return errors.New("--api-user-rate has to be more than 0")
	case c.KeptBytes <= 0:
		return errors.New("--api-kept-bytes has to be more than 0")
	case c.MemoryBytes < minAPIMemory:
		return fmt.Errorf("--api-memory-bytes has to be at least %d: a request of the largest size has to fit", minAPIMemory)
	case c.InsecureHTTP && c.CertFile != "":
		return errors.New("--api-insecure-http has no use for a certificate")
	case c.InsecureHTTP:
		if err := server.CheckInsecure(c.Address); err != nil {
			return fmt.Errorf("--api-insecure-http: %w", err)
		}
	}
	return nil
}

// wireAPI adds the HTTP API, on every replica: what it changes goes through the API server and the event store, and the leader sees it there.
func wireAPI(c Config, log *slog.Logger, mgr manager.Manager, pool *pgxpool.Pool, tokens *engine.Callbacks, machine *engine.Engine) error {
	if c.API.off() {
		return nil
	}
	kube, err := operations.NewClient(mgr.GetConfig(), mgr.GetHTTPClient())
	if err != nil {
		return err
	}
	keys := idempotency.NewPostgres(pool, idempotency.Options{Lease: apiLease, RealmBytes: c.API.KeptBytes, Clock: tokens.Clock})
	ops, err := operations.New(operations.Options{
		Client: kube, Access: operations.ClusterAccess{Client: kube}, Database: pool, Keys: keys, Decider: machine, Abandoner: machine, Callbacks: tokens,
		Watches: c.watches, Logger: log, Metrics: metrics.Registry, Impersonate: c.API.Impersonate,
	})
	if err != nil {
		return err
	}
	api, err := server.New(server.Options{
		Operations: ops, Authenticator: server.NewAuthenticator(kube, c.API.Audiences, nil), Logger: log, Metrics: metrics.Registry, Version: Version,
		Limits:  server.Limits{UserRate: c.API.UserRate, Memory: c.API.MemoryBytes},
		Address: c.API.Address, CertFile: c.API.CertFile, KeyFile: c.API.KeyFile, InsecureHTTP: c.API.InsecureHTTP,
	})
	if err != nil {
		return err
	}
	return errors.Join(supervise.Add(mgr, log, api), supervise.Add(mgr, log, &sweeper{keys: keys, log: log}))
}

// apiLease is how long the key of a request is held whose process was killed. It is longer than a request may take (server.Limits.Timeout), and short, because whoever asks again waits for it; a
// saga that was created before is known again by its object.
const apiLease = 25 * time.Second

const (
	// sweepBatch is how many expired keys are removed at once.
	sweepBatch = 1000
	sweepPause = 5 * time.Minute
)

// sweeper removes expired idempotency keys. One replica, the leader, does so; nothing depends on it but room.
type sweeper struct {
	keys idempotency.Store
	log  *slog.Logger
}

// Start implements manager.Runnable.
func (s *sweeper) Start(ctx context.Context) error {
	ticker := time.NewTicker(sweepPause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for n := sweepBatch; n == sweepBatch && ctx.Err() == nil; {
			var err error
			if n, err = s.keys.Sweep(ctx, sweepBatch); err != nil && ctx.Err() == nil {
				s.log.Warn("expired idempotency keys could not be removed; it is tried again later", "error", err)
			}
		}
	}
}
