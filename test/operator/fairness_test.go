package operator_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

const (
	// sharedPlaces is the number of workers that a namespace with running calls can get one more of
	// (internal/engine/pool.go). The others are for namespaces that have none.
	sharedPlaces = engine.DefaultWorkers - (engine.DefaultWorkers+7)/8
	// hangTimeout is the attemptTimeout of calls that hang. A slow machine needs less, and it is less than
	// patience: a test in which only the timeout ends calls fails for the reason of their end.
	hangTimeout = 10 * time.Minute
)

// calls counts the calls that a participant has received.
type calls struct {
	begun, ended int // of actions
	undone       int
	early        int // undos that came before their action's call had ended
}

// hangingParticipant responds to no action, and counts the calls of each saga. It responds to undos.
type hangingParticipant struct {
	url string

	mu    sync.Mutex
	calls map[string]calls // by namespace/name
}

func (a *target) startHangingParticipant() *hangingParticipant {
	p, release := &hangingParticipant{calls: map[string]calls{}}, make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // without it the server does not see that the operator closes a connection
		key := strings.TrimPrefix(r.URL.Path, "/")
		if r.Method == http.MethodDelete {
			p.count(key, func(c *calls) {
				c.undone++
				if c.begun > c.ended {
					c.early++
				}
			})
			return
		}
		p.count(key, func(c *calls) { c.begun++ })
		select {
		case <-r.Context().Done():
			p.count(key, func(c *calls) { c.ended++ })
		case <-release:
		}
	}))
	a.Cleanup(s.Close)
	a.Cleanup(func() { close(release) })
	p.url = s.URL
	return p
}

func (p *hangingParticipant) count(key string, change func(*calls)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.calls[key]
	change(&c)
	p.calls[key] = c
}

// of returns the calls of a saga.
func (p *hangingParticipant) of(namespace, name string) calls {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[namespace+"/"+name]
}

// byNamespace returns the number of calls that hang in each namespace, and the number of calls that
// have ended.
func (p *hangingParticipant) byNamespace() (hanging map[string]int, ended int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hanging = map[string]int{}
	for key, c := range p.calls {
		namespace, _, _ := strings.Cut(key, "/")
		hanging[namespace] += c.begun - c.ended
		ended += c.ended
	}
	return hanging, ended
}

// createHanging creates a saga of parallel steps that call the participant.
func (a *target) createHanging(p *hangingParticipant, namespace, name string, steps int, timeout time.Duration) {
	a.Helper()
	a.createParallel(p.url+"/"+namespace+"/"+name, namespace, name, steps, timeout)
}

// createParallel creates a saga of parallel steps that call url.
func (a *target) createParallel(url, namespace, name string, steps int, timeout time.Duration) {
	a.Helper()
	all := make([]v1.Step, steps)
	for i := range all {
		all[i] = stepAt(url, fmt.Sprintf("s%d", i), "")
		all[i].Output = nil // compiled, outputs of 800 steps take more memory than there is for calls under way
		all[i].DependsOn = []string{}
		all[i].AttemptTimeout = &metav1.Duration{Duration: timeout}
		all[i].Retry = &v1.Retry{MaxAttempts: 100} // it is not rolled back for an attempt that fails
	}
	a.createSaga(namespace, name, all...)
}

// await waits until done returns true. state describes what there is meanwhile.
func (a *target) await(what string, done func() bool, state func() any) {
	a.Helper()
	for deadline := time.Now().Add(patience); !done(); pause() {
		if !a.process.Running() || time.Now().After(deadline) {
			a.Fatalf("waiting until %s: there is %v; log of the operator:\n%s", what, state(), a.process.Tail())
		}
	}
}

// saga reads a saga. It returns nil if there is none.
func (a *target) saga(namespace, name string) *v1.Saga {
	a.Helper()
	s := &v1.Saga{}
	err := a.admin.Get(a.Context(), client.ObjectKey{Namespace: namespace, Name: name}, s)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		a.Fatal(err)
	}
	return s
}

// failures reads the history of a saga, and returns the number of actions that have failed for each
// reason.
func (a *target) failures(namespace, name string) map[string]int {
	a.Helper()
	req, err := http.NewRequestWithContext(a.Context(), http.MethodGet, fmt.Sprintf("http://%s/v1/namespaces/%s/sagas/%s/history?limit=1000", a.address, namespace, name), http.NoBody)
	if err != nil {
		a.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.tokens[namespace])
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		a.Fatal(err)
	}
	defer res.Body.Close()
	var history struct {
		Events []struct{ Direction, Outcome, Reason string }
	}
	if err := json.NewDecoder(res.Body).Decode(&history); err != nil || res.StatusCode != http.StatusOK {
		a.Fatalf("reading the history of saga %s/%s: status %d, %v", namespace, name, res.StatusCode, err)
	}
	reasons := map[string]int{}
	for _, e := range history.Events {
		if e.Direction == string(saga.Action) && e.Outcome != "" && e.Outcome != string(saga.Succeeded) {
			reasons[e.Reason]++
		}
	}
	return reasons
}

