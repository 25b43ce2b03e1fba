package sagas_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/projection"
)

// stored is an event as it may stand in the store, whatever today's code would write.
func stored(typ, data string) eventstore.Event {
	return eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: typ, SchemaVersion: 1, Data: json.RawMessage(data)}
}

func (w *world) stand(a eventstore.Append) eventstore.Token {
	w.Helper()
	done, err := w.store.Append(w.Context(), a)
	if err != nil {
		w.Fatal(err)
	}
	return done.Token
}

func (w *world) history(uid string) []string {
	w.Helper()
	got := w.rows(`SELECT concat_ws(' ', version, namespace || '/' || name, type, step, direction, outcome, reason, message, actor) FROM saga_history WHERE uid = $1 ORDER BY version`, uid)
	for i := range got {
		got[i] = strings.Join(strings.Fields(got[i]), " ")
	}
	return got
}

// TestANULInATextOfAnEventHoldsNobodysHistoryUp: events are json, which has it; PostgreSQL's text has not.
func TestANULInATextOfAnEventHoldsNobodysHistoryUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	uid, other := uuid.NewString(), uuid.NewString()
	at := `"at":"2030-05-06T12:00:00Z"`
	nul := `\u0000`
	attempt := fmt.Sprintf(`"step":"re%[1]sserve","direction":"act%[1]sion","number":1`, nul)
	decision := stored("DecisionMade", fmt.Sprintf(`{%s,"step":"a%[2]s","verdict":"Re%[2]stry","by":"ad%[2]sa","reason":"be%[2]scause"}`, at, nul))
	resumed := stored("SagaResumed", `{`+at+`}`)
	resumed.Metadata.Actor = "so\x00mebody"
	w.stand(eventstore.Append{Stream: "saga-" + uid, Events: []eventstore.Event{
		stored("SagaStarted", fmt.Sprintf(`{%s,"uid":%q,"namespace":"sh%[3]sop","name":"or%[3]sder","createdBy":"a%[3]sda","definition":{}}`, at, uid, nul)),
		stored("AttemptFailed", fmt.Sprintf(`{%s,%s,"outcome":"Re%[3]sjected","next":"Reject","reason":"N%[3]so","message":"card %[3]sdeclined"}`, at, attempt, nul)),
		stored("SagaCompensating", fmt.Sprintf(`{%s,"cause":"Step%[2]sRejected","step":"re%[2]sserve","reason":"N%[2]so","message":"card %[2]sdeclined"}`, at, nul)),
		stored("SagaParked", fmt.Sprintf(`{%s,"step":"re%[2]sserve","reason":"N%[2]so","message":"card %[2]sdeclined"}`, at, nul)),
		decision, resumed,
	}})
	w.shows(w.record(other, started(other, "order-2")))
	r := "\uFFFD"
	want := []string{
		"1 sh?op/or?der SagaStarted a?da",
		"2 sh?op/or?der AttemptFailed re?serve act?ion Re?jected N?o card ?declined",
		"3 sh?op/or?der SagaCompensating re?serve N?o card ?declined",
		"4 sh?op/or?der SagaParked re?serve N?o card ?declined",
		"5 sh?op/or?der DecisionMade a? Re?try be?cause ad?a",
		"6 sh?op/or?der SagaResumed so?mebody",
	}
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "?", r)
	}
	if diff := cmp.Diff(want, w.history(uid)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := w.history(other); len(got) != 1 {
		t.Errorf("the history of another saga is %q", got)
	}
}

