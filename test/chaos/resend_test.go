package chaos

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// TestKilledAfterTheEffectWhileTheParticipantIsBusyFromThenOn has a participant act just before the operator is killed. After the restart it says "try again" until no attempt is left: what it did before
// is undone all the same.
func TestKilledAfterTheEffectWhileTheParticipantIsBusyFromThenOn(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	op, g := s.operator(), newGate()
	s.shop.on(nil, g.hold("/b", false))
	order := s.saga("order")
	for i := range order.Spec.Steps {
		order.Spec.Steps[i].Retry.MaxAttempts = 3
		// The undo of b waits until the call that the first operator made would be over.
		order.Spec.Steps[i].AttemptTimeout = &metav1.Duration{Duration: 20 * time.Second}
	}
	if err := k8s.Create(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	g.await(t, 1)
	op.Kill()
	s.shop.on(nil, nil)
	s.shop.onBusy(func(request string) bool { return request == "POST /order/b" })
	g.release()
	s.operator()
	s.ended(v1.PhaseCompensated, "order")
	s.recorded("AttemptResent", "b")
	s.verify(1)
	if n := s.shop.left(); n != 0 {
		t.Errorf("%d effects are left", n)
	}
}
