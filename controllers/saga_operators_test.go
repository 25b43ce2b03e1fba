package controllers

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"testing"

	v1 "github.com/vextrus/saga-operator/api/v1"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/saga"
)

// TestTwoOperatorsThatBothLeadAreHarmless has two operators drive the same sagas over one PostgreSQL, neither knowing of the other. The number of sagas is
// SAGA_TEST_SAGAS, 30 by default. Every third is declined, so that compensations are fought over too.
func TestTwoOperatorsThatBothLeadAreHarmless(t *testing.T) {
	t.Parallel()
	sagas := 30
	if n, err := strconv.Atoi(os.Getenv("SAGA_TEST_SAGAS")); err == nil {
		sagas = n
	}
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: throwaway.Database(t), MaxConns: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	r := newRigWithoutOperator(t, storepg.New(pool))
	r.svc.on("POST /decline", answer(http.StatusPaymentRequired, `{"detail":"card declined"}`))
	r.startOperator()
	r.startOperator()
	for i := range sagas {
		r.create(fmt.Sprintf("order-%d", i), twoOperatorsSaga(i))
	}
	for i := range sagas {
		want := v1.PhaseCompleted
		if i%3 == 0 {
			want = v1.PhaseCompensated
		}
		o := r.waitPhase(fmt.Sprintf("order-%d", i), want)
		history := r.history(o) // fails on a gap
		if s := r.fold(o); s.Phase != saga.Phase(want) || s.Version != int64(len(history)) {
			t.Errorf("saga %s: its stream comes to %s, its status says %s", o.Name, s.Phase, want)
		}
		r.checkEffects(o, i)
	}
	r.svc.mu.Lock()
	defer r.svc.mu.Unlock()
	for key, n := range r.svc.effects {
		if n != 1 {
			t.Errorf("the effect %s happened %d times", key, n)
		}
	}
}

// twoOperatorsSaga has two branches, so that outcomes arrive while other events are appended.
func twoOperatorsSaga(i int) string {
	last := "ship"
	if i%3 == 0 {
		last = "decline"
	}
	return fmt.Sprintf(`
input: {orderId: "%d"}
steps:
- {name: reserve, http: {method: POST, url: "SERVICE/reserve"}, compensation: {http: {method: DELETE, url: "SERVICE/reserve"}}}
- {name: charge, dependsOn: [], http: {method: POST, url: "SERVICE/charge"}, compensation: {http: {method: DELETE, url: "SERVICE/charge"}}}
- {name: last, dependsOn: [reserve, charge], http: {method: POST, url: "SERVICE/%s"}}
`, i, last)
}

// checkEffects checks that everything which should have happened at the participant did, once.
func (r *rig) checkEffects(o *v1.Saga, i int) {
	r.Helper()
	want := []string{"reserve/action", "charge/action", "last/action"}
	if i%3 == 0 {
		want = []string{"reserve/action", "charge/action", "reserve/compensation", "charge/compensation"}
	}
	r.svc.mu.Lock()
	defer r.svc.mu.Unlock()
	for _, effect := range want {
		if n := r.svc.effects[string(o.UID)+"/"+effect]; n != 1 {
			r.Errorf("saga %s: %s happened %d times, want once", o.Name, effect, n)
		}
	}
}

func TestAStatusNeverGoesBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.startOperator() // a second one, which writes the same statuses
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	r.create("order", order)
	var last int64
	r.wait("order", "completed", func(o *v1.Saga) bool {
		if o.Status.RecordedVersion < last {
			t.Errorf("the recorded version went back from %d to %d", last, o.Status.RecordedVersion)
		}
		if last = o.Status.RecordedVersion; o.Status.Step == "ship" {
			ship.open()
		}
		return o.Status.Phase == v1.PhaseCompleted
	})
}
