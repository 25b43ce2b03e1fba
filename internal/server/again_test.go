package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// forget has all idempotency keys be gone, as they are after 24 hours.
func (r *rig) forget() {
	r.Helper()
	_, err := r.pool.Exec(r.Context(), `DELETE FROM idempotency_keys`)
	r.ok(err)
}

// between has something happen when the API looks at the object of a saga, or creates one, as soon as it is armed, and once.
func between(armed *atomic.Bool, f interceptor.Funcs) setup {
	return func(o *operations.Options, _ *Options) {
		var once interceptor.Funcs
		if f.Get != nil {
			once.Get = func(ctx context.Context, c client.WithWatch, k client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
				if _, namespace := obj.(*metav1.PartialObjectMetadata); !namespace && armed.CompareAndSwap(true, false) {
					return f.Get(ctx, c, k, obj, opts...)
				}
				return c.Get(ctx, k, obj, opts...)
			}
		}
		if f.Create != nil {
			once.Create = func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
				if armed.CompareAndSwap(true, false) {
					return f.Create(ctx, c, obj, opts...)
				}
				return c.Create(ctx, obj, opts...)
			}
		}
		o.Client = interceptor.NewClient(unwatched{o.Client}, once)
	}
}

// others are bodies that ask for something else than `{"metadata":{"name":name,"labels":{"app":"shop"}},"spec":spec}`.
func others(name string) map[string]string {
	body := func(labels, annotations, spec string) string {
		return fmt.Sprintf(`{"metadata":{"name":%q,"labels":%s,"annotations":%s},"spec":%s}`, name, labels, annotations, spec)
	}
	return map[string]string{
		"another spec":       body(`{"app":"shop"}`, `{}`, `{"input":{"order":2},`+spec[1:]),
		"another label":      body(`{"app":"mail"}`, `{}`, spec),
		"no label":           body(`{}`, `{}`, spec),
		"another annotation": body(`{"app":"shop"}`, `{"note":"x"}`, spec),
	}
}

func TestAKeyThatIsKeptNoMoreStillBelongsToTheSagaThatItMade(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	send := func(body string) answer {
		return r.do(call{method: "POST", path: sagas, token: token, header: key("k-1"), body: body})
	}
	same := fmt.Sprintf(`{"metadata":{"name":"order-1","labels":{"app":"shop"}},"spec":%s}`, spec)
	s := send(same).saga(t)
	for what, body := range others("order-1") {
		if a := send(body); a.status != http.StatusUnprocessableEntity || a.problem(t).Reason != "KeyReused" {
			t.Errorf("%s, while the key is kept: %d %s", what, a.status, a.body)
		}
		r.forget()
		if a := send(body); a.status != http.StatusUnprocessableEntity || a.problem(t).Reason != "KeyReused" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
		if a := send(strings.ReplaceAll(same, ",", " ,\n")); a.status != http.StatusCreated || a.saga(t).UID != s.UID {
			t.Errorf("after %s, the same request: %d %s", what, a.status, a.body)
		}
	}
}

func TestARequestWhoseAnswerWasLostIsToldFromAnotherWithItsKey(t *testing.T) {
	t.Parallel()
	lost := &atomic.Bool{}
	r := newRig(t, between(lost, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
		return errors.Join(c.Create(ctx, obj, opts...), apierrors.NewTimeoutError("the answer was lost", 1))
	}}))
	token := r.editor()
	lost.Store(true)
	send := func(body string) answer {
		return r.do(call{method: "POST", path: sagas, token: token, header: key("k-1"), body: body})
	}
	same := fmt.Sprintf(`{"metadata":{"name":"order-1","labels":{"app":"shop"}},"spec":%s}`, spec)
	if a := send(same); a.status != http.StatusServiceUnavailable {
		t.Fatalf("the first: %d %s", a.status, a.body)
	}
	for what, body := range others("order-1") {
		if a := send(body); a.status != http.StatusUnprocessableEntity || a.problem(t).Reason != "KeyReused" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	if a := send(same); a.status != http.StatusCreated || a.saga(t).Labels["app"] != "shop" {
		t.Errorf("the same again: %d %s", a.status, a.body)
	}
}

