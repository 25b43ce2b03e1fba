package manifest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/manifest"
	"github.com/vextrus/saga-operator/internal/saga"
)

// FuzzDefinition: whatever a user writes, it becomes a definition that compiles, or errors that name fields of the spec; never a panic.
func FuzzDefinition(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("there are no seeds: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, seed := range []string{
		"", "{}", `{"spec":{}}`, `{"spec":{"steps":[{}]}}`, `{"spec":{"steps":[{"name":"a","http":{}}],"input":[1]}}`,
		`{"spec":{"steps":[{"name":"a","dependsOn":["b"]},{"name":"b","dependsOn":["a"]}]}}`,
		`{"spec":{"steps":[{"name":"a","http":{"body":"${steps.a.output.b}"},"compensation":{}}],"deadline":"-1s"}}`,
		`{"spec":{"steps":[{"name":"a","http":{"method":"POST","url":"http://x/","headers":{"A":"${input['a']}"}},"output":{"":"${}"},"retry":{"maxAttempts":-1,"maxBackoff":"1h"}}]}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o := &v1.Saga{}
		if err := yaml.Unmarshal(data, o); err != nil {
			t.Skip()
		}
		def, input, errs := manifest.Definition(o, anything)
		for _, e := range errs {
			if e.Field != "spec" && !strings.HasPrefix(e.Field, "spec.") {
				t.Errorf("the error names %q, which is not a field of the spec: %s", e.Field, e.Message)
			}
			if strings.Contains(e.Message, "panicked") {
				t.Error(e)
			}
		}
		if len(errs) > 0 {
			return
		}
		if len(input) == 0 || input[0] != '{' {
			t.Errorf("the input is %q", input)
		}
		if _, wrong := saga.Compile(def); len(wrong) > 0 {
			t.Errorf("nothing was wrong with it, but it does not compile: %v", wrong)
		}
	})
}
