package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/saga"
)

// sagaStarted returns the first event of a saga of the namespace that has a name now.
func (r *rig) sagaStarted(uid, ns, name string) saga.Event {
	r.Helper()
	return saga.SagaStarted{At: at(0), UID: uid, Namespace: ns, NamespaceUID: r.namespaceUID(ns), Name: name, CreatedBy: "ada"}
}

// namespaceUID returns the uid of a namespace; another one if there is none.
func (r *rig) namespaceUID(name string) string {
	r.Helper()
	var ns corev1.Namespace
	err := r.admin.Get(r.Context(), client.ObjectKey{Name: name}, &ns)
	if apierrors.IsNotFound(err) {
		return uuid.NewString()
	}
	r.ok(err)
	return string(ns.UID)
}

// unmake deletes the namespace of the rig. No controller empties it here, so its roles and accounts stay.
func (r *rig) unmake() {
	r.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.ns}}
	r.ok(r.admin.Delete(r.Context(), ns))
	r.ok(r.admin.Get(r.Context(), client.ObjectKeyFromObject(ns), ns))
	ns.Spec.Finalizers = nil
	r.ok(r.admin.SubResource("finalize").Update(r.Context(), ns))
	r.until("the namespace is gone", func() bool { return apierrors.IsNotFound(r.admin.Get(r.Context(), client.ObjectKeyFromObject(ns), ns)) })
}

// remake deletes the namespace of the rig and makes another one of its name. Its sagas have to be removed
// before.
func (r *rig) remake() {
	r.Helper()
	r.unmake()
	again := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.ns}}
	r.ok(r.admin.Create(r.Context(), again))
	r.until("objects can be made in it", func() bool {
		o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, GenerateName: "probe-"}}
		return r.admin.Create(r.Context(), o) == nil
	})
}

// everywhere returns the token of an account that has some of the operator's ClusterRoles in all namespaces.
func (r *rig) everywhere(roles ...string) string {
	r.Helper()
	account := r.account("everywhere-"+uuid.NewString()[:8], r.ns)
	for _, role := range roles {
		b := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: r.ns + "-" + account.Name + "-" + role},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: account.Namespace, Name: account.Name}},
		}
		r.ok(r.admin.Create(r.Context(), b))
		r.Cleanup(func() { _ = r.admin.Delete(r.Context(), b) })
		who := operations.Caller{Name: "system:serviceaccount:" + account.Namespace + ":" + account.Name}
		r.until(role+" is bound in all namespaces", func() bool {
			return operations.ClusterAccess{Client: r.admin}.Allowed(r.Context(), who, granted[role]) == nil
		})
	}
	return r.token(account, audience)
}

// readsNothing checks that a history is hidden by name and by uid, as pages and as a stream.
func (r *rig) readsNothing(token, uid string) {
	r.Helper()
	for _, query := range []string{"", "?uid=" + uid} {
		for _, accept := range []string{"application/json", eventStream} {
			a := r.do(call{method: "GET", path: sagas + "/order-1/history" + query, token: token, header: http.Header{"Accept": {accept}}})
			if a.status != http.StatusNotFound || strings.Contains(string(a.body), "reserve") {
				r.Errorf("%q as %s: %d %s", query, accept, a.status, a.body)
			}
		}
	}
}

func TestHistoryBelongsToItsNamespace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := uuid.NewString()
	r.shown(r.happened(old, r.sagaStarted(old, r.ns, "order-1"), attempted(1), saga.SagaCompleted{At: at(2)}))
	if p := r.history(r.editor(), "order-1", "uid="+old); len(p.Events) != 3 {
		t.Fatalf("its owner reads %+v", p)
	}
	r.remake()
	owner, all := r.editor(), r.everywhere("saga-viewer")
	r.readsNothing(owner, old)
	if a := r.do(call{method: "GET", path: sagas, token: owner}); a.status != http.StatusOK || strings.Contains(string(a.body), "order-1") {
		t.Errorf("the list: %d %s", a.status, a.body)
	}
	for _, query := range []string{"", "uid=" + old} {
		if p := r.history(all, "order-1", query); p.UID != old || len(p.Events) != 3 {
			t.Errorf("a reader of all namespaces, with %q: %+v", query, p)
		}
	}
	mine := uuid.NewString() // the clock of the operator may lag: it is the owner's saga all the same
	started := r.sagaStarted(mine, r.ns, "order-1").(saga.SagaStarted)
	started.At = at(-100)
	r.shown(r.happened(mine, started))
	for who, token := range map[string]string{"the owner": owner, "a reader of all namespaces": all} {
		if p := r.history(token, "order-1", ""); p.UID != mine || len(p.Events) != 1 {
			t.Errorf("%s, by name: %+v", who, p)
		}
	}
	s := r.create(owner, "order-1")
	if p := r.history(owner, "order-1", ""); p.UID != string(s.UID) || len(p.Events) != 0 {
		t.Errorf("the saga that is there: %+v", p)
	}
	if a := r.do(call{method: "GET", path: sagas + "/order-1/history?uid=" + old, token: owner}); a.status != http.StatusNotFound {
		t.Errorf("by uid, beside the saga that is there: %d %s", a.status, a.body)
	}
}

