package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// outage is how long a server is away.
func outage() <-chan time.Time {
	if long {
		return time.After(20 * time.Second)
	}
	return time.After(10 * time.Second)
}

func TestPostgresAwayInTheMiddle(t *testing.T) {
	server := throwaway.NewServer(t, throwaway.Options{Own: true})
	dsn, _, err := server.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := newScene(t, dsn)
	op, g := s.operator(), newGate()
	s.shop.on(g.hold("/b", true), nil)
	orders := names("order", 40)
	s.apply(orders...)
	g.await(t, len(orders)) // every saga is in the middle
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.release() // the outcomes come while there is nowhere to record them
	away := outage()
	if err := op.AwaitReadiness(t.Context(), func(ready bool, says string) bool { return !ready && strings.Contains(says, "[-] database: ") }); err != nil {
		t.Fatal(err)
	}
	<-away
	if !op.Running() {
		t.Fatalf("the operator ended:\n%s", op.Tail())
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ended(v1.PhaseCompleted, orders...)
	if err := op.AwaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	s.verify(len(orders))
	if n, want := s.shop.sent(), 3*len(orders); n != want {
		t.Errorf("there were %d requests, want %d: outcomes that were there already are not asked for again", n, want)
	}
}

func TestTheAPIServerAwayInTheMiddle(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	op, g := s.operator(), newGate()
	s.shop.on(g.hold("/b", true), nil)
	orders := names("order", 40)
	s.apply(orders...)
	g.await(t, len(orders))
	down := true
	t.Cleanup(func() { // the tests that follow need it, however this one ends
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if !down {
			return
		}
		if err := api.StartAPIServer(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := api.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	away := outage()
	g.release()
	s.recorded("SagaCompleted", "") // sagas go on without it
	<-away
	if err := api.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	down = false
	s.ended(v1.PhaseCompleted, orders...)
	if !op.Running() {
		t.Fatalf("the operator ended:\n%s", op.Tail())
	}
	s.verify(len(orders))
}

func TestTwoOperatorsThatBothBelieveTheyLead(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	first, second := s.operator(), s.operator()
	s.shop.refuse = func(request string) bool { return strings.HasSuffix(request, "7/c") }
	var completes, rolledBack []string
	for _, name := range names("order", 200) {
		if strings.HasSuffix(name, "7") {
			rolledBack = append(rolledBack, name)
		} else {
			completes = append(completes, name)
		}
		s.apply(name)
	}
	s.ended(v1.PhaseCompleted, completes...)
	s.ended(v1.PhaseCompensated, rolledBack...)
	s.verify(200)
	if n, want := s.shop.left(), 3*len(completes); n != want {
		t.Errorf("%d effects are left, want %d", n, want)
	}
	if !first.Running() || !second.Running() {
		t.Error("an operator ended")
	}
}

func TestANamespaceDeletedWithRunningSagas(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	s.operator()
	g := newGate()
	s.shop.on(g.hold("/c", true), nil)
	orders := names("order", 20)
	for _, name := range orders {
		order := s.saga(name)
		order.Spec.Steps[2].AttemptTimeout = &metav1.Duration{Duration: 5 * time.Second} // its undo waits until the call would be over
		if err := k8s.Create(t.Context(), order); err != nil {
			t.Fatal(err)
		}
	}
	g.await(t, len(orders))
	if err := k8s.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all sagas are told", func() error {
		var n int
		err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM event_store WHERE type = 'SagaCompensating'`).Scan(&n)
		if err == nil && n < len(orders) {
			err = fmt.Errorf("%d of %d roll back", n, len(orders))
		}
		return err
	})
	g.release()
	eventually(t, "the namespace is gone", func() error {
		err := k8s.Get(t.Context(), client.ObjectKey{Name: s.namespace}, &corev1.Namespace{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err == nil:
			return errors.New("it is still there")
		default:
			return err
		}
	})
	s.verify(len(orders))
	if n := s.shop.left(); n != 0 {
		t.Errorf("%d effects are left", n)
	}
}

// memory reads the highest resident memory of a process, in MiB.
func memory(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Skipf("the memory of a process cannot be read here: %v", err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmHWM:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatal("no VmHWM in the status of the process")
	return 0
}
