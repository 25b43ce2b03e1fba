package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/saga"
)

const sagas = "/v1/namespaces/NS/sagas"

func TestTheSameRequestCreatesOneSagaAndGetsTheSameAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	c := call{method: "POST", path: sagas, token: token, header: key(`"k-1042"`),
		body: fmt.Sprintf(`{"apiVersion":"saga.vextrus.io/v1","kind":"Saga","metadata":{"generateName":"order-","labels":{"app":"shop"},"annotations":{"note":"<&>"}},"spec":%s}`, spec)}
	var wg sync.WaitGroup
	answers := make([]answer, 16)
	for i := range answers {
		wg.Go(func() { answers[i] = r.do(c) })
	}
	wg.Wait()
	first := r.do(c)
	if first.status != http.StatusCreated || first.header.Get("Idempotency-Replayed") != "true" {
		t.Fatalf("the repetition: %d %v %s", first.status, first.header, first.body)
	}
	created := 0
	for _, a := range answers {
		switch {
		case a.status == http.StatusConflict && a.problem(t).Reason == "InProgress" && a.header.Get("Retry-After") != "":
			continue
		case a.status != http.StatusCreated || string(a.body) != string(first.body):
			t.Errorf("answered with %d %s, and then with %s", a.status, a.body, first.body)
		case a.header.Get("Idempotency-Replayed") == "":
			created++
		}
	}
	s := first.saga(t)
	if created != 1 || s.Labels["app"] != "shop" || s.Annotations["note"] != "<&>" || !strings.HasPrefix(s.Name, "order-") || len(s.ManagedFields) > 0 {
		t.Errorf("created %d times: %+v", created, s.ObjectMeta)
	}
	if got, want := first.header.Get("Location"), "/v1/namespaces/"+r.ns+"/sagas/"+s.Name; got != want {
		t.Errorf("Location %s, want %s", got, want)
	}
	var list v1.SagaList
	r.ok(r.admin.List(t.Context(), &list, client.InNamespace(r.ns)))
	if len(list.Items) != 1 {
		t.Errorf("there are %d sagas", len(list.Items))
	}
	got := r.do(call{method: "GET", path: sagas + "/" + s.Name, token: token}).saga(t)
	if diff := cmp.Diff(s, got); diff != "" {
		t.Errorf("what was created is not what is there:\n%s", diff)
	}
}

func TestAKeyIsGoodForOneSagaOfOneUser(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, grace := r.editor(), r.editor()
	send := func(token, name string) answer {
		return r.do(call{method: "POST", path: sagas, token: token, header: key("k-1"), body: manifest(name)})
	}
	if a := send(ada, "order-1"); a.status != http.StatusCreated {
		t.Fatalf("the first: %d %s", a.status, a.body)
	}
	if a := send(ada, "order-2"); a.status != http.StatusUnprocessableEntity || a.problem(t).Reason != "KeyReused" {
		t.Errorf("another saga with the key: %d %s", a.status, a.body)
	}
	if a := r.do(call{method: "POST", path: sagas, token: ada, header: key("k-2"), body: manifest("order-1")}); a.status != http.StatusConflict {
		t.Errorf("the same saga with another key: %d %s", a.status, a.body)
	}
	for range 2 { // the definite no is kept
		if a := send(grace, "order-1"); a.status != http.StatusConflict || a.problem(t).Reason != "AlreadyExists" {
			t.Errorf("the same saga by somebody else: %d %s", a.status, a.body)
		}
	}
}

// forgetful loses what it is to keep, as a process does that dies after it has created the saga.
type forgetful struct {
	operationsKeys
	remembers atomic.Bool
}

func TestARequestThatDiedInTheMiddleFindsItsSagaAgain(t *testing.T) {
	t.Parallel()
	lost := &forgetful{}
	r := newRig(t, func(o *operations.Options, _ *Options) { lost.operationsKeys = o.Keys; o.Keys = lost })
	token := r.editor()
	c := call{method: "POST", path: sagas, token: token, header: key("k-1"), body: fmt.Sprintf(`{"metadata":{"generateName":"order-"},"spec":%s}`, spec)}
	a := r.do(c)
	if a.status != http.StatusInternalServerError { // its answer was lost
		t.Fatalf("the first: %d %s", a.status, a.body)
	}
	if _, err := r.pool.Exec(t.Context(), `DELETE FROM idempotency_keys`); err != nil { // its lease is over
		t.Fatal(err)
	}
	lost.remember()
	s := r.do(c).saga(t)
	var list v1.SagaList
	r.ok(r.admin.List(t.Context(), &list, client.InNamespace(r.ns)))
	if len(list.Items) != 1 || list.Items[0].UID != s.UID {
		t.Errorf("there are %d sagas", len(list.Items))
	}
}

