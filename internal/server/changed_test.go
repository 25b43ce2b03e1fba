package server

import (
	"net/http"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// changedBy changes a saga with the rights of the administrator, and returns whom it names afterwards.
func (r *rig) changedBy(kube client.Client, name, patch string) string {
	r.Helper()
	s := &v1.Saga{}
	s.Namespace, s.Name = r.ns, name
	r.ok(kube.Patch(r.Context(), s, client.RawPatch("application/merge-patch+json", []byte(patch))))
	return s.Annotations[v1.ChangedByAnnotation]
}

func TestSagaNamesUserWhoChangedIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	account := r.account("orders", r.ns, "saga-editor")
	user, token := "system:serviceaccount:"+r.ns+":orders", r.token(account, audience)
	if s := r.create(token, "order-1"); s.Annotations[v1.ChangedByAnnotation] != "" {
		t.Errorf("a saga that was never changed names %q", s.Annotations[v1.ChangedByAnnotation])
	}
	a := r.do(call{method: "POST", path: sagas + "/order-1/suspend", token: token, header: key("k-2")})
	if a.status != http.StatusOK || a.saga(t).Annotations[v1.ChangedByAnnotation] != user {
		t.Errorf("suspended by %s: %d %s", user, a.status, a.body)
	}
	// The name of the API's user must not stay on changes that another user makes later.
	if got := r.changedBy(r.admin, "order-1", `{"metadata":{"labels":{"team":"shop"}}}`); got != user {
		t.Errorf("a change of labels names %q, want %q as before", got, user)
	}
	if got := r.changedBy(r.admin, "order-1", `{"spec":{"suspend":false}}`); got == user || got == "" {
		t.Errorf("a change of the spec names %q, want the administrator", got)
	}
}
