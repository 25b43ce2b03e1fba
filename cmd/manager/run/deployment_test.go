package run

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/test/cluster"
)

// TestTheDeploymentIsAdmittedWhereOnlyRestrictedPodsAre applies what `make deploy` applies, and creates the pod that the Deployment asks for as its controller would.
func TestTheDeploymentIsAdmittedWhereOnlyRestrictedPodsAre(t *testing.T) {
	t.Parallel()
	kubernetes := cluster.New(t, cluster.Options{CRDs: []string{}})
	if err := kubernetes.Apply(t.Context(), rendered(t, "config/default")); err != nil {
		t.Fatal(err)
	}
	kube, err := client.New(kubernetes.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	deployment := &appsv1.Deployment{}
	if err := kube.Get(t.Context(), client.ObjectKey{Namespace: "saga-system", Name: "saga-operator"}, deployment); err != nil {
		t.Fatal(err)
	}
	pod := func() *corev1.Pod {
		template := deployment.Spec.Template.DeepCopy()
		meta := metav1.ObjectMeta{Namespace: deployment.Namespace, GenerateName: deployment.Name + "-", Labels: template.Labels, Annotations: template.Annotations}
		return &corev1.Pod{ObjectMeta: meta, Spec: template.Spec}
	}
	if err := kube.Create(t.Context(), pod()); err != nil {
		t.Errorf("the operator's pod is not admitted: %v", err)
	}
	// The level is enforced: one that asks for a little more is not.
	for name, spoil := range map[string]func(*corev1.PodSpec){
		"a capability":  func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.Capabilities = nil },
		"escalation":    func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.AllowPrivilegeEscalation = new(true) },
		"root":          func(s *corev1.PodSpec) { s.SecurityContext.RunAsUser, s.SecurityContext.RunAsNonRoot = nil, nil },
		"every syscall": func(s *corev1.PodSpec) { s.SecurityContext.SeccompProfile = nil },
	} {
		p := pod()
		spoil(&p.Spec)
		if err := kube.Create(t.Context(), p); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "restricted") {
			t.Errorf("a pod with %s: %v, want it forbidden", name, err)
		}
	}
}

// rendered is what kustomize makes of a directory of this repository.
func rendered(t *testing.T, dir string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "-C", "../../../hack/tools", "run", "-trimpath", "sigs.k8s.io/kustomize/kustomize/v5", "build", "../../"+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("rendering %s: %v\n%s", dir, err, stderr.String())
	}
	return out
}