// startGate starts a participant that responds to calls as soon as the given number of them is there
// at a time. It returns its URL, and a channel with the time of each call.
func (a *target) startGate(together int) (url string, arrivals <-chan time.Time) {
	var mu sync.Mutex
	waiting, open, all := 0, make(chan struct{}), make(chan time.Time, 1000)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		all <- time.Now()
		mu.Lock()
		if waiting++; waiting == together {
			close(open)
		}
		mu.Unlock()
		select {
		case <-open:
		case <-r.Context().Done():
			mu.Lock()
			waiting--
			mu.Unlock()
		}
	}))
	a.Cleanup(s.Close)
	return s.URL, all
}

// TestOperatorServesNewcomerBesideHangingSagas has sagas of three namespaces that want all workers for
// calls without a response. Another namespace gets workers all the same: its first saga ends, and its
// second one has ten calls at a time.
func TestOperatorServesNewcomerBesideHangingSagas(t *testing.T) {
	a := newTarget(t, "alpha", "beta", "gamma", "newcomer")
	p := a.startHangingParticipant()
	wanted := map[string]int{"alpha": 400, "beta": 200, "gamma": 200}
	for _, key := range []string{"alpha/one", "beta/one", "gamma/one", "alpha/two"} {
		namespace, name, _ := strings.Cut(key, "/")
		a.createHanging(p, namespace, name, 200, hangTimeout)
	}
	a.await("the hanging sagas have all the workers that they can get", func() bool {
		hanging, _ := p.byNamespace()
		total := 0
		for n := range maps.Values(hanging) {
			total += n
		}
		if total > sharedPlaces {
			t.Fatalf("the calls that hang hold %d of %d workers (%v), want at most %d", total, engine.DefaultWorkers, hanging, sharedPlaces)
		}
		for namespace, all := range wanted {
			own := hanging[namespace]
			if own < all && own < (sharedPlaces-(total-own)+1)/2 {
				return false
			}
		}
		return true
	}, func() any { hanging, ended := p.byNamespace(); return fmt.Sprint(hanging, ", ended: ", ended) })

	for i, name := range []string{"first", "second"} {
		together := []int{1, 10}[i]
		url, arrivals := a.startGate(together)
		began := time.Now()
		a.createParallel(url, "newcomer", name, together, hangTimeout)
		a.await(fmt.Sprintf("the %s saga of the newcomer has completed", name), func() bool {
			hanging, ended := p.byNamespace()
			if ended > 0 {
				t.Fatalf("%d of the calls that hang ended before the %s saga of the newcomer; %v hang now, and it had %d of %d calls", ended, name, hanging, len(arrivals), together)
			}
			s := a.saga("newcomer", name)
			return s != nil && s.Status.Phase == v1.PhaseCompleted
		}, func() any { return fmt.Sprintf("%+v, and %d calls", a.saga("newcomer", name).Status, len(arrivals)) })
		took := time.Since(began)
		hanging, _ := p.byNamespace()
		t.Logf("the %s saga of the newcomer had its first call after %s and completed after %s; calls that hang: %v", name, (<-arrivals).Sub(began), took, hanging)
	}
	a.checkMemory("800 steps that hang")
}

