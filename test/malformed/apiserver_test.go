package malformed

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/test/cluster"
)

const namespace = "default"

// server is a real API server, asked as users ask it.
type server struct {
	config *rest.Config
	client client.Client
	sagas  *rest.RESTClient
}

func TestAPIServer(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *server)
	}{
		{"a malformed manifest is refused with its field", refusesMalformedManifests},
		{"a manifest that a schema cannot refuse is accepted, and parked with its field", acceptsWhatTheOperatorParks},
		{"what is frozen cannot be changed, and what is not can", freezes},
		{"the samples are accepted", acceptsSamples},
		{"a saga reads back as it was written", readsBack},
		{"a typed client that writes back what it read changes nothing", survivesTypedClients},
		{"the table shows what users look for", showsColumns},
		{"sg is the short name", hasShortName},
		{"sagas can be selected by phase", selectsByPhase},
		{"the largest saga is accepted and stays changeable", takesTheLargest},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, s) })
	}
}

func serve(t *testing.T) *server {
	t.Helper()
	config := cluster.New(t, cluster.Options{}).Config
	scheme := runtime.NewScheme()
	if err := v1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	raw := rest.CopyConfig(config)
	raw.APIPath, raw.GroupVersion = "/apis", &v1.GroupVersion
	raw.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	sagas, err := rest.RESTClientFor(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &server{config: config, client: c, sagas: sagas}
}

// apply creates a saga from text, with the strict validation that kubectl asks for.
func (s *server) apply(ctx context.Context, text []byte) error {
	return s.sagas.Post().Namespace(namespace).Resource("sagas").Param("fieldValidation", "Strict").
		SetHeader("Content-Type", "application/yaml").Body(text).Do(ctx).Error()
}

func (s *server) read(t *testing.T, name string) *v1.Saga {
	t.Helper()
	o := &v1.Saga{}
	if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		t.Fatal(err)
	}
	return o
}

func (s *server) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := s.client.Create(t.Context(), o, client.FieldValidation("Strict")); err != nil {
		t.Fatal(err)
	}
}

func refusesMalformedManifests(t *testing.T, s *server) {
	t.Helper()
	for _, c := range Refused() {
		t.Run(c.Name, func(t *testing.T) {
			err := s.apply(t.Context(), c.YAML(namespace))
			if err == nil {
				t.Fatal("it is accepted")
			}
			expect(t, err.Error(), c.Refused)
		})
	}
}

func acceptsWhatTheOperatorParks(t *testing.T, s *server) {
	t.Helper()
	for _, c := range Stalled() {
		t.Run(c.Name, func(t *testing.T) {
			if err := s.apply(t.Context(), c.YAML(namespace)); err != nil {
				t.Fatal(err)
			}
			expect(t, problems(t, s.read(t, c.Name)), c.Stalled)
		})
	}
}

func freezes(t *testing.T, s *server) {
	t.Helper()
	for _, u := range Updates() {
		t.Run(u.Name, func(t *testing.T) {
			o := u.Created(namespace)
			s.create(t, o)
			u.Change(o)
			switch err := s.client.Update(t.Context(), o); {
			case err != nil && len(u.Refused) == 0:
				t.Fatal(err)
			case err != nil:
				expect(t, err.Error(), u.Refused)
			case len(u.Refused) > 0:
				t.Fatal("it is accepted")
			}
		})
	}
}

