package saga

import (
	"fmt"
	"strings"
	"testing"
)

// laborious returns the settings of an effect whose expressions take a tenth of the effort of a saga.
func laborious() string {
	expr := `"${1` + strings.Repeat("+1", 50) + `}"`
	return fmt.Sprintf(`{"body": [%s]}`, strings.TrimSuffix(strings.Repeat(expr+",", 9), ","))
}

func TestCompileLimitsEffortOfSaga(t *testing.T) {
	t.Parallel()
	var def Definition
	for i := range 11 {
		def.Steps = append(def.Steps, step(fmt.Sprint("s", i), with(laborious())))
	}
	few := Definition{Steps: def.Steps[:8]}
	if _, errs := Compile(few); len(errs) > 0 {
		t.Errorf("8 steps: %v", errs)
	}
	_, errs := Compile(def)
	if len(errs) == 0 || !strings.HasPrefix(errs[0].Field, "steps[9].test.body[") || !strings.Contains(errs[0].Message, "too much work to check") {
		t.Errorf("11 steps: the errors are %v, want one about steps[9] and the work to check it", errs)
	}
	if _, errs := CompileRecorded(def); len(errs) > 0 {
		t.Errorf("11 steps that are recorded: %v", errs)
	}
}

func TestCompileStopsAfterManyErrors(t *testing.T) {
	t.Parallel()
	var def Definition
	for i := range MaxSteps {
		def.Steps = append(def.Steps, step(fmt.Sprint("s", i), with(`{"body": ["${nope}", "${nope}"]}`)))
	}
	if _, errs := Compile(def); len(errs) != maxErrors {
		t.Errorf("%d errors, want %d", len(errs), maxErrors)
	}
}
