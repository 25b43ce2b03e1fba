package malformed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/manifest"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/participant/http"
)

const samples = "../../config/samples"

func kinds(t *testing.T) participant.Registry {
	t.Helper()
	p := http.New(http.Options{})
	t.Cleanup(p.Close)
	return participant.Registry{http.Kind: p}
}

func typed(t *testing.T, o *unstructured.Unstructured) *v1.Saga {
	t.Helper()
	s := &v1.Saga{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, s); err != nil {
		t.Fatalf("reading saga %s: %v", o.GetName(), err)
	}
	return s
}

// problems is what the operator finds wrong with a saga, as one text.
func problems(t *testing.T, s *v1.Saga) string {
	t.Helper()
	var lines []string
	_, _, errs := manifest.Definition(s, kinds(t))
	for _, e := range errs {
		lines = append(lines, e.Error())
	}
	return strings.Join(lines, "\n")
}

func expect(t *testing.T, got string, texts []string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Errorf("it does not say %q:\n%s", text, got)
		}
	}
}

func TestAManifestThatASchemaCannotRefuseIsParkedWithItsField(t *testing.T) {
	t.Parallel()
	for _, c := range Stalled() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			got := problems(t, typed(t, c.Object("default")))
			if got == "" {
				t.Fatal("nothing is found wrong with it")
			}
			expect(t, got, c.Stalled)
		})
	}
}

func TestTheManifestThatTheCasesStartFromIsValid(t *testing.T) {
	t.Parallel()
	if got := problems(t, typed(t, Valid("default", "valid"))); got != "" {
		t.Fatal(got)
	}
}

func TestTheTableIsLargeAndItsNamesAreUnique(t *testing.T) {
	t.Parallel()
	all := append(Refused(), Stalled()...)
	if len(all) < 75 {
		t.Errorf("%d cases are fewer than 75", len(all))
	}
	seen := map[string]bool{}
	for _, c := range all {
		if seen[c.Name] || len(validation.IsDNS1123Label(c.Name)) > 0 {
			t.Errorf("%q is no name of a case, or the name of two", c.Name)
		}
		seen[c.Name] = true
		if (len(c.Refused) > 0) == (len(c.Stalled) > 0) {
			t.Errorf("case %q does not say who finds the fault", c.Name)
		}
	}
	for _, u := range Updates() {
		if seen[u.Name] || len(validation.IsDNS1123Label(u.Name)) > 0 {
			t.Errorf("%q is no name of an update, or the name of two", u.Name)
		}
		seen[u.Name] = true
	}
}

func sampleFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(samples, "order-*.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("there are not enough samples: %v, %v", files, err)
	}
	return files
}

func TestTheOperatorAcceptsTheSamples(t *testing.T) {
	t.Parallel()
	for _, file := range sampleFiles(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s := &v1.Saga{}
		if err := yaml.UnmarshalStrict(data, s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if got := problems(t, s); got != "" {
			t.Errorf("%s: %s", file, got)
		}
	}
}
