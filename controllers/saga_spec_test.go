package controllers

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/quota"
)

// TestSagaOfALargeSpecStartsFromTheAPIServer has a spec that the cache does not keep.
func TestSagaOfALargeSpecStartsFromTheAPIServer(t *testing.T) {
	t.Parallel()
	r, _, ship := newQuotaRig(t, quota.None())
	ship.open()
	large := "\ninput: {text: " + strings.Repeat("x", maxCachedSpec) + "}\nsteps:"
	o := r.create("large", strings.Replace(held, "\nsteps:", large, 1))
	r.waitPhase("large", v1.PhaseCompleted)
	if got := r.fold(o).Input; len(got) < maxCachedSpec {
		t.Errorf("the recorded input has %d bytes", len(got))
	}
}

func TestTransformDropsLargeSpecs(t *testing.T) {
	t.Parallel()
	o := &v1.Saga{}
	o.Annotations = map[string]string{specBytesAnnotation: "7", v1.CreatedByAnnotation: "ann"}
	o.Spec = v1.SagaSpec{Steps: make([]v1.Step, 1), Suspend: true, Cancel: true, TTLAfterFinished: &metav1.Duration{}}
	small, err := Transform(o.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	if s := small.(*v1.Saga); len(s.Spec.Steps) != 1 || s.Annotations[specBytesAnnotation] != "" {
		t.Errorf("a small spec is kept as %+v, with the annotations %v", s.Spec, s.Annotations)
	}
	o.Spec.Input = &v1.JSON{Raw: []byte(`{"text":"` + strings.Repeat("x", maxCachedSpec) + `"}`)}
	want := specBytes(o)
	large, err := Transform(o)
	if err != nil {
		t.Fatal(err)
	}
	s := large.(*v1.Saga)
	if s.Spec.Input != nil || s.Spec.Steps != nil || !s.Spec.Suspend || !s.Spec.Cancel || s.Spec.TTLAfterFinished == nil || s.Annotations[v1.CreatedByAnnotation] != "ann" {
		t.Errorf("of a large spec is kept %+v, with the annotations %v", s.Spec, s.Annotations)
	}
	if got := specBytes(s); got != want || got < maxCachedSpec {
		t.Errorf("its size is remembered as %d, want %d", got, want)
	}
	again, err := Transform(s.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	if got := specBytes(again.(*v1.Saga)); got != want {
		t.Errorf("after another Transform its size is %d, want %d", got, want)
	}
}

// TestSagaOfATooLargeSpecIsRefusedByItsSize has a spec that the API server takes and the operator does not.
func TestSagaOfATooLargeSpecIsRefusedByItsSize(t *testing.T) {
	t.Parallel()
	r, _, _ := newQuotaRig(t, quota.None())
	r.create("large", strings.Replace(held, "\nsteps:", "\ninput: {text: "+strings.Repeat("x", 300<<10)+"}\nsteps:", 1))
	o := r.waitStalled("large", engine.ReasonInvalidDefinition)
	if message := condition(o.Status.Conditions, v1.ConditionStalled).Message; !strings.Contains(message, "more than the limit of 262144") {
		t.Errorf("the message does not name the limit: %s", message)
	}
}
