package engine

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

var letGo = Abandonment{By: "ann", Reason: "the participants are gone"}

// abandoner is an engine that drives nothing, as the API's is.
func abandoner(t *testing.T, store eventstore.Store, kinds participant.Registry) *Engine {
	t.Helper()
	e, err := New(Options{Store: store, Participants: kinds, Notify: func(Key) { t.Error("Abandon called Notify") }})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// wantAbandoned checks that the driver of the saga finds it abandoned.
func wantAbandoned(t *testing.T, b *bench, k Key) {
	t.Helper()
	told := false
	if err := b.engine.Answered(t.Context(), func(other Key) { told = told || other == k }); err != nil || !told {
		t.Errorf("told %v, %v", told, err)
	}
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Abandoned || r.State.Abandoned == nil || r.State.Abandoned.By != "ann" || r.State.Abandoned.Reason != letGo.Reason || r.State.EndedAt.IsZero() {
		t.Errorf("the saga is %s: %+v", r.State.Phase, r.State.Abandoned)
	}
	row, err := b.engine.Store.SagaState(t.Context(), uuid.MustParse(k.UID))
	if err != nil || !row.Finished || row.Phase != string(saga.Abandoned) {
		t.Errorf("the row has %+v, %v", row, err)
	}
}

func TestAbandonCancelsAttempts(t *testing.T) {
	t.Parallel()
	store, called, ended := memory.New(), make(chan struct{}), make(chan struct{})
	b := newBench(t, store, &scripted{do: func(ctx context.Context, _ participant.Call) participant.Result {
		close(called)
		<-ctx.Done()
		close(ended)
		return participant.Result{Kind: saga.Unknown}
	}}, start(definition("pay", "ship"))).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	<-called
	state, err := abandoner(t, store, b.engine.Participants).Abandon(t.Context(), k, letGo)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(state.MayRemain(), " "); got != "pay" {
		t.Errorf("may remain: %q, want pay", got)
	}
	wantAbandoned(t, b, k)
	<-ended
	if got := strings.Join(history(t, store, k), " "); got != "SagaStarted AttemptStarted SagaAbandoned" {
		t.Errorf("the history is %s", got)
	}
	messages, err := store.Messages(t.Context(), 0, 100)
	if err != nil || len(messages) != 2 || messages[1].Type != MessageTypePrefix+saga.NoticeAbandoned || messages[1].Sequence != 2 {
		t.Errorf("told is %+v, %v", messages, err)
	}
}

// tampered is a store whose streams this version cannot read: they have an event of a newer version, or
// reading them panics.
type tampered struct {
	eventstore.Store
	panics bool
}

func (s tampered) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	all, err := s.Store.Load(ctx, stream, from, limit)
	if s.panics && len(all) > 0 {
		panic("no")
	}
	if len(all) > 1 {
		all[1].Type = "FromTheFuture"
	}
	return all, err
}

func TestAbandonWorksOnUnreadableStream(t *testing.T) {
	t.Parallel()
	for name, panics := range map[string]bool{ReasonDefinitionUnreadable: false, ReasonInternalError: true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := memory.New()
			first, k := parked(t, store)
			first.stop()
			bad := tampered{store, panics}
			b := newBench(t, bad, &scripted{}, Observation{})
			if _, err := b.engine.Advance(t.Context(), k, Observation{}); err == nil {
				t.Fatal("the saga can be read")
			} else if reason, _, _ := Problem(err); reason != name {
				t.Fatalf("the saga stalls with %s: %v", reason, err)
			}
			before := history(t, store, k)
			for range 2 { // again is the same
				if _, err := abandoner(t, bad, b.engine.Participants).Abandon(t.Context(), k, letGo); err != nil {
					t.Fatal(err)
				}
			}
			wantAbandoned(t, b.run(), k)
			if got := history(t, store, k); len(got) != len(before)+1 || got[len(before)] != "SagaAbandoned" {
				t.Errorf("the history is %v", got)
			}
		})
	}
}

// TestAbandonWorksWithoutParticipant has an operator that could not carry it out.
func TestAbandonWorksWithoutParticipant(t *testing.T) {
	t.Parallel()
	store := memory.New()
	first, k := parked(t, store)
	first.stop()
	if _, err := abandoner(t, store, nil).Abandon(t.Context(), k, letGo); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, store, &scripted{}, Observation{})
	b.engine.Participants = nil
	wantAbandoned(t, b.run(), k)
}

func TestAbandonWorksWithoutStream(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	e := abandoner(t, store, nil)
	if _, err := e.Abandon(t.Context(), k, letGo); !errors.Is(err, ErrNotStarted) {
		t.Errorf("one that has not started: %v", err)
	}
	recorded := letGo
	recorded.Recorded = true
	if _, err := e.Abandon(t.Context(), k, recorded); err != nil {
		t.Fatal(err)
	}
	wantAbandoned(t, newBench(t, store, &scripted{}, Observation{}).run(), k)
	if messages, err := store.Messages(t.Context(), 0, 100); err != nil || len(messages) > 0 {
		t.Errorf("told is %+v, %v", messages, err)
	}
}

func TestRecordedFindsSagaByUID(t *testing.T) {
	t.Parallel()
	store := memory.New()
	b, k := parked(t, store)
	if got, _, err := b.engine.Recorded(t.Context(), uuid.MustParse(k.UID)); err != nil || got != k {
		t.Errorf("%v, %v", got, err)
	}
	if _, _, err := b.engine.Recorded(t.Context(), uuid.New()); !errors.Is(err, ErrNotStarted) {
		t.Errorf("an unknown uid: %v", err)
	}
}

func TestAbandonRejectsFinishedSaga(t *testing.T) {
	t.Parallel()
	store := memory.New()
	b := newBench(t, store, &scripted{}, start(definition("pay"))).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	b.await()
	e := abandoner(t, store, b.engine.Participants)
	var wrong *saga.AbandonError
	if _, err := e.Abandon(t.Context(), k, letGo); !errors.As(err, &wrong) || wrong.Field != "" {
		t.Errorf("one that has completed: %v", err)
	}
	before := history(t, store, k)
	if _, err := abandoner(t, tampered{store, false}, b.engine.Participants).Abandon(t.Context(), k, letGo); !errors.As(err, &wrong) || wrong.Field != "" {
		t.Errorf("one that has completed and cannot be read: %v", err)
	}
	if got := history(t, store, k); len(got) != len(before) {
		t.Errorf("the history is %v, want %v", got, before)
	}
	if _, err := e.Abandon(t.Context(), k, Abandonment{By: "ann"}); !errors.As(err, &wrong) || wrong.Field != "reason" {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := e.Abandon(t.Context(), Key{UID: "7"}, letGo); err == nil {
		t.Error("a uid that is none")
	}
}

func TestAbandonedSagaTakesNoReply(t *testing.T) {
	t.Parallel()
	store := memory.New()
	accepted := make(chan participant.Call, 1)
	b := newBench(t, store, later("pay", 1<<40, func(c participant.Call) { accepted <- c }), start(definition("pay"))).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	call := <-accepted
	recorded(t, store, k, "AttemptAccepted")
	if _, err := abandoner(t, store, b.engine.Participants).Abandon(t.Context(), k, letGo); err != nil {
		t.Fatal(err)
	}
	a := answerTo(call)
	a.Response = json.RawMessage(`{"body":{}}`)
	if kept, err := store.PutAnswer(t.Context(), a); err != nil || kept {
		t.Errorf("kept %v, %v", kept, err)
	}
}
