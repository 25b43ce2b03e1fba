// Package supervise keeps the manager's runnables going when they panic.
package supervise

import (
	"context"
	"fmt"
	"log/slog"

	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/vextrus/saga-operator/internal/panics"
)

// Add adds a runnable to a manager. One that panics is started again after a pause; one that returns
// an error ends the manager, as usual.
func Add(mgr manager.Manager, log *slog.Logger, r manager.Runnable) error {
	return mgr.Add(&supervised{r, log})
}

// supervised is a runnable that is started again after a panic.
type supervised struct {
	manager.Runnable
	log *slog.Logger
}

// Start implements manager.Runnable.
func (s *supervised) Start(ctx context.Context) error {
	return panics.Restart(ctx, s.log, fmt.Sprintf("running a %T", s.Runnable), s.Runnable.Start)
}

// NeedLeaderElection implements manager.LeaderElectionRunnable. It is needed unless the runnable says
// otherwise.
func (s *supervised) NeedLeaderElection() bool {
	r, ok := s.Runnable.(manager.LeaderElectionRunnable)
	return !ok || r.NeedLeaderElection()
}
