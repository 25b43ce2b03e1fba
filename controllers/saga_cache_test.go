package controllers

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestASagaGoesOnWhileTheCacheDoesNotShowItsFinalizer(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	var mu sync.Mutex
	var first *v1.Saga
	behind := true
	r.beforeGet = func(o client.Object) {
		mu.Lock()
		defer mu.Unlock()
		switch o := o.(*v1.Saga); {
		case first == nil:
			first = o.DeepCopy()
		case behind:
			first.DeepCopyInto(o)
		}
	}
	r.startOperator()
	o := r.create("order", order)
	r.waitRecorded(o, saga.Completed)
	if n := r.tally("order", nil).patches; n != 1 {
		t.Errorf("its finalizers were written %d times, want once", n)
	}
	mu.Lock()
	behind = false
	mu.Unlock()
	r.waitPhase("order", v1.PhaseCompleted)
}

// TestAnEndThatTheCacheDoesNotShowYetIsNotWrittenAgain has the watch stand still when the end is written, and an outcome told late.
func TestAnEndThatTheCacheDoesNotShowYetIsNotWrittenAgain(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	var s *SagaReconciler
	r.onStart = func(o *SagaReconciler) { s = o }
	var still atomic.Bool
	goOn := newGate(t)
	r.onTransport = func(base http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			res, err := base.RoundTrip(req)
			if err == nil && req.URL.Query().Has("watch") {
				res.Body = slowBody{res.Body, func() {
					if still.Load() {
						<-goOn.ch
					}
				}}
			}
			return res, err
		})
	}
	r.beforeStatus = func(o client.Object) error {
		still.Store(finished(o.(*v1.Saga)))
		return nil
	}
	r.startOperator()
	t.Cleanup(goOn.open) // before the operator is stopped
	o := r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	r.writes("order")
	before := r.tally("order", nil)
	s.Enqueue(keyOf(o))
	r.eventually(func() error {
		if n := r.tally("order", nil); n.ended < before.begun+2 {
			return fmt.Errorf("it was reconciled %d times more", n.ended-before.begun)
		}
		return nil
	})
	if n := r.tally("order", nil); n.tried != before.tried {
		t.Errorf("its status was written %d times more", n.tried-before.tried)
	}
	goOn.open()
	r.waitQuiet("order")
	r.waitForgotten(s, "order")
}

// slowBody is a body of which nothing is read before a wait is over.
type slowBody struct {
	io.ReadCloser
	wait func()
}

// Read implements io.Reader.
func (b slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.wait()
	return n, err
}

// waitForgotten waits until a reconciler remembers nothing of some sagas.
func (r *rig) waitForgotten(s *SagaReconciler, names ...string) {
	r.Helper()
	r.eventually(func() error {
		s.notes.mu.Lock()
		defer s.notes.mu.Unlock()
		for k, n := range s.notes.m {
			if slices.Contains(names, k.Name) {
				return fmt.Errorf("saga %s is remembered: %+v", k.Name, n)
			}
		}
		return nil
	})
}

func TestASagaThatHasEndedIsForgottenOnceTheCacheShowsIt(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	var s *SagaReconciler
	r.onStart = func(o *SagaReconciler) { s = o }
	r.svc.on("POST /decline", answer(http.StatusPaymentRequired, `{}`))
	r.startOperator()
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprintf("order-%d", i)
		r.create(names[i], strings.Replace(order, "SERVICE/ship", []string{"SERVICE/ship", "SERVICE/decline"}[i%2], 1))
	}
	for i, name := range names {
		r.waitPhase(name, []v1.SagaPhase{v1.PhaseCompleted, v1.PhaseCompensated}[i%2])
	}
	r.waitForgotten(s, names...)
}

func TestAFinalizerOfSomebodyElseIsKept(t *testing.T) {
	t.Parallel()
	const others = "example.com/audit"
	r := newRigWithoutOperator(t, memory.New())
	var once sync.Once
	r.beforeGet = func(client.Object) { // between what the cache has and what is made of it
		once.Do(func() {
			if err := r.patch("order", `{"metadata":{"finalizers":["`+others+`"]}}`); err != nil {
				t.Error(err)
			}
		})
	}
	r.startOperator()
	r.create("order", order)
	o := r.waitPhase("order", v1.PhaseCompleted)
	if !slices.Contains(o.Finalizers, others) || !slices.Contains(o.Finalizers, v1.Finalizer) {
		t.Errorf("the finalizers are %v, want ours and %s", o.Finalizers, others)
	}
	r.delete("order")
	o = r.wait("order", "let go by us", func(o *v1.Saga) bool { return !slices.Contains(o.Finalizers, v1.Finalizer) })
	if !slices.Contains(o.Finalizers, others) {
		t.Errorf("the finalizers are %v, want that of somebody else kept", o.Finalizers)
	}
	r.mustPatch("order", `{"metadata":{"finalizers":null}}`)
	r.waitGone("order")
}