// TestOperatorEndsCallsOfCancelledSagas has a namespace whose sagas hold all the workers that it can
// get. Cancelling one of them gives its workers to the others.
func TestOperatorEndsCallsOfCancelledSagas(t *testing.T) {
	a := newTarget(t, "shop")
	p := a.startHangingParticipant()
	wait := func(what string, done func() bool) {
		t.Helper()
		a.await(what, done, func() any {
			return fmt.Sprintf("cancelled: %+v, deleted: %+v", p.of("shop", "cancelled"), p.of("shop", "deleted"))
		})
	}
	a.createHanging(p, "shop", "cancelled", 200, hangTimeout)
	wait("all calls of a saga hang", func() bool { return p.of("shop", "cancelled").begun == 200 })
	a.createHanging(p, "shop", "deleted", 100, hangTimeout)
	rest := (sharedPlaces+1)/2 - 200
	wait("the namespace has all its workers", func() bool { return p.of("shop", "deleted").begun == rest })
	url, arrivals := a.startGate(1)
	a.createParallel(url, "shop", "queued", 1, hangTimeout)
	wait("the queued saga has started", func() bool {
		s := a.saga("shop", "queued")
		return s != nil && s.Status.Phase == v1.PhaseRunning
	})
	if len(arrivals) > 0 {
		t.Errorf("a third saga was served while the namespace had %d workers, want at most that", 200+rest)
	}

	cancelled := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cancelled"}}
	if err := a.admin.Patch(t.Context(), cancelled, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"cancel":true}}`))); err != nil {
		t.Fatal(err)
	}
	wait("the calls of the cancelled saga have ended", func() bool { return p.of("shop", "cancelled").ended == 200 })
	a.checkInterrupted("shop", "cancelled", 200)
	wait("the queued saga has completed", func() bool { return a.saga("shop", "queued").Status.Phase == v1.PhaseCompleted })
	if c := p.of("shop", "deleted"); c.begun != 100 || c.ended != 0 {
		t.Errorf("calls of the other saga after one was cancelled: %+v, want all 100 begun and none ended", c)
	}

	if err := a.admin.Delete(t.Context(), a.saga("shop", "deleted")); err != nil {
		t.Fatal(err)
	}
	wait("the calls of the deleted saga have ended", func() bool { return p.of("shop", "deleted").ended == 100 })
	a.checkInterrupted("shop", "deleted", 100)
	for _, name := range []string{"cancelled", "deleted"} {
		if c := p.of("shop", name); c.undone > 0 {
			t.Errorf("%d undos of the %s saga were sent before the time of its calls was over", c.undone, name)
		}
		if s := a.saga("shop", name); s == nil || s.Status.Phase != v1.PhaseCompensating {
			t.Errorf("the %s saga is %+v, want it Compensating", name, s)
		}
	}
}

// checkInterrupted waits until as many actions of a saga have failed, and fails the test if one of
// them has another reason than that its call was interrupted.
func (a *target) checkInterrupted(namespace, name string, actions int) {
	a.Helper()
	var reasons map[string]int
	a.await("the outcomes of the calls are recorded", func() bool {
		reasons = a.failures(namespace, name)
		n := 0
		for each := range maps.Values(reasons) {
			n += each
		}
		return n >= actions
	}, func() any { return reasons })
	if reasons[saga.ReasonInterrupted] != actions || len(reasons) != 1 {
		a.Errorf("the actions of saga %s/%s failed for the reasons %v, want %d for %s", namespace, name, reasons, actions, saga.ReasonInterrupted)
	}
}

// TestOperatorUndoesDeletedHangingSagas has a saga whose calls hang when it is deleted.
func TestOperatorUndoesDeletedHangingSagas(t *testing.T) {
	a := newTarget(t, "shop")
	p := a.startHangingParticipant()
	a.createHanging(p, "shop", "deleted", 3, 5*time.Second)
	state := func() any { return fmt.Sprintf("%+v", p.of("shop", "deleted")) }
	a.await("all calls hang", func() bool { return p.of("shop", "deleted").begun >= 3 }, state)
	if err := a.admin.Delete(t.Context(), a.saga("shop", "deleted")); err != nil {
		t.Fatal(err)
	}
	a.await("the deleted saga is gone", func() bool { return a.saga("shop", "deleted") == nil }, state)
	if c := p.of("shop", "deleted"); c.undone < 3 || c.begun != c.ended || c.early > 0 {
		t.Errorf("calls of the deleted saga: %+v, want all ended, then 3 undos", c)
	}
}

// TestOperatorStallsSagasBeyondLimits has sagas that would load the operator and its participants for
// long: a hanging call keeps its worker, and a retry without a backoff is a busy loop.
func TestOperatorStallsSagasBeyondLimits(t *testing.T) {
	a := newTargetWith(t, nil, "hostile")
	url, arrivals := a.startGate(1)
	step := func(change func(*v1.Step)) v1.Step {
		s := stepAt(url, "a", "${response.status}")
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		step v1.Step
		want string
	}{
		"backoff":      {step(func(s *v1.Step) { s.Retry = &v1.Retry{InitialBackoff: &metav1.Duration{Duration: time.Millisecond}} }), "--min-backoff"},
		"undo-backoff": {step(func(s *v1.Step) { s.Compensation.Retry = &v1.Retry{MaxBackoff: &metav1.Duration{}} }), "--min-backoff"},
		"timeout":      {step(func(s *v1.Step) { s.AttemptTimeout = &metav1.Duration{Duration: 61 * time.Second} }), "--max-attempt-timeout"},
	} {
		a.createSaga("hostile", name, c.step)
		var conditions []metav1.Condition
		a.await("the saga "+name+" is stalled", func() bool {
			s := a.saga("hostile", name)
			conditions = s.Status.Conditions
			for _, condition := range conditions {
				if condition.Type == v1.ConditionStalled && condition.Status == metav1.ConditionTrue {
					if condition.Reason != engine.ReasonInvalidDefinition || !strings.Contains(condition.Message, c.want) {
						t.Errorf("saga %s is stalled with %s: %s; want %s with the flag %s", name, condition.Reason, condition.Message, engine.ReasonInvalidDefinition, c.want)
					}
					return true
				}
			}
			if s.Status.Phase != "" && s.Status.Phase != v1.PhasePending {
				t.Fatalf("saga %s is %s, want it stalled for the flag %s", name, s.Status.Phase, c.want)
			}
			return false
		}, func() any { return conditions })
	}
	if len(arrivals) > 0 {
		t.Errorf("the participant was called %d times for sagas that are beyond the limits", len(arrivals))
	}
}