func TestSagasAreListedPageByPageWithFilters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	for i := range 5 {
		r.create(token, fmt.Sprintf("order-%d", i))
	}
	r.phase("order-3", v1.PhaseRunning)
	r.ok(r.admin.Patch(t.Context(), &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: "order-4"}}, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"app":"shop"}}}`))))
	list := func(query string) (names []string, page sagaPage) {
		t.Helper()
		a := r.do(call{method: "GET", path: sagas + "?" + query, token: token})
		if a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", query, a.status, a.body)
		}
		r.ok(json.Unmarshal(a.body, &page))
		for _, s := range page.Items {
			names = append(names, s.Name)
		}
		return names, page
	}
	var all []string
	next, pages := "", 0
	for more := true; more; pages++ {
		names, page := list("limit=2&continue=" + next)
		all, next, more = append(all, names...), page.Continue, page.Continue != ""
	}
	if want := []string{"order-0", "order-1", "order-2", "order-3", "order-4"}; !cmp.Equal(all, want) || pages != 3 {
		t.Errorf("%d pages with %v", pages, all)
	}
	if names, _ := list("phase=Running"); !cmp.Equal(names, []string{"order-3"}) {
		t.Errorf("running are %v", names)
	}
	if names, _ := list("labelSelector=app%3Dshop"); !cmp.Equal(names, []string{"order-4"}) {
		t.Errorf("labelled are %v", names)
	}
	for query, status := range map[string]int{
		"phase=Asleep": 422, "limit=0": 422, "limit=501": 422, "limit=x": 422, "labelSelector=a%3D%3D%3Db": 422, "continue=junk": 422, "watch=true": 422,
	} {
		if a := r.do(call{method: "GET", path: sagas + "?" + query, token: token}); a.status != status || len(a.problem(t).Errors) == 0 && query != "continue=junk" {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
}

type sagaPage struct {
	Items    []v1.Saga
	Continue string
}

func TestASagaIsHeldResumedAndCancelled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	r.create(token, "order-1")
	post := func(what string) answer {
		return r.do(call{method: "POST", path: sagas + "/order-1/" + what, token: token})
	}
	for range 2 {
		if s := post("suspend").saga(t); !s.Spec.Suspend {
			t.Error("it is not suspended")
		}
	}
	if s := post("resume").saga(t); s.Spec.Suspend {
		t.Error("it is still suspended")
	}
	for range 2 {
		if s := post("cancel").saga(t); !s.Spec.Cancel {
			t.Error("it is not cancelled")
		}
	}
	r.phase("order-1", v1.PhaseCompensated)
	if s := post("cancel").saga(t); !s.Spec.Cancel { // what was asked for has come true
		t.Error("it is not cancelled any more")
	}
	r.create(token, "order-2")
	r.phase("order-2", v1.PhaseCompleted)
	r.create(token, "abandoned")
	r.phase("abandoned", v1.PhaseAbandoned)
	for _, what := range []string{"cancel", "suspend", "resume"} {
		given := r.do(call{method: "POST", path: sagas + "/abandoned/" + what, token: token})
		if p := given.problem(t); given.status != http.StatusConflict || p.Reason != "Finished" || !strings.Contains(p.Detail, "Abandoned") {
			t.Errorf("%s of one that is abandoned: %d %s", what, given.status, given.body)
		}
		a := r.do(call{method: "POST", path: sagas + "/order-2/" + what, token: token})
		if p := a.problem(t); a.status != http.StatusConflict || p.Reason != "Finished" || !strings.Contains(p.Detail, "Completed") {
			t.Errorf("%s of one that has finished: %d %s", what, a.status, a.body)
		}
		if a := r.do(call{method: "POST", path: sagas + "/order-3/" + what, token: token}); a.status != http.StatusNotFound {
			t.Errorf("%s of one that is not there: %d %s", what, a.status, a.body)
		}
	}
}

func TestADecisionSaysWhoMadeItAndIsRefusedInWords(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	chief := r.account("chief", r.ns, "saga-viewer", "saga-editor", "saga-decider")
	token := r.token(chief, audience)
	s := r.create(token, "order-1")
	decide := func(body string, headers http.Header) answer {
		return r.do(call{method: "POST", path: sagas + "/order-1/decide", token: token, body: body, header: headers})
	}
	const good = `{"step":"reserve","verdict":"Skip","reason":"written off"}`
	for range 2 {
		if a := decide(good, key("d-1")); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	want := saga.Decision{ID: operations.DecisionID("system:serviceaccount:"+r.ns+":chief", "d-1"), Step: "reserve", Verdict: saga.Skipped, Reason: "written off", By: "system:serviceaccount:" + r.ns + ":chief"}
	if len(r.decider.all) != 1 || r.decider.all[0] != want || r.decider.keys[0].UID != string(s.UID) {
		t.Errorf("decided %+v for %+v", r.decider.all, r.decider.keys)
	}
	for name, c := range map[string]struct {
		fail   error
		status int
		reason string
	}{
		"parked anew":  {&saga.DecisionError{Field: "about", Message: "it is parked anew"}, http.StatusConflict, "ParkedAnew"},
		"another one":  {&saga.DecisionError{Field: "id", Message: "the id was used"}, http.StatusConflict, "OtherDecision"},
		"not parked":   {&saga.DecisionError{Message: "the saga is Running"}, http.StatusConflict, "NotParked"},
		"wrong step":   {&saga.DecisionError{Field: "step", Message: "no step"}, http.StatusUnprocessableEntity, "Invalid"},
		"not started":  {engine.ErrNotStarted, http.StatusConflict, "NotStarted"},
		"of a newer":   {fmt.Errorf("deciding: %w", &saga.NewerError{Unknown: "the event"}), http.StatusConflict, "DefinitionUnreadable"},
		"no database":  {fmt.Errorf("deciding: %w", eventstore.ErrUnavailable), http.StatusServiceUnavailable, "Unavailable"},
		"a mistake":    {errors.New("secret internals"), http.StatusInternalServerError, "Internal"},
		"lost in time": {eventstore.ErrWrongVersion, http.StatusInternalServerError, "Internal"},
	} {
		r.decider.mu.Lock()
		r.decider.fail = c.fail
		r.decider.mu.Unlock()
		a := decide(good, nil)
		if p := a.problem(t); a.status != c.status || p.Reason != c.reason || strings.Contains(string(a.body), "internals") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
}

// TestDecisionIDComesFromTheKey has a decision made with a key, without one, and by another user.
func TestDecisionIDComesFromTheKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	chief := r.account("chief", r.ns, "saga-viewer", "saga-editor", "saga-decider")
	token := r.token(chief, audience)
	r.create(token, "order-1")
	decide := func(headers http.Header) string {
		a := r.do(call{method: "POST", path: sagas + "/order-1/decide", token: token, body: `{"verdict":"Skip","reason":"written off","about":7}`, header: headers})
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return a.header.Get("Saga-Decision-Id")
	}
	if with := decide(key("d-1")); with != operations.DecisionID("system:serviceaccount:"+r.ns+":chief", "d-1") || with == operations.DecisionID("another", "d-1") {
		t.Errorf("with a key the id is %q", with)
	}
	if one, two := decide(nil), decide(nil); one == two || one == "" {
		t.Errorf("without a key the ids are %q and %q", one, two)
	}
	for _, d := range r.decider.all {
		if d.About != 7 || d.ID == "" {
			t.Errorf("decided %+v", d)
		}
	}
}

func TestACallbackIsAnsweredByWhatBecameOfIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := strings.Repeat("t", 43)
	post := func(body string) answer {
		return r.do(call{method: "POST", path: "/v1/callbacks/" + token, body: body})
	}
	if a := post(`{"outcome":"Succeeded","body":{"id":7}}`); a.status != http.StatusNoContent || len(a.body) > 0 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := post(`{"outcome":"Rejected","reason":"CardDeclined","message":"no money"}`); a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.body)
	}
	want := []engine.CallbackAnswer{
		{Response: map[string]any{"status": 200, "headers": map[string]any{}, "body": json.RawMessage(`{"id":7}`)}},
		{Rejected: true, Reason: "CardDeclined", Message: "no money", Response: map[string]any{"status": 200, "headers": map[string]any{}, "body": json.RawMessage("null")}},
	}
	if diff := cmp.Diff(want, r.answers.all); diff != "" {
		t.Errorf("taken was\n%s", diff)
	}
	for name, c := range map[string]struct {
		fail   error
		status int
	}{
		"forged":      {engine.ErrNoCallback, http.StatusNotFound},
		"late":        {fmt.Errorf("%w at noon", engine.ErrCallbackExpired), http.StatusGone},
		"over":        {engine.ErrCallbackOver, http.StatusGone},
		"used":        {engine.ErrCallbackUsed, http.StatusConflict},
		"invalid":     {fmt.Errorf("taking: %w", eventstore.ErrInvalid), http.StatusUnprocessableEntity},
		"no database": {eventstore.ErrUnavailable, http.StatusServiceUnavailable},
	} {
		r.answers.failWith(c.fail)
		if a := post(`{"outcome":"Succeeded"}`); a.status != c.status {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		} else {
			a.problem(t)
		}
	}
	r.answers.failWith(nil)
	for _, body := range []string{`{"outcome":"Maybe"}`, `{}`, `{"outcome":"Succeeded","reason":"because"}`, `{"outcome":"Succeeded","more":1}`, `{"outcome":"Rejected","reason":"` + strings.Repeat("x", 1025) + `"}`} {
		if a := post(body); a.status != http.StatusUnprocessableEntity {
			t.Errorf("%.60s: %d %s", body, a.status, a.body)
		}
	}
	if strings.Contains(r.log.String(), token) {
		t.Error("the token is in the log")
	}
}

func TestNoTokenIsLogged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	r.create(token, "order-1")
	r.do(call{method: "GET", path: sagas + "/order-1", token: "junk-" + token})
	log := r.log.String()
	if strings.Contains(log, token) || strings.Contains(log, "junk-") || !strings.Contains(log, "operation=createSaga") {
		t.Errorf("the log is\n%s", log)
	}
}

func TestASagaOfANamespaceThatNobodyCarriesOutIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *operations.Options, _ *Options) { o.Watches = func(string) bool { return false } })
	a := r.do(call{method: "POST", path: sagas, token: r.editor(), header: key(uuid.NewString()), body: manifest("order-1")})
	if a.status != http.StatusUnprocessableEntity || !strings.Contains(a.problem(t).Detail, "does not carry out") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