func acceptsSamples(t *testing.T, s *server) {
	t.Helper()
	for _, file := range sampleFiles(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.apply(t.Context(), text); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// readsBack: the server adds no defaults, prunes nothing of the free-form fields, and keeps numbers and nulls inside them.
func readsBack(t *testing.T, s *server) {
	t.Helper()
	body := map[string]any{"n": int64(9007199254740993), "f": 1.5, "nil": nil, "list": []any{nil, map[string]any{}}, "${": "<&>"}
	for name, edit := range map[string][]Edit{
		"reads-back":         edits(set("spec.steps.0.http.body", body), set("spec.input", body)),
		"reads-back-list":    edits(set("spec.steps.0.http.body", []any{int64(1), "a"})),
		"reads-back-text":    edits(set("spec.steps.0.http.body", "${input.lines}")),
		"reads-back-number":  edits(set("spec.steps.0.http.body", int64(7))),
		"reads-back-boolean": edits(set("spec.steps.0.http.body", false)),
		"reads-back-minimal": edits(set("spec", map[string]any{"steps": many(1)})),
	} {
		o := Valid(namespace, name)
		for _, e := range edit {
			e(o)
		}
		want := o.DeepCopy().Object["spec"]
		s.create(t, o)
		got := &unstructured.Unstructured{}
		got.SetGroupVersionKind(v1.GroupVersion.WithKind("Saga"))
		if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(o), got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Object["spec"]); diff != "" {
			t.Errorf("%s (-written +read):\n%s", name, diff)
		}
	}
}

func survivesTypedClients(t *testing.T, s *server) {
	t.Helper()
	o := Valid(namespace, "typed")
	for _, edit := range edits(set("spec.steps.0.dependsOn", []any{}), set("spec.steps.1.dependsOn", []any{}), set("spec.steps.2.dependsOn", []any{"charge"}),
		set("spec.steps.2.output", map[string]any{}), set("spec.steps.0.http.headers", map[string]any{}), set("spec.steps.0.retry", map[string]any{}),
		set("spec.input", map[string]any{"n": 1.50, "big": int64(9007199254740993)}), set("spec.suspend", false), set("spec.ttlAfterFinished", "90m")) {
		edit(o)
	}
	s.create(t, o)
	saga := s.read(t, "typed")
	if d := saga.Spec.Steps[1].DependsOn; d == nil || len(d) != 0 {
		t.Errorf("an empty dependsOn reads as %#v", d)
	}
	if d := saga.Spec.Steps[2].DependsOn; !cmp.Equal(d, []string{"charge"}) {
		t.Errorf("dependsOn reads as %#v", d)
	}
	saga.Spec.Suspend = true
	if err := s.client.Update(t.Context(), saga); err != nil {
		t.Fatalf("only suspend was changed: %v", err)
	}
	if d := s.read(t, "typed").Spec.Steps[1].DependsOn; d == nil {
		t.Error("the empty dependsOn is lost")
	}
}

func showsColumns(t *testing.T, s *server) {
	t.Helper()
	s.create(t, Valid(namespace, "columns"))
	o := s.read(t, "columns")
	now := metav1.NewTime(time.Now().Add(-90 * time.Second))
	o.Status = v1.SagaStatus{Phase: v1.PhaseCompensating, Progress: "1/3", Step: "charge", Reason: "card declined (402)", RecordedVersion: 7, StartedAt: &now,
		Failure: &v1.SagaFailure{Cause: "StepRejected"}}
	if err := s.client.Status().Update(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	data, err := s.sagas.Get().Namespace(namespace).Resource("sagas").Name("columns").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	table := &unstructured.Unstructured{}
	if err := table.UnmarshalJSON(data); err != nil {
		t.Fatal(err)
	}
	var narrow, wide []string
	columns, _, _ := unstructured.NestedSlice(table.Object, "columnDefinitions")
	for _, c := range columns {
		column := c.(map[string]any)
		if column["priority"] == int64(0) {
			narrow = append(narrow, column["name"].(string))
		} else {
			wide = append(wide, column["name"].(string))
		}
	}
	if got := strings.ToUpper(strings.Join(narrow, " ")); got != "NAME PHASE STEPS STEP AGE REASON" {
		t.Errorf("kubectl get shows %s", got)
	}
	if got := strings.ToUpper(strings.Join(wide, " ")); got != "CAUSE STARTED ENDED VERSION" {
		t.Errorf("kubectl get -o wide adds %s", got)
	}
	rows, _, _ := unstructured.NestedSlice(table.Object, "rows")
	cells := rows[0].(map[string]any)["cells"].([]any)
	for i, want := range map[int]any{0: "columns", 1: "Compensating", 2: "1/3", 3: "charge", 5: "card declined (402)", 6: "StepRejected", 9: int64(7)} {
		if cells[i] != want {
			t.Errorf("column %d shows %v, want %v", i, cells[i], want)
		}
	}
	if age, err := time.ParseDuration(cells[7].(string)); err != nil || age < 90*time.Second {
		t.Errorf("STARTED shows %v, which is not the time since", cells[7])
	}
}

func hasShortName(t *testing.T, s *server) {
	t.Helper()
	d, err := discovery.NewDiscoveryClientForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.ServerResourcesForGroupVersion(v1.GroupVersion.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.APIResources {
		if r.Name != "sagas" {
			continue
		}
		if !cmp.Equal(r.ShortNames, []string{"sg"}) || !cmp.Equal(r.Categories, []string{"vextrus"}) || r.SingularName != "saga" || !r.Namespaced {
			t.Errorf("%+v", r)
		}
		return
	}
	t.Errorf("sagas are not served: %+v", list.APIResources)
}

func selectsByPhase(t *testing.T, s *server) {
	t.Helper()
	for _, name := range []string{"parked", "not-parked"} {
		s.create(t, Valid(namespace, name))
	}
	o := s.read(t, "parked")
	o.Status.Phase = v1.PhaseCompensationFailed
	if err := s.client.Status().Update(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	list := &v1.SagaList{}
	if err := s.client.List(t.Context(), list, client.InNamespace(namespace), client.MatchingFields{"status.phase": "CompensationFailed"}); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].Name != "parked" {
		t.Errorf("%d sagas are found", len(list.Items))
	}
}

// takesTheLargest: what the rules of the schema cost is limited by the API server, which refuses what costs more.
func takesTheLargest(t *testing.T, s *server) {
	t.Helper()
	for name, n := range map[string]int{"largest": 200, "largest-that-is-looked-up": 64} {
		o := Valid(namespace, name)
		set("spec.steps", large(n))(o)
		s.create(t, o)
		set("spec.cancel", true)(o)
		if err := s.client.Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

// large returns so many steps, each with a name and as many dependencies and outputs as long as there may be.
func large(n int) []any {
	steps := many(n)
	for i := range steps {
		step := steps[i].(map[string]any)
		step["name"] = fmt.Sprintf("%s-%03d", strings.Repeat("n", 59), i)
		step["attemptTimeout"] = "30s"
		step["retry"] = map[string]any{"maxAttempts": int64(3), "initialBackoff": "1s", "maxBackoff": "1m"}
		dependencies, outputs := []any{}, map[string]any{}
		for k := max(0, i-32); k < i; k++ {
			dependencies = append(dependencies, steps[k].(map[string]any)["name"])
		}
		for k := range 8 {
			outputs[fmt.Sprintf("%s_%d", strings.Repeat("o", 60), k)] = "${response.body.id}"
		}
		step["dependsOn"], step["output"] = dependencies, outputs
	}
	return steps
}
