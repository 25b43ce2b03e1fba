package v1_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

func roundTrip(t *testing.T, in *v1.Saga) *v1.Saga {
	t.Helper()
	data, err := json.Marshal(in.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	out := &v1.Saga{}
	if err := json.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(out)
	if err != nil {
		t.Fatal(err)
	}
	again := &v1.Saga{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object, again); err != nil {
		t.Fatal(err)
	}
	return again
}

func TestAnEmptyDependsOnIsNotTheSameAsNone(t *testing.T) {
	t.Parallel()
	in := &v1.Saga{Spec: v1.SagaSpec{Steps: []v1.Step{{Name: "a"}, {Name: "b", DependsOn: []string{}}, {Name: "c", DependsOn: []string{"a"}}}}}
	steps := roundTrip(t, in).Spec.Steps
	if steps[0].DependsOn != nil {
		t.Errorf("none has become %#v", steps[0].DependsOn)
	}
	if steps[1].DependsOn == nil {
		t.Error("the empty one has become none")
	}
	if !cmp.Equal(steps[2].DependsOn, []string{"a"}) {
		t.Errorf("[a] has become %#v", steps[2].DependsOn)
	}
}

func TestASagaSurvivesTheRoundTrip(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"a":[1,null,{"b":"c"}]}`, `[1,2]`, `"${input.lines}"`, `7`, `false`} {
		in := &v1.Saga{
			TypeMeta: metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "Saga"}, ObjectMeta: metav1.ObjectMeta{Name: "order-1042"},
			Spec: v1.SagaSpec{
				Input:    &v1.JSON{Raw: []byte(`{"orderId":"1042"}`)},
				Deadline: &metav1.Duration{Duration: 10 * time.Minute},
				Cancel:   true,
				Steps: []v1.Step{{
					Name: "charge", Output: map[string]v1.OutputTemplate{},
					Effect: v1.Effect{
						HTTP:  &v1.HTTPRequest{Method: "POST", URL: "http://payments/charges", Headers: map[string]v1.HeaderTemplate{"X-A": "1"}, Body: &v1.JSON{Raw: []byte(body)}},
						Retry: &v1.Retry{MaxAttempts: 3},
					},
					Compensation: &v1.Effect{HTTP: &v1.HTTPRequest{Method: "DELETE", URL: "http://payments/charges"}},
				}},
			},
			Status: v1.SagaStatus{Phase: v1.PhaseRunning, RecordedVersion: 3},
		}
		if diff := cmp.Diff(in, roundTrip(t, in)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	}
}

func TestACopySharesNothingWithItsOriginal(t *testing.T) {
	t.Parallel()
	in := &v1.Saga{Spec: v1.SagaSpec{Input: &v1.JSON{Raw: []byte(`{"a":1}`)}}}
	out := in.DeepCopy()
	out.Spec.Input.Raw[2] = 'b'
	if got := string(in.Spec.Input.Raw); got != `{"a":1}` {
		t.Error(got)
	}
}

func TestTheSchemeKnowsTheTypes(t *testing.T) {
	t.Parallel()
	scheme := runtime.NewScheme()
	if err := v1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"Saga", "SagaList"} {
		if !scheme.Recognizes(v1.GroupVersion.WithKind(kind)) {
			t.Errorf("%s is not known", kind)
		}
	}
}
