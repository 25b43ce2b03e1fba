package controllers

import (
	"testing"
	"time"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestAnAPIServerThatIsSlowIsShownLess(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	running := &v1.SagaStatus{Phase: v1.PhaseRunning}
	for name, test := range map[string]struct {
		write, want time.Duration
	}{
		"quick":     {5 * time.Millisecond, settleTime},
		"slow":      {100 * time.Millisecond, 1600 * time.Millisecond},
		"very slow": {10 * time.Second, maxSettleTime},
	} {
		r := &SagaReconciler{Clock: func() time.Time { return now }}
		for range 100 {
			r.writes.add(test.write)
		}
		s := &sighting{}
		s.result.State = saga.State{Version: 1, Phase: saga.Running, StartedAt: now}
		if got := r.mirrorDelay(s, &v1.SagaStatus{}, running); got < test.want*9/10 || got > test.want {
			t.Errorf("%s: the first mirror waits %s, want about %s", name, got, test.want)
		}
		ended := &v1.SagaStatus{Phase: v1.PhaseCompleted}
		if got := r.mirrorDelay(s, running, ended); got > 0 {
			t.Errorf("%s: the end waits %s", name, got)
		}
	}
}

func TestWhatChangesWithinAPhaseIsShownOncePerSecondOrLessOftenWhereWritesAreSlow(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	running := &v1.SagaStatus{Phase: v1.PhaseRunning}
	for name, test := range map[string]struct{ write, since, want time.Duration }{
		"just written":     {5 * time.Millisecond, 400 * time.Millisecond, 600 * time.Millisecond},
		"a second ago":     {5 * time.Millisecond, time.Second, 0},
		"writes are slow":  {500 * time.Millisecond, time.Second, 7 * time.Second},
		"not written here": {5 * time.Millisecond, time.Hour, 0},
	} {
		r := &SagaReconciler{Clock: func() time.Time { return now }}
		for range 200 {
			r.writes.add(test.write)
		}
		s := &sighting{note: note{wroteAt: now.Add(-test.since)}}
		s.result.State = saga.State{Version: 1, Phase: saga.Running, StartedAt: now.Add(-time.Minute)}
		if got := max(0, r.mirrorDelay(s, running, running)); got < test.want-time.Millisecond || got > test.want {
			t.Errorf("%s: the write waits %s, want %s", name, got, test.want)
		}
	}
}

// A saga that is rolled back within a second is written twice at most: as Running where it was shown so, and as what it came to.
func TestARollbackIsShownWhenItTakesLongerThanASecondAndItsEndAtOnce(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	shown := &v1.SagaStatus{Phase: v1.PhaseRunning}
	for name, test := range map[string]struct {
		age      time.Duration
		previous *v1.SagaStatus
		next     v1.SagaPhase
		want     time.Duration
	}{
		"within the first second": {400 * time.Millisecond, shown, v1.PhaseCompensating, 600 * time.Millisecond},
		"after it":                {time.Second, shown, v1.PhaseCompensating, 0},
		"long after":              {time.Hour, shown, v1.PhaseCompensating, 0},
		"its end":                 {400 * time.Millisecond, shown, v1.PhaseCompensated, 0},
		"its end, nothing shown":  {400 * time.Millisecond, &v1.SagaStatus{}, v1.PhaseCompensated, 0},
		"parked":                  {400 * time.Millisecond, shown, v1.PhaseCompensationFailed, 0},
		"shown nothing of":        {100 * time.Millisecond, &v1.SagaStatus{}, v1.PhaseCompensating, settleTime - 100*time.Millisecond},
	} {
		r := &SagaReconciler{Clock: func() time.Time { return now }}
		s := &sighting{}
		s.result.State = saga.State{Version: 1, Phase: saga.Phase(test.next), StartedAt: now.Add(-test.age)}
		if got := max(0, r.mirrorDelay(s, test.previous, &v1.SagaStatus{Phase: test.next})); got != test.want {
			t.Errorf("%s: the write waits %s, want %s", name, got, test.want)
		}
	}
}