func TestATimeToLiveThatIsChangedAtTheLastMomentCounts(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	var seen atomic.Int64
	r.beforeDelete = func(client.Object) {
		if !seen.CompareAndSwap(0, 1) {
			return
		}
		if err := r.patch("order", `{"spec":{"ttlAfterFinished":"1h"}}`); err != nil {
			t.Error(err)
		}
		seen.Store(int64(r.reconciles("order")) + 1)
	}
	r.startOperator()
	r.create("order", "ttlAfterFinished: 0s\n"+order)
	r.eventually(func() error {
		if reconciles := r.reconciles("order"); seen.Load() < 2 || int64(reconciles) < seen.Load() {
			return fmt.Errorf("it was reconciled %d times: not again since its time was up", reconciles)
		}
		return nil
	})
	o, err := r.get("order")
	if err != nil || !o.DeletionTimestamp.IsZero() {
		t.Errorf("it was deleted although its time to live had been made longer: %v, %v", o.DeletionTimestamp, err)
	}
}

func TestRecoveryLeavesSagasOfOtherNamespacesToTheirOperator(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	stop := r.startOperator()
	r.create("order", "suspend: true\n"+order)
	r.wait("order", "suspended", func(o *v1.Saga) bool { return o.Status.Reason == "suspended" })
	stop()
	foreign := uuid.MustParse("00000000-0000-4000-8000-000000000001") // the first to be looked up
	typ, schema, data, err := saga.Marshal(saga.SagaStarted{UID: foreign.String(), Namespace: "elsewhere", Name: "foreign"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Append(t.Context(), eventstore.Append{
		Stream: engine.StreamOf(foreign.String()), Events: []eventstore.Event{{ID: uuid.Must(uuid.NewV7()), Type: typ, SchemaVersion: schema, Data: data}},
		State: &eventstore.SagaState{UID: foreign, Namespace: "elsewhere", Name: "foreign", Phase: "Running", Version: 1, State: []byte(`{}`)},
	}); err != nil {
		t.Fatal(err)
	}
	r.startOperator()
	r.eventually(func() error {
		if !strings.Contains(r.log.String(), "queued unfinished sagas") {
			return fmt.Errorf("unfinished sagas have not been queued yet:\n%s", r.log.String())
		}
		return nil
	})
	r.mustPatch("order", `{"spec":{"suspend":false}}`)
	r.waitPhase("order", v1.PhaseCompleted)
	if reconciles := r.reconciles("foreign"); reconciles > 0 {
		t.Errorf("a saga of a namespace that is not watched was reconciled %d times", reconciles)
	}
}

// What happens to an object while the watch is lost shows only as its absence when the objects are listed again.
func TestAnObjectThatVanishedWhileTheWatchWasLostIsUndone(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	watch := &lostWatch{}
	r.onTransport = watch.around
	r.startOperator()
	o := r.create("order", "suspend: true\n"+order)
	r.wait("order", "suspended", func(o *v1.Saga) bool { return o.Status.Reason == "suspended" })
	watch.lose()
	r.mustPatch("order", `{"metadata":{"finalizers":null}}`)
	r.delete("order")
	r.waitGone("order")
	watch.restore()
	r.waitRecorded(o, saga.Compensated)
}

// lostWatch lets sagas be watched and listed until the watch is lost, and then again after it is restored; from the beginning, because too much has happened meanwhile.
type lostWatch struct {
	mu      sync.Mutex
	away    chan struct{} // open while the watch is lost
	expired bool
	bodies  []io.Closer
}

func (w *lostWatch) around(base http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) { return w.roundTrip(base, req) })
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (w *lostWatch) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away, w.expired = make(chan struct{}), true
	for _, b := range w.bodies {
		_ = b.Close()
	}
}

func (w *lostWatch) restore() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.away)
	w.away = nil
}

func (w *lostWatch) roundTrip(base http.RoundTripper, req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, "/sagas") {
		return base.RoundTrip(req)
	}
	if err := w.await(req.Context()); err != nil {
		return nil, err
	}
	q := req.URL.Query()
	goesOn := q.Has("watch") && q.Get("sendInitialEvents") != "true"
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.expired && goesOn {
		const gone = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,"message":"too old resource version"}`
		return &http.Response{
			StatusCode: http.StatusGone, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
			Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(gone)),
		}, nil
	}
	w.expired = false
	res, err := base.RoundTrip(req)
	if err == nil && q.Has("watch") {
		w.bodies = append(w.bodies, res.Body)
	}
	return res, err
}

func (w *lostWatch) await(ctx context.Context) error {
	w.mu.Lock()
	away := w.away
	w.mu.Unlock()
	if away == nil {
		return nil
	}
	select {
	case <-away:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