// TestASagaOfANewerVersionHoldsNobodysHistoryUp has an event with fields and values that this version does not know.
func TestASagaOfANewerVersionHoldsNobodysHistoryUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	uid, other := uuid.NewString(), uuid.NewString()
	const at = `"at":"2030-05-06T12:00:00Z","needs":{"Step.when":"2.0.0"}`
	w.stand(eventstore.Append{Stream: "saga-" + uid, Events: []eventstore.Event{
		stored("SagaStarted", fmt.Sprintf(`{%s,"uid":%q,"namespace":"shop","name":"order","definition":{"steps":[{"name":"reserve","when":"${false}"}]}}`, at, uid)),
		stored("AttemptFailed", `{`+at+`,"step":"reserve","item":"3","direction":"action","number":1,"outcome":"Perhaps","next":"Pray"}`),
	}})
	w.shows(w.record(other, started(other, "order-2")))
	want := []string{"1 shop/order SagaStarted", "2 shop/order AttemptFailed reserve[3] action Perhaps"}
	if diff := cmp.Diff(want, w.history(uid)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAHistoryGoesOnWhereItsFirstEventWasSkipped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	uid, forgotten := uuid.New(), uuid.New()
	suspended := `{"at":"2030-05-06T12:00:00Z"}`
	events := func() []eventstore.Event {
		return []eventstore.Event{stored("SagaStarted", `{"uid":7}`), stored("SagaSuspended", suspended)}
	}
	var last eventstore.Token
	w.stand(eventstore.Append{Stream: "saga-" + uid.String(), Events: events(), State: &eventstore.SagaState{
		UID: uid, Namespace: "shop", Name: "order-1", Phase: "Running", State: json.RawMessage(`{}`),
	}})
	last = w.stand(eventstore.Append{Stream: "saga-" + forgotten.String(), Events: events()})
	deadline := time.Now().Add(5 * time.Minute)
	for range 2 {
		for _, name := range []string{"saga_history", "saga_summary"} {
			for {
				_, err := projection.Skip(t.Context(), w.pool, name, uuid.Nil, "ada", "it cannot be read")
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s does not stop at the event that cannot be read: %v", name, err)
				}
				<-time.After(5 * time.Millisecond)
			}
		}
	}
	w.shows(last)
	if diff := cmp.Diff([]string{"2 shop/order-1 SagaSuspended"}, w.history(uid.String())); diff != "" {
		t.Errorf("with a state row (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"2 / SagaSuspended"}, w.history(forgotten.String())); diff != "" {
		t.Errorf("without one (-want +got):\n%s", diff)
	}
}

func TestTheHistoryThatPeopleReadGoesWithTheSaga(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	uid, other := uuid.New(), uuid.New()
	at := `{"at":"2030-05-06T12:00:00Z"`
	finish := func(uid uuid.UUID, finished bool) eventstore.Token {
		return w.stand(eventstore.Append{
			Stream: "saga-" + uid.String(), Events: []eventstore.Event{stored("SagaStarted", at+`,"definition":{}}`), stored("SagaCompleted", at+`}`)},
			State: &eventstore.SagaState{UID: uid, Namespace: "shop", Name: "order", Phase: "Completed", Finished: finished, State: json.RawMessage(`{}`)},
		})
	}
	finish(uid, true)
	w.shows(finish(other, false))
	// A generation that is being removed still has rows of it.
	if _, err := w.pool.Exec(t.Context(), `INSERT INTO projections (name, generation, version, status) VALUES ('saga_history', 70, 1, 'retired')`); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Exec(t.Context(), `INSERT INTO saga_history_rows (generation, uid, version, namespace, name, at, type) VALUES (70, $1, 1, '', '', now(), '')`, uid); err != nil {
		t.Fatal(err)
	}
	if n, err := w.store.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 10); err != nil || n != 1 {
		t.Fatalf("removed %d, %v", n, err)
	}
	if left := w.rows(`SELECT generation || ' ' || type FROM saga_history_rows WHERE uid = $1`, uid); len(left) != 0 {
		t.Errorf("of the removed saga %q are left", left)
	}
	if kept := w.history(other.String()); len(kept) != 2 {
		t.Errorf("of the other saga %q are left", kept)
	}
	if counted := w.rows(`SELECT sum(sagas)::text FROM saga_summary`); counted[0] != "2" {
		t.Errorf("the summary counts %s sagas, want 2", counted[0])
	}
}
