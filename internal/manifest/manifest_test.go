package manifest_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/manifest"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

var rewrite = flag.Bool("update", false, "write the golden files again")

// checker is a participant whose checks a test makes up.
type checker func(with map[string]any) []saga.FieldError

func (c checker) Check(with map[string]any) []saga.FieldError { return c(with) }

func (checker) Do(context.Context, participant.Call) participant.Result {
	panic("nothing is carried out")
}

var (
	anything = participant.Registry{"http": checker(func(map[string]any) []saga.FieldError { return nil })}
	nothing  = participant.Registry{"http": checker(func(map[string]any) []saga.FieldError {
		return []saga.FieldError{{Field: "url", Message: "is refused"}}
	})}
)

func step(name string, options ...func(*v1.Step)) v1.Step {
	s := v1.Step{Name: name, Effect: v1.Effect{HTTP: &v1.HTTPRequest{Method: "POST", URL: "http://x/"}}}
	for _, o := range options {
		o(&s)
	}
	return s
}

func after(names ...string) func(*v1.Step) {
	return func(s *v1.Step) { s.DependsOn = append([]string{}, names...) }
}

func retry(r v1.Retry) func(*v1.Step) { return func(s *v1.Step) { s.Retry = &r } }

func undo(s *v1.Step) {
	s.Compensation = &v1.Effect{HTTP: &v1.HTTPRequest{Method: "DELETE", URL: "http://x/"}}
}

func body(text string) func(*v1.Step) {
	return func(s *v1.Step) { s.HTTP.Body = &v1.JSON{Raw: []byte(text)} }
}

func of(steps ...v1.Step) *v1.Saga { return &v1.Saga{Spec: v1.SagaSpec{Steps: steps}} }

func duration(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }

func define(t *testing.T, o *v1.Saga) saga.Definition {
	t.Helper()
	def, _, errs := manifest.Definition(o, anything)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return def
}

func problems(o *v1.Saga, kinds participant.Registry) []string {
	_, _, errs := manifest.Definition(o, kinds)
	texts := make([]string, len(errs))
	for i, e := range errs {
		texts[i] = e.Error()
	}
	return texts
}

// The definition is stored with the saga and its defaults are part of the API: this file never changes.
func TestWhatAMinimalManifestMeansIsStable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"minimal", "full"} {
		data, err := os.ReadFile("testdata/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		o := &v1.Saga{}
		if err := yaml.UnmarshalStrict(data, o); err != nil {
			t.Fatal(err)
		}
		def, input, errs := manifest.Definition(o, anything)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		got, err := json.MarshalIndent(map[string]any{"definition": def, "input": input}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden := "testdata/" + name + ".json"
		if *rewrite {
			if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
			t.Errorf("%s (-stable +now):\n%s", name, diff)
		}
	}
}

func TestAStepFollowsTheOneBeforeItUnlessItSaysOtherwise(t *testing.T) {
	t.Parallel()
	def := define(t, of(step("a"), step("b"), step("c", after()), step("d", after("a", "c")), step("e")))
	want := [][]string{nil, {"a"}, nil, {"a", "c"}, {"d"}}
	for i, s := range def.Steps {
		if !cmp.Equal(s.DependsOn, want[i]) {
			t.Errorf("%s depends on %v, want %v", s.Name, s.DependsOn, want[i])
		}
	}
}

func TestOneBackoffPullsTheDefaultOfTheOtherAlong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		given            v1.Retry
		initial, longest time.Duration
	}{
		{v1.Retry{}, time.Second, time.Minute},
		{v1.Retry{InitialBackoff: duration(2 * time.Second)}, 2 * time.Second, time.Minute},
		{v1.Retry{InitialBackoff: duration(time.Hour)}, time.Hour, time.Hour},
		{v1.Retry{InitialBackoff: duration(0)}, 0, time.Minute},
		{v1.Retry{MaxBackoff: duration(time.Hour)}, time.Second, time.Hour},
		{v1.Retry{MaxBackoff: duration(time.Millisecond)}, time.Millisecond, time.Millisecond},
		{v1.Retry{InitialBackoff: duration(2 * time.Second), MaxBackoff: duration(3 * time.Second)}, 2 * time.Second, 3 * time.Second},
	} {
		got := define(t, of(step("a", retry(c.given)))).Steps[0].Do.Retry
		if got.InitialBackoff != c.initial || got.MaxBackoff != c.longest || got.MaxAttempts != saga.DefaultActionAttempts {
			t.Errorf("%+v becomes %+v", c.given, got)
		}
	}
}

func TestTheInputIsAnObjectEvenIfNoneIsGiven(t *testing.T) {
	t.Parallel()
	o := of(step("a"))
	if _, input, errs := manifest.Definition(o, anything); string(input) != "{}" || len(errs) > 0 {
		t.Errorf("%s, %v", input, errs)
	}
	for text, want := range map[string]string{
		`{"a": 1.50}`:                    "",
		`[1]`:                            "spec.input: it is not a JSON object",
		`"a"`:                            "spec.input: it is not a JSON object",
		`{"a":`:                          "spec.input: it is not JSON",
		`"` + strings.Repeat("x", 66000): "spec.input: it is not JSON",
		`{"a":"` + strings.Repeat("x", 65<<10) + `"}`: "spec.input: 66568 bytes of JSON are more than the limit of 65536",
	} {
		o.Spec.Input = &v1.JSON{Raw: []byte(text)}
		got := strings.Join(problems(o, anything), "\n")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%.40s: %q, want %q", text, got, want)
		}
	}
}

