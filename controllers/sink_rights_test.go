package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// withoutSecrets is a reader who may not read Secrets.
type withoutSecrets struct{ client.Reader }

func (c withoutSecrets) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	if _, ok := o.(*corev1.Secret); ok {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, key.Name, errors.New("no RBAC policy matched"))
	}
	return c.Reader.Get(ctx, key, o, options...)
}

func TestSinkLooksAgainForRightWithBoundedPauses(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	now := time.Now()
	elected := make(chan struct{})
	close(elected)
	s := r.reconciler()
	s.Client, s.Live, s.Elected, s.Clock, s.pace = r.kube, withoutSecrets{r.kube}, elected, func() time.Time { return now }, usualSinkPace
	s.setDefaults(nil)
	o := r.sink("s", `{http: {url: "https://shop"}, credentials: {secretRef: {name: token}}}`)
	var pauses []string
	for range 5 {
		res, err := s.Reconcile(t.Context(), requestFor(o))
		if err != nil {
			t.Fatal(err)
		}
		pauses = append(pauses, res.RequeueAfter.String())
		now = now.Add(res.RequeueAfter)
	}
	if want := []string{"10s", "20s", "30s", "30s", "30s"}; !slices.Equal(pauses, want) {
		t.Errorf("the pauses are %v, want %v", pauses, want)
	}
	if err := r.kube.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		t.Fatal(err)
	}
	c := meta.FindStatusCondition(o.Status.Conditions, v1.ConditionReady)
	want := fmt.Sprintf("kubectl create rolebinding saga-secret-reader --namespace=%s --clusterrole=saga-secret-reader --user=", r.ns)
	if c == nil || c.Reason != v1.SinkReasonSecretForbidden || !strings.Contains(c.Message, want) {
		t.Errorf("the condition is %+v, want %q in it", c, want)
	}
	// The right is given.
	r.secret("token", "shop", map[string]string{"token": "t0ken"})
	s.Live = r.kube
	if _, err := s.Reconcile(t.Context(), requestFor(o)); err != nil {
		t.Fatal(err)
	}
	if _, set := r.relay.get(string(o.UID)); !set {
		t.Error("the sink is not published to, although its Secret can be read")
	}
}
