package steadyclock

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// machines are an operator's machine and a database's, whose clocks can be set.
type machines struct {
	mu                 sync.Mutex
	began              time.Time
	operator, database time.Duration // what each clock is ahead of the time
	suspended          time.Duration // what elapsed lacks
	away               error
	clock              *Clock
}

func newMachines() *machines {
	m := &machines{began: time.Now()}
	m.clock = New(m.wall, m.elapsed, m.reference)
	return m
}

func (m *machines) wall() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.operator)
}

func (m *machines) elapsed() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.began) - m.suspended
}

func (m *machines) reference(context.Context) (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.database), m.away
}

func (m *machines) set(operator, database time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.operator, m.database = operator, database
}

// ahead returns by how much the clock is ahead of the time.
func (m *machines) ahead() time.Duration { return time.Until(m.clock.Now()) }

func (m *machines) want(t *testing.T, when string, want time.Duration) {
	t.Helper()
	if got := m.ahead(); got != want {
		t.Errorf("%s: the clock is %s ahead, want %s", when, got, want)
	}
}

// watched runs f with a clock that is watched, and returns its log.
func watched(t *testing.T, f func(*testing.T, *machines)) (log string) {
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		m := newMachines()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		logger := slog.New(slog.NewTextHandler(&out, nil))
		m.clock.Await(ctx, logger)
		go func() {
			defer close(done)
			m.clock.Watch(ctx, logger)
		}()
		f(t, m)
		stop()
		<-done
	})
	return out.String()
}

// passed lets the clock be compared a few times.
func passed() {
	<-time.After(3 * interval)
	synctest.Wait()
}

func TestClockIgnoresJumpsOfOneMachine(t *testing.T) {
	t.Parallel()
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		log := watched(t, func(t *testing.T, m *machines) {
			passed()
			m.set(jump, 0)
			m.want(t, "right after the operator's clock was set", 0)
			passed()
			m.want(t, "a while after the operator's clock was set", 0)
			m.set(0, 0)
			passed()
			m.set(0, jump)
			passed()
			m.want(t, "after the database's clock was set", 0)
			if m.clock.Difference() != -jump {
				t.Errorf("the difference is %s", m.clock.Difference())
			}
		})
		if strings.Count(log, "one clock was set") != 2 || strings.Count(log, "agree again") != 1 {
			t.Errorf("the log has to report each jump once:\n%s", log)
		}
	}
}

// TestClockIgnoresJumpBeforeLook has the clock set before the database was asked for its time.
func TestClockIgnoresJumpBeforeLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMachines()
		for _, jump := range []time.Duration{time.Hour, -time.Hour} {
			m.set(jump, 0)
			m.want(t, "without a reference", 0)
		}
	})
}

func TestClockFollowsCorrections(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, m *machines) {
		m.set(time.Second, 0) // a time daemon's step
		m.want(t, "after a small step", time.Second)
		m.set(tolerance+time.Second, 0)
		m.want(t, "after small steps that are a large one together", tolerance+time.Second)
		passed()
		m.set(time.Hour, time.Hour)
		passed()
		m.want(t, "after both clocks were set", time.Hour)
	})
	watched(t, func(t *testing.T, m *machines) { // a machine that was suspended
		passed()
		m.mu.Lock()
		m.suspended = time.Hour
		m.mu.Unlock()
		m.want(t, "right after the machine was suspended", -time.Hour)
		passed()
		m.want(t, "after the machine was suspended", 0)
	})
}

func TestClockAwaitsAgreement(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		m := newMachines()
		m.set(0, -time.Hour)
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.clock.Await(t.Context(), slog.New(slog.NewTextHandler(&out, nil)))
		}()
		passed()
		if err := m.clock.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "1h0m0s ahead of the database's") {
			t.Errorf("the reason to wait is %v", err)
		}
		select {
		case <-done:
			t.Fatal("the clock did not wait")
		default:
		}
		m.mu.Lock()
		m.away = errors.New("connection refused")
		m.mu.Unlock()
		passed()
		if err := m.clock.Ready(t.Context()); !errors.Is(err, m.away) {
			t.Errorf("the reason to wait is %v, want the database's outage", err)
		}
		m.mu.Lock()
		m.away, m.operator = nil, -time.Hour+MaxDifference
		m.mu.Unlock()
		passed()
		<-done
		if err := m.clock.Ready(t.Context()); err != nil {
			t.Errorf("nothing is waited for any more, but the reason is %v", err)
		}
		m.want(t, "after the clocks agreed", -time.Hour+MaxDifference)
	})
	if log := out.String(); strings.Count(log, "\n") != 1 {
		t.Errorf("the log has to say once what is waited for:\n%s", log)
	}
}