func TestASagaThatVanishesWhileItIsLookedForIsToBeAskedForAgain(t *testing.T) {
	t.Parallel()
	var r *rig
	vanishes := &atomic.Bool{}
	r = newRig(t, between(vanishes, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, k client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
		r.remove(k.Name)
		return c.Get(ctx, k, obj, opts...)
	}}))
	c := call{method: "POST", path: sagas, token: r.editor(), header: key("k-1"), body: manifest("order-1")}
	first := r.do(c).saga(t)
	r.forget()
	vanishes.Store(true)
	if a := r.do(c); a.status != http.StatusConflict || a.problem(t).Reason != "Changed" || a.header.Get("Retry-After") == "" {
		t.Errorf("while it vanishes: %d %v %s", a.status, a.header, a.body)
	}
	if second := r.do(c).saga(t); second.UID == first.UID {
		t.Error("the same saga is there again")
	}
}

func TestASagaThatWasReplacedMeanwhileIsNotChangedInItsPlace(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"cancel", "suspend"} {
		var r *rig
		replaced := &atomic.Bool{}
		r = newRig(t, between(replaced, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, k client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			err := c.Get(ctx, k, obj, opts...)
			r.remove(k.Name)
			r.createAs(kubernetes(t).Config, k.Name, nil)
			return err
		}}))
		token := r.editor()
		first := r.create(token, "order-1")
		replaced.Store(true)
		if a := r.do(call{method: "POST", path: sagas + "/order-1/" + verb, token: token}); a.status != http.StatusConflict || a.problem(t).Reason != "Changed" {
			t.Errorf("%s: %d %s", verb, a.status, a.body)
		}
		var now v1.Saga
		r.ok(r.admin.Get(t.Context(), client.ObjectKey{Namespace: r.ns, Name: "order-1"}, &now))
		if now.UID == first.UID || now.Spec.Cancel || now.Spec.Suspend {
			t.Errorf("%s: the new one is %+v", verb, now.Spec)
		}
	}
}

func TestTheTraceOfTheRequestThatCreatesASagaIsNotedOnIt(t *testing.T) {
	t.Parallel()
	const trace, another = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
	const annotation = "saga.vextrus.io/traceparent"
	r := newRig(t)
	token := r.editor()
	send := func(name, trace string) (string, answer) {
		header := key("k-" + name)
		if trace != "" {
			header.Set("Traceparent", trace)
		}
		a := r.do(call{method: "POST", path: sagas, token: token, header: header, body: manifest(name)})
		return a.saga(t).Annotations[annotation], a
	}
	if got, _ := send("order-1", trace); got != trace {
		t.Errorf("noted is %q", got)
	}
	for _, forgotten := range []bool{false, true} { // who repeats a request does so in another span
		if forgotten {
			r.forget()
		}
		if got, a := send("order-1", another); got != trace || a.status != http.StatusCreated {
			t.Errorf("after a repetition, with the key forgotten %v: %q, %d", forgotten, got, a.status)
		}
	}
	for i, none := range []string{"", "x", strings.ToUpper(trace), "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01", trace + "-01"} {
		if got, _ := send(fmt.Sprintf("order-%d", i+2), none); got != "" {
			t.Errorf("of %q, noted is %q", none, got)
		}
	}
	body := fmt.Sprintf(`{"metadata":{"name":"order-9","annotations":{%q:%q}},"spec":%s}`, annotation, trace, spec)
	if a := r.do(call{method: "POST", path: sagas, token: token, header: key(uuid.NewString()), body: body}); a.status != http.StatusUnprocessableEntity {
		t.Errorf("written by hand: %d %s", a.status, a.body)
	}
}

func TestServerLimitsStoredResponses(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *operations.Options, _ *Options) {
		o.Keys = unhurriedKeys{idempotency.NewPostgres(o.Database, idempotency.Options{Lease: patience, RealmBytes: 1})}
	})
	token, grace := r.editor(), r.editor()
	create := func(token, k, name string) answer {
		return r.do(call{method: "POST", path: sagas, token: token, body: manifest(name), header: key(k)})
	}
	if a := create(token, "k1", "order-1"); a.status != http.StatusCreated {
		t.Fatalf("first key: %d %s", a.status, a.body)
	}
	if a := create(token, "k2", "order-2"); a.status != http.StatusTooManyRequests || a.problem(t).Reason != "KeptAnswersQuota" || a.header.Get("Retry-After") == "" {
		t.Errorf("second key: %d %s", a.status, a.body)
	}
	if a := create(token, "k1", "order-1"); a.status != http.StatusCreated || a.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("first key repeated: %d %s", a.status, a.body)
	}
	if a := create(grace, "k2", "order-2"); a.status != http.StatusCreated {
		t.Errorf("second user: %d %s", a.status, a.body)
	}
}
