package server

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/operations"
)

// bindEverywhere binds a ClusterRole in all namespaces, until the test ends.
func (r *rig) bindEverywhere(account *corev1.ServiceAccount, role string, right operations.Permission) {
	r.Helper()
	b := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: account.Namespace + "-" + account.Name + "-" + role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: account.Namespace, Name: account.Name}},
	}
	r.ok(r.admin.Create(r.Context(), b))
	r.Cleanup(func() { _ = r.admin.Delete(r.Context(), b) })
	who := operations.Caller{Name: "system:serviceaccount:" + account.Namespace + ":" + account.Name}
	r.until(role+" is bound everywhere", func() bool {
		return operations.ClusterAccess{Client: r.admin}.Allowed(r.Context(), who, right) == nil
	})
}

// impersonating returns the setup of an API whose operator has an account of its own. The cluster's
// admission policies do not know it, so that it cannot name another user as a creator by an annotation.
func impersonating(t *testing.T, allowed bool, got *operations.Options) setup {
	t.Helper()
	return func(o *operations.Options, _ *Options) {
		r := &rig{TB: t}
		var err error
		r.admin, err = typedClient(kubernetes(t).Config)
		r.ok(err)
		namespace := r.namespace()
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "operator"}}
		config, err := kubernetes(t).ServiceAccount(t.Context(), namespace, account.Name)
		r.ok(err)
		r.bindEverywhere(account, "saga-operator", operations.Permission{Verb: "create", Namespace: "default"})
		if allowed {
			r.bindEverywhere(account, "saga-impersonator", operations.Permission{Verb: "impersonate-on:user-info:patch", Namespace: "default"})
		}
		o.Client, err = operations.NewClient(config, nil)
		r.ok(err)
		o.Impersonate = true
		*got = *o
	}
}

func TestImpersonatedServiceAccountIsItself(t *testing.T) {
	t.Parallel()
	var options operations.Options
	r := newRig(t, impersonating(t, true, &options))
	account := r.account("orders", r.ns, "saga-editor")
	user, token := "system:serviceaccount:"+r.ns+":orders", r.token(account, audience)
	if s := r.create(token, "order-1"); s.Annotations[v1.CreatedByAnnotation] != user {
		t.Errorf("created by %q, want %q", s.Annotations[v1.CreatedByAnnotation], user)
	}
	a := r.do(call{method: "POST", path: sagas + "/order-1/suspend", token: token, header: key("k-2")})
	if a.status != http.StatusOK || a.saga(t).Annotations[v1.ChangedByAnnotation] != user {
		t.Errorf("suspended by %s: %d %s", user, a.status, a.body)
	}
}

// grace is a user of another kind, with a group that has rights.
func grace(r *rig) operations.Caller {
	who := operations.Caller{Name: "grace@example.com", UID: "17", Groups: []string{"shop-" + uuid.NewString()[:8], "system:authenticated"}}
	r.ok(r.admin.Create(r.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: "shop"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "saga-editor"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: who.Groups[0]}},
	}))
	r.until("the group has its rights", func() bool {
		return operations.ClusterAccess{Client: r.admin}.Allowed(r.Context(), who, operations.Permission{Verb: "create", Namespace: r.ns}) == nil
	})
	return who
}

func (r *rig) startAs(options operations.Options, who operations.Caller) (v1.Saga, error) {
	ops, err := operations.New(options)
	r.ok(err)
	c := operations.StartSaga{Namespace: r.ns, Name: "order-1", Key: "k-1", Spec: []byte(spec)}
	if _, err := cqrs.Send(operations.WithCaller(r.Context(), who), ops.Commands, c); err != nil {
		return v1.Saga{}, err
	}
	var s v1.Saga
	r.ok(r.admin.Get(r.Context(), client.ObjectKey{Namespace: r.ns, Name: "order-1"}, &s))
	return s, nil
}

func TestImpersonatedUserHasOwnGroups(t *testing.T) {
	t.Parallel()
	var options operations.Options
	r := newRig(t, impersonating(t, true, &options))
	who := grace(r)
	s, err := r.startAs(options, who)
	if err != nil || s.Annotations[v1.CreatedByAnnotation] != who.Name {
		t.Errorf("created by %q, %v; want %q", s.Annotations[v1.CreatedByAnnotation], err, who.Name)
	}
}

// The rights of the operator itself suffice for the write. It must not use them.
func TestImpersonationNeedsItsRole(t *testing.T) {
	t.Parallel()
	var options operations.Options
	r := newRig(t, impersonating(t, false, &options))
	_, err := r.startAs(options, grace(r))
	var refused *operations.RejectedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Message, "impersonate") {
		t.Errorf("without the role: %v; want an error that names the missing right", err)
	}
	var list v1.SagaList
	r.ok(r.admin.List(t.Context(), &list, client.InNamespace(r.ns)))
	if len(list.Items) > 0 {
		t.Errorf("it created %d sagas", len(list.Items))
	}
}

func TestImpersonationRefusesAdministrators(t *testing.T) {
	t.Parallel()
	var options operations.Options
	r := newRig(t, impersonating(t, true, &options))
	who := grace(r)
	who.Groups = append(who.Groups, "system:masters")
	_, err := r.startAs(options, who)
	var refused *operations.RejectedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Message, "impersonating the system:masters group") {
		t.Errorf("a member of system:masters: %v", err)
	}
}