func TestADeadlineOfNothingIsNotTakenForNone(t *testing.T) {
	t.Parallel()
	o := of(step("a"))
	o.Spec.Deadline = duration(0)
	if got := problems(o, anything); len(got) != 1 || !strings.HasPrefix(got[0], "spec.deadline: ") {
		t.Error(got)
	}
}

func TestEffectsAreCheckedByTheirParticipant(t *testing.T) {
	t.Parallel()
	got := problems(of(step("a", undo), step("b")), nothing)
	want := []string{"spec.steps[0].compensation.http.url: is refused", "spec.steps[0].http.url: is refused", "spec.steps[1].http.url: is refused"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAnUnknownKindIsAnErrorOfItsField(t *testing.T) {
	t.Parallel()
	got := problems(of(step("a")), participant.Registry{})
	if len(got) != 1 || !strings.HasPrefix(got[0], "spec.steps[0].http: this operator does not carry out") {
		t.Error(got)
	}
}

func TestAStepWithoutAnActionIsAnErrorOfTheStep(t *testing.T) {
	t.Parallel()
	got := problems(of(v1.Step{Name: "a", Compensation: &v1.Effect{}}), anything)
	if len(got) != 2 || !strings.HasPrefix(got[0], "spec.steps[0]: ") || !strings.HasPrefix(got[1], "spec.steps[0].compensation: ") {
		t.Error(got)
	}
}

func TestAllErrorsAreReportedAtOnceInTheOrderOfTheirFields(t *testing.T) {
	t.Parallel()
	steps := make([]v1.Step, 11)
	for i := range steps {
		steps[i] = step(fmt.Sprintf("s%d", i))
	}
	steps[10].HTTP.Body = &v1.JSON{Raw: []byte(`"${"`)}
	steps[2].HTTP.Body = &v1.JSON{Raw: []byte(`{"a":["${nobody}"]}`)}
	steps[2].Output = map[string]v1.OutputTemplate{"a-b": "x"}
	o := of(steps...)
	o.Spec.Deadline = duration(-time.Second)
	o.Spec.Input = &v1.JSON{Raw: []byte(`1`)}
	var fields []string
	_, _, errs := manifest.Definition(o, anything)
	for _, e := range errs {
		fields = append(fields, e.Field)
	}
	// A deadline that is out of bounds stops the compiler before it looks at the steps.
	if want := []string{"spec.deadline", "spec.input", "spec.steps[2].output"}; !cmp.Equal(fields, want) {
		t.Errorf("%v", errs)
	}
	o.Spec.Deadline, fields = nil, nil
	_, _, errs = manifest.Definition(o, anything)
	for _, e := range errs {
		fields = append(fields, e.Field)
	}
	if want := []string{"spec.input", "spec.steps[2].http.body.a[0]", "spec.steps[2].output", "spec.steps[10].http.body"}; !cmp.Equal(fields, want) {
		t.Errorf("%v", errs)
	}
}

func TestTheNumberOfErrorsIsBounded(t *testing.T) {
	t.Parallel()
	steps := make([]v1.Step, 90)
	for i := range steps {
		steps[i] = step(fmt.Sprintf("s%d", i), body(`"${nobody}"`))
	}
	got := problems(of(steps...), anything)
	if len(got) != 21 || got[20] != "spec: and at least 70 more errors" {
		t.Errorf("%d errors: %v", len(got), got)
	}
}

func TestASpecThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	steps := make([]v1.Step, 200)
	for i := range steps {
		steps[i] = step(fmt.Sprintf("s%d", i), body(`"`+strings.Repeat("<", 1200)+`"`))
	}
	if got := problems(of(steps...), anything); len(got) > 0 {
		t.Errorf("escapes are counted: %v", got)
	}
	for i := range steps {
		body(`"` + strings.Repeat("<", 1300) + `"`)(&steps[i])
	}
	if got := problems(of(steps...), anything); len(got) != 1 || !strings.HasPrefix(got[0], "spec: ") || !strings.Contains(got[0], "more than the limit of 262144") {
		t.Errorf("%.300v", got)
	}
}

func TestTooManyStepsAreOneError(t *testing.T) {
	t.Parallel()
	steps := make([]v1.Step, 5000)
	for i := range steps {
		steps[i] = step("s")
	}
	got := problems(of(steps...), nothing)
	if want := "spec.steps: 5000 steps are more than the limit of 200"; !strings.Contains(strings.Join(got, "\n"), want) || len(got) > 2 {
		t.Error(got)
	}
}

func TestAPanicIsAnErrorOfThatSagaAndSaysWhere(t *testing.T) {
	t.Parallel()
	broken := participant.Registry{"http": checker(func(with map[string]any) []saga.FieldError { return with["nothing"].([]saga.FieldError) })}
	got := problems(of(step("a")), broken)
	if len(got) != 1 || !strings.HasPrefix(got[0], "spec: reading it panicked at manifest_test.go:") {
		t.Error(got)
	}
}

func TestTheManifestIsNotChanged(t *testing.T) {
	t.Parallel()
	o := of(step("a"), step("b", after("a"), undo, retry(v1.Retry{})))
	before := o.DeepCopy()
	def := define(t, o)
	def.Steps[1].DependsOn[0] = "z"
	if diff := cmp.Diff(before, o); diff != "" {
		t.Error(diff)
	}
}
