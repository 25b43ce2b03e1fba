package chaos

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// Each test kills the operator at one point, starts it again, and expects the saga to end as if nothing had happened.

// TestKilledBeforeTheFirstAppend holds the append by a lock on its table, and ends the session that would do it with the operator.
func TestKilledBeforeTheFirstAppend(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	op := s.operator()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE streams IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	s.apply("order")
	eventually(t, "the operator waits to append", func() error {
		var waiting int
		err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%append_streams%'`).Scan(&waiting)
		if err == nil && waiting == 0 {
			err = errors.New("nobody waits")
		}
		return err
	})
	op.Kill()
	if _, err := s.pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.operator()
	s.ended(v1.PhaseCompleted, "order")
	s.verify(1)
}

func TestKilledAfterTheIntentAndBeforeTheEffect(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	op, g := s.operator(), newGate()
	s.shop.on(g.hold("/b", false), nil)
	s.apply("order")
	g.await(t, 1)
	s.recorded("AttemptStarted", "b")
	op.Kill()
	s.shop.on(nil, nil)
	g.release()
	s.operator()
	s.ended(v1.PhaseCompleted, "order")
	s.verify(1)
}

func TestKilledAfterTheEffectAndBeforeItsOutcomeIsRecorded(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	op, g := s.operator(), newGate()
	s.shop.on(nil, g.hold("/b", false))
	s.apply("order")
	g.await(t, 1)
	op.Kill()
	s.shop.on(nil, nil)
	g.release()
	s.operator()
	s.ended(v1.PhaseCompleted, "order")
	s.verify(1)
	if n := s.shop.sent(); n != 4 {
		t.Errorf("there were %d requests, want 4: b came twice, under one key", n)
	}
}

func TestKilledAfterTheLastOutcomeIsRecorded(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	op := s.operator()
	s.apply("order")
	s.recorded("AttemptSucceeded", "c")
	op.Kill()
	s.operator()
	s.ended(v1.PhaseCompleted, "order")
	s.verify(1)
	if n := s.shop.sent(); n != 3 {
		t.Errorf("there were %d requests, want 3", n)
	}
}

func TestKilledDuringCompensation(t *testing.T) {
	for name, after := range map[string]bool{"before-the-undo": false, "after-the-undo": true} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, throwaway.Database(t))
			op, g := s.operator(), newGate()
			s.shop.refuse = func(request string) bool { return request == "POST /order/c" }
			hold := func(ctx context.Context, request string) bool {
				return request != "DELETE /order/b" || g.hold("/b", false)(ctx, request)
			}
			if after {
				s.shop.on(nil, hold)
			} else {
				s.shop.on(hold, nil)
			}
			s.apply("order")
			g.await(t, 1)
			op.Kill()
			s.shop.on(nil, nil)
			g.release()
			s.operator()
			s.ended(v1.PhaseCompensated, "order")
			s.verify(1)
			if n := s.shop.left(); n != 0 {
				t.Errorf("%d effects are left", n)
			}
		})
	}
}

// TestKilledAgainAndAgain kills the operator at no particular point, many times.
func TestKilledAgainAndAgain(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	rounds := 5
	if long {
		rounds = 50
	}
	s.shop.refuse = func(request string) bool { return len(request) > 2 && request[len(request)-4:] == "-3/c" }
	var all, refused []string
	for round := range rounds {
		op := s.operator()
		before := s.shop.sent()
		batch := names("order-"+string(rune('a'+round%26))+string(rune('a'+round/26)), 10)
		s.apply(batch...)
		for _, n := range batch {
			if n[len(n)-1] == '3' {
				refused = append(refused, n)
			} else {
				all = append(all, n)
			}
		}
		eventually(t, "some requests have been sent", func() error {
			if s.shop.sent() < before+7 {
				return errors.New("too few")
			}
			return nil
		})
		op.Kill()
	}
	s.operator()
	s.ended(v1.PhaseCompleted, all...)
	s.ended(v1.PhaseCompensated, refused...)
	s.verify(len(all) + len(refused))
	if n, want := s.shop.left(), 3*len(all); n != want {
		t.Errorf("%d effects are left, want %d", n, want)
	}
}

func TestAStopLetsAttemptsEndAndRecordsThem(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	s.args = append(s.args, "--shutdown-grace", patience.String())
	op, g := s.operator(), newGate()
	s.shop.on(g.hold("/b", true), nil)
	s.apply("order")
	g.await(t, 1)
	stopped := make(chan error, 1)
	go func() { stopped <- op.Stop() }()
	eventually(t, "the operator says that it is stopping", func() error {
		if !op.Running() {
			t.Fatal("it ended, and its attempt has not")
		}
		if _, says := op.Readiness(t.Context()); !strings.Contains(says, "the operator is stopping") {
			return errors.New(says)
		}
		return nil
	})
	eventually(t, "nobody reconciles sagas any more", func() error {
		log, err := os.ReadFile(op.LogFile())
		if err == nil && !bytes.Contains(log, []byte(`"msg":"All workers finished","controller":"saga"`)) {
			err = errors.New("they are still reconciled, which would record the outcome, too")
		}
		return err
	})
	g.release()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	s.recorded("AttemptSucceeded", "b")
	s.operator()
	s.ended(v1.PhaseCompleted, "order")
	s.verify(1)
	if n := s.shop.sent(); n != 3 {
		t.Errorf("there were %d requests, want 3: nothing had to be sent again", n)
	}
}
