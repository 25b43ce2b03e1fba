package supervise

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// adder is a manager that keeps what is added to it.
type adder struct {
	manager.Manager
	added manager.Runnable
}

func (a *adder) Add(r manager.Runnable) error {
	a.added = r
	return nil
}

// everywhere runs on each replica.
type everywhere struct{ manager.RunnableFunc }

func (everywhere) NeedLeaderElection() bool { return false }

func TestAddRestartsRunnableThatPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mgr adder
		runs := 0
		run := manager.RunnableFunc(func(context.Context) error {
			if runs++; runs < 3 {
				panic("no")
			}
			return nil
		})
		if err := Add(&mgr, slog.New(slog.DiscardHandler), run); err != nil {
			t.Fatal(err)
		}
		if err := mgr.added.Start(t.Context()); err != nil || runs != 3 {
			t.Errorf("it ended with %v after %d runs", err, runs)
		}
	})
}

func TestAddKeepsRunnableOnItsReplicas(t *testing.T) {
	t.Parallel()
	leader := manager.RunnableFunc(func(context.Context) error { return nil })
	for want, r := range map[bool]manager.Runnable{true: leader, false: everywhere{leader}} {
		var mgr adder
		if err := Add(&mgr, nil, r); err != nil {
			t.Fatal(err)
		}
		elected, ok := mgr.added.(manager.LeaderElectionRunnable)
		if !ok || elected.NeedLeaderElection() != want {
			t.Errorf("%T needs to be elected: %t, want %t", r, !want, want)
		}
	}
}
