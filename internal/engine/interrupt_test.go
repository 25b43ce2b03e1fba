package engine

import (
	"context"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// TestCancelEndsHangingCallAtOnce has a call that would hold its place for an hour.
func TestCancelEndsHangingCallAtOnce(t *testing.T) {
	t.Parallel()
	for name, ends := range map[string]Observation{"cancelled": {Cancel: true}, "deleted": {Delete: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sent := make(chan saga.Direction, 10)
			p := &scripted{do: func(ctx context.Context, c participant.Call) participant.Result {
				sent <- c.Attempt.Direction
				if c.Attempt.Direction == saga.Compensation {
					return participant.Result{Kind: saga.Succeeded}
				}
				<-ctx.Done()
				return participant.Result{Kind: saga.Unknown, Reason: "TimedOut", Message: "no response"}
			}}
			b, at, k := newBench(t, memory.New(), p, Observation{}), newClock(), newKey(t)
			b.engine.Clock = at.Now
			if _, err := b.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
				t.Fatal(err)
			}
			<-sent
			advance := func(until func(saga.State) bool) saga.State {
				t.Helper()
				for t.Context().Err() == nil {
					r, err := b.engine.Advance(t.Context(), k, ends)
					if err != nil {
						t.Fatal(err)
					}
					if until(r.State) {
						return r.State
					}
				}
				t.Fatal("the test ended first")
				return saga.State{}
			}
			state := advance(func(s saga.State) bool { return s.Steps[0].Do.Status != saga.InProgress })
			if do := state.Steps[0].Do; !do.InDoubt || do.Reason != saga.ReasonInterrupted || !do.QuietUntil.Equal(do.SentAt.Add(time.Hour+saga.UndoMargin)) {
				t.Errorf("the action is %+v, want it in doubt, and its undo not before the end of the call's time", do)
			}
			if err := b.engine.pool.drain(t.Context()); err != nil { // its place is free
				t.Fatal(err)
			}
			if len(sent) > 0 {
				t.Error("the undo was sent while the call could still act")
			}
			at.forward(time.Hour + 2*saga.UndoMargin)
			advance(func(s saga.State) bool { return s.Phase == saga.Compensated })
			if err := b.engine.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRollbackDoesNotEndCallsOfOtherSteps(t *testing.T) {
	t.Parallel()
	def := definition("a", "b")
	def.Steps[1].DependsOn = nil
	sent, release := make(chan struct{}), make(chan struct{})
	p := &scripted{do: func(ctx context.Context, c participant.Call) participant.Result {
		if c.Attempt.Direction == saga.Compensation {
			return participant.Result{Kind: saga.Succeeded}
		}
		if c.Attempt.Step == "b" {
			<-sent // what is not sent when the saga rolls back is taken back
			return participant.Result{Kind: saga.Rejected, Author: saga.AuthorParticipant, Reason: "No", Message: "no"}
		}
		close(sent)
		select {
		case <-release:
			return participant.Result{Kind: saga.Succeeded}
		case <-ctx.Done():
			return participant.Result{Kind: saga.Unknown, Reason: "TimedOut", Message: "no response"}
		}
	}}
	b, k := newBench(t, memory.New(), p, Observation{}), newKey(t)
	for released := false; ; {
		r, err := b.engine.Advance(t.Context(), k, start(def))
		if err != nil {
			t.Fatal(err)
		}
		if r.State.Phase == saga.Compensating && !released {
			close(release)
			released = true
		}
		if r.State.Phase == saga.Compensated {
			if do := r.State.Steps[0].Do; do.Status != saga.Done {
				t.Errorf("the other action is %+v, want its outcome", do)
			}
			break
		}
	}
	if err := b.engine.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