// TestHistoryOfUnknownNamespaceIsHidden is about events of older versions, which have no uid of a namespace.
func TestHistoryOfUnknownNamespaceIsHidden(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	uid := uuid.NewString()
	r.shown(r.happened(uid, saga.SagaStarted{At: at(0), UID: uid, Namespace: r.ns, Name: "order-1"}, attempted(1)))
	r.readsNothing(r.editor(), uid)
	if p := r.history(r.everywhere("saga-viewer"), "order-1", ""); p.UID != uid {
		t.Errorf("a reader of all namespaces: %+v", p)
	}
	token := r.editor()
	live := string(r.create(token, "order-2").UID) // the object shows which namespace it is
	r.shown(r.happened(live, saga.SagaStarted{At: at(0), UID: live, Namespace: r.ns, Name: "order-2"}))
	if p := r.history(token, "order-2", ""); len(p.Events) != 1 {
		t.Errorf("a saga whose object is there: %+v", p)
	}
	r.remove("order-2")
	r.unmake()
	r.readsNothing(token, uid)
}

func TestFollowEndsWithItsNamespace(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *operations.Options, _ *Options) { o.Reauthorize = 20 * time.Millisecond })
	old := uuid.NewString()
	r.shown(r.happened(old, r.sagaStarted(old, r.ns, "order-1")))
	token, all := r.editor(), r.everywhere("saga-viewer")
	followers := map[string]*follower{"reader": r.follow(token, "order-1", ""), "reader of all": r.follow(all, "order-1", "")}
	for who, f := range followers {
		if e, ok := f.nextNamed(); !ok || e.event != "SagaStarted" {
			t.Fatalf("%s receives %+v", who, e)
		}
	}
	r.remake() // the reader's right is there in the new namespace too
	if e, ok := followers["reader"].nextNamed(); !ok || e.event != "problem" || !strings.Contains(e.data, `"status":404`) {
		t.Errorf("the reader receives %+v", e)
	}
	r.happened(old, attempted(1))
	if e, ok := followers["reader of all"].nextNamed(); !ok || e.event != "AttemptStarted" {
		t.Errorf("the reader of all namespaces receives %+v", e)
	}
}

// nextNamed returns the next event that is not a comment.
func (f *follower) nextNamed() (sent, bool) {
	for {
		e, ok := f.next()
		if !ok || e.event != "" {
			return e, ok
		}
	}
}

func TestIdempotencyKeyBelongsToItsNamespace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := call{method: "POST", path: sagas, token: r.editor(), header: key("k-1"), body: manifest("order-1")}
	first := r.do(c).saga(t)
	r.remove("order-1")
	if a := r.do(c); a.saga(t).UID != first.UID || a.header.Get("Idempotency-Replayed") != "true" {
		t.Fatalf("the response was not kept: %d %v", a.status, a.header)
	}
	r.remake()
	a := r.do(c)
	if second := a.saga(t); second.UID == first.UID || a.header.Get("Idempotency-Replayed") != "" {
		t.Errorf("in the new namespace: %d %v %s", a.status, a.header, a.body)
	}
	c.path = "/v1/namespaces/no-such-namespace/sagas"
	c.token = r.everywhere("saga-editor")
	if a := r.do(c); a.status != http.StatusNotFound || !strings.Contains(a.problem(t).Detail, "no-such-namespace") {
		t.Errorf("in no namespace: %d %s", a.status, a.body)
	}
}

func TestAbandonHidesSagasOfFormerNamespace(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	old := uuid.NewString()
	r.record(old, r.ns, "order-1")
	admin := r.administrator()
	r.remake()
	want := fmt.Sprintf("saga %s/order-1 with uid %s does not exist", r.ns, old)
	if a := r.abandon(admin, "order-1", abandonBody(old)); a.status != http.StatusNotFound || a.problem(t).Detail != want {
		t.Errorf("%d %s", a.status, a.body)
	}
	if got := r.lastEvents(old); len(got) > 0 {
		t.Errorf("recorded %v", got)
	}
	a := r.abandon(r.everywhere("saga-abandoner"), "order-1", abandonBody(old))
	var done struct{ Phase string }
	if err := json.Unmarshal(a.body, &done); err != nil || a.status != http.StatusOK || done.Phase != "Abandoned" {
		t.Errorf("with the right in all namespaces: %d %s", a.status, a.body)
	}
}
