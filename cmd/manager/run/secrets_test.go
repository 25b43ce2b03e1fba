package run

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// letReadSecrets binds the role by which the operator may read the Secrets of a namespace, and waits
// until that counts.
func letReadSecrets(t *testing.T, kubernetes *cluster.Cluster, namespace string) {
	t.Helper()
	binding := fmt.Sprintf(`{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: saga-secret-reader, namespace: %s},
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: saga-secret-reader}, subjects: [{kind: ServiceAccount, name: saga-operator, namespace: saga-system}]}`, namespace)
	if err := kubernetes.Apply(t.Context(), []byte(binding)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !mayReadSecret(t, kubernetes, namespace, "any") {
			return fmt.Errorf("the operator may not read the Secrets of namespace %s yet", namespace)
		}
		return nil
	})
}

// mayReadSecret reports whether the operator may read a Secret.
func mayReadSecret(t *testing.T, kubernetes *cluster.Cluster, namespace, name string) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "system:serviceaccount:saga-system:saga-operator", ResourceAttributes: &authorizationv1.ResourceAttributes{Resource: "secrets", Verb: "get", Namespace: namespace, Name: name},
	}}
	if err := newRBACClient(t, kubernetes).Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

func newRBACClient(t *testing.T, kubernetes *cluster.Cluster) client.Client {
	t.Helper()
	kube, err := client.New(kubernetes.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

// commandOfMessage finds the command that lets the operator read Secrets in a condition's message.
var commandOfMessage = regexp.MustCompile(`kubectl create rolebinding (\S+) --namespace=(\S+) --clusterrole=(\S+) --serviceaccount=([^:\s]+):(\S+)$`)

// runCommand does what kubectl does for the command in a condition's message.
func runCommand(t *testing.T, kubernetes *cluster.Cluster, message string) {
	t.Helper()
	m := commandOfMessage.FindStringSubmatch(message)
	if m == nil {
		t.Fatalf("the message has no command: %s", message)
	}
	if m[4] != "saga-system" || m[5] != "saga-operator" {
		t.Fatalf("the command is for another ServiceAccount than the operator's: %s", m[0])
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: m[1], Namespace: m[2]}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: m[3]},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: m[4], Name: m[5]}},
	}
	if err := newRBACClient(t, kubernetes).Create(t.Context(), binding); err != nil {
		t.Fatalf("doing what the message says, %q: %v", m[0], err)
	}
}

// TestOperatorReadsSecretsOnlyWhereBound runs the operator with the rights that it is given.
func TestOperatorReadsSecretsOnlyWhereBound(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{})
	destination := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(destination.Close)
	log := &lockedBuffer{}
	stop := operatorProcess(t, log, throwaway.Database(t), "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address=0", "--api-bind-address=0", "--egress-allow=127.0.0.0/8", "--log-format=text")
	defer func() {
		if err := stop(); err != nil || t.Failed() {
			t.Errorf("the operator ended: %v; its log:\n%s", err, log)
		}
	}()
	for namespace, want := range map[string]bool{"default": false, "kube-system": false, "saga-system": true} {
		if got := mayReadSecret(t, kubernetes, namespace, "any"); got != want {
			t.Errorf("the operator may read the Secrets of namespace %s: %t, want %t", namespace, got, want)
		}
	}

	kube := newClient(t, kubernetes)
	s := sinkOf(t, kube, destination.URL, "a-token")
	of := &v1.ClusterSink{ObjectMeta: metav1.ObjectMeta{Name: "hub"}, Spec: v1.ClusterSinkSpec{SinkSpec: s.Spec}}
	secret := &corev1.Secret{StringData: map[string]string{"token": "a-token"}}
	secret.Namespace, secret.Name, secret.Annotations = "saga-system", "hub", map[string]string{v1.SecretHostsAnnotation: "127.0.0.1"}
	for _, o := range []client.Object{secret, of} {
		if err := kube.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if c := judged(t, kube, of, &of.Status); c.Status != metav1.ConditionTrue {
		t.Errorf("the ClusterSink, whose Secret is in the operator's namespace: %+v", c)
	}
	c := judged(t, kube, s, &s.Status)
	if c.Reason != v1.SinkReasonSecretForbidden || c.Status != metav1.ConditionFalse {
		t.Fatalf("a sink whose Secret the operator may not read: %+v", c)
	}
	runCommand(t, kubernetes, c.Message)
	waitSink(t, kube, s, func(st *v1.SinkStatus) bool { return holds(st, "Ready", "Ready") })
}

// judged waits until a sink is ready, or is not because of its Secret.
func judged(t *testing.T, kube client.Client, o client.Object, status *v1.SinkStatus) *metav1.Condition {
	t.Helper()
	var c *metav1.Condition
	eventually(t, func() error {
		if err := kube.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		if c = meta.FindStatusCondition(status.Conditions, v1.ConditionReady); c == nil || c.Status != metav1.ConditionTrue && !strings.HasPrefix(c.Reason, "Secret") {
			return fmt.Errorf("%s has no judgement yet: %+v", o.GetName(), c)
		}
		return nil
	})
	return c
}

// TestSampleOfSecretAccessNamesSecrets applies the sample to a namespace, as its administrator would.
func TestSampleOfSecretAccessNamesSecrets(t *testing.T) {
	t.Parallel()
	kubernetes := cluster.New(t, cluster.Options{CRDs: []string{}})
	sample, err := os.ReadFile("../../../config/samples/secret-access.yaml")
	if err != nil {
		t.Fatal(err)
	}
	inNamespace := strings.ReplaceAll(string(sample), "metadata:\n", "metadata:\n  namespace: default\n")
	if err := kubernetes.Apply(t.Context(), []byte(inNamespace)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !mayReadSecret(t, kubernetes, "default", "audit") {
			return fmt.Errorf("the operator may not read the Secret audit yet")
		}
		return nil
	})
	if mayReadSecret(t, kubernetes, "default", "other") {
		t.Error("the operator may read a Secret that the Role does not name")
	}
}
