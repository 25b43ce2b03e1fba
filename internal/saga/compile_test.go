package saga

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestCompileNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	many := make([]Step, MaxSteps+1)
	for i := range many {
		many[i] = step(fmt.Sprintf("s%d", i))
	}
	tests := map[string]struct {
		def            Definition
		field, message string
	}{
		"no steps":                     {Definition{}, "steps", "at least one"},
		"too many steps":               {Definition{Steps: many}, "steps", "limit of 200"},
		"negative deadline":            {Definition{Deadline: -1, Steps: []Step{step("a")}}, "deadline", "between"},
		"deadline too long":            {Definition{Deadline: MaxDeadline + 1, Steps: []Step{step("a")}}, "deadline", "between"},
		"empty name":                   {Definition{Steps: []Step{step("")}}, "steps[0].name", "characters"},
		"name with a slash":            {Definition{Steps: []Step{step("a/b")}}, "steps[0].name", "hyphens"},
		"name that begins with hyphen": {Definition{Steps: []Step{step("-a")}}, "steps[0].name", "hyphens"},
		"name twice":                   {Definition{Steps: []Step{step("a"), step("a")}}, "steps[1].name", "steps[0] has the name"},
		"unknown dependency":           {Definition{Steps: []Step{step("a", after("b"))}}, "steps[0].dependsOn[0]", `no step named "b"`},
		"dependency on itself":         {Definition{Steps: []Step{step("a", after("a"))}}, "steps[0].dependsOn[0]", "itself"},
		"dependency twice":             {Definition{Steps: []Step{step("a"), step("b", after("a", "a"))}}, "steps[1].dependsOn[1]", "twice"},
		"cycle":                        {Definition{Steps: []Step{step("x"), step("a", after("c")), step("b", after("a")), step("c", after("b", "x"))}}, "steps[1].dependsOn", "a → c → b → a"},
		"expression does not compile":  {Definition{Steps: []Step{step("a", with(`{"url": "${input.}"}`))}}, "steps[0].test.url", ""},
		"unknown variable":             {Definition{Steps: []Step{step("a", with(`{"body": {"x": "${env.HOME}"}}`))}}, "steps[0].test.body.x", "env"},
		"response in an action":        {Definition{Steps: []Step{step("a", with(`{"url": "${response.body.id}"}`))}}, "steps[0].test.url", "response"},
		"output does not compile":      {Definition{Steps: []Step{step("a", output("id", "${response..}"))}}, "steps[0].output.id", ""},
		"reads an unknown step":        {Definition{Steps: []Step{step("a", with(`{"url": "${steps.b.output.id}"}`))}}, "steps[0].test", `no step named "b"`},
		"reads a parallel step":        {Definition{Steps: []Step{step("a"), step("b", with(`{"url": "${steps.a.output.id}"}`))}}, "steps[1].test", "not sure to be done"},
		"action reads its own output":  {Definition{Steps: []Step{step("a", with(`{"url": "${steps.a.output.id}"}`))}}, "steps[0].test", "not sure to be done"},
		"compensation does not compile": {Definition{Steps: []Step{step("a", undoWith(`{"url": "${nope}"}`, 1))}},
			"steps[0].compensation.test.url", "nope"},
		"compensation reads a later step": {Definition{Steps: []Step{step("a", undoWith(`{"url": "${steps.b.output.id}"}`, 1)), step("b", after("a"))}},
			"steps[0].compensation.test", "not sure to be done"},
		"settings are not JSON":      {Definition{Steps: []Step{step("a", with(`{`))}}, "steps[0].test", ""},
		"settings are not an object": {Definition{Steps: []Step{step("a", with(`[]`))}}, "steps[0].test", "not an object"},
		"no kind":                    {Definition{Steps: []Step{step("a", func(s *Step) { s.Do.Kind = "" })}}, "steps[0]", "what to do"},
		"no attempts":                {Definition{Steps: []Step{step("a", attempts(0))}}, "steps[0].retry.maxAttempts", "between 1 and 100"},
		"too many attempts":          {Definition{Steps: []Step{step("a", attempts(101))}}, "steps[0].retry.maxAttempts", "between 1 and 100"},
		"backoff over its cap": {Definition{Steps: []Step{step("a", func(s *Step) { s.Do.Retry.InitialBackoff = time.Hour })}},
			"steps[0].retry.maxBackoff", "between"},
		"initial backoff too long": {Definition{Steps: []Step{step("a", func(s *Step) { s.Do.Retry.InitialBackoff, s.Do.Retry.MaxBackoff = MaxBackoff+1, MaxBackoff+1 })}},
			"steps[0].retry.initialBackoff", "between"},
		"name too long":                    {Definition{Steps: []Step{step(strings.Repeat("a", MaxNameLength+1))}}, "steps[0].name", "characters"},
		"too many outputs":                 {Definition{Steps: []Step{step("a", outputs(MaxOutputsPerStep+1))}}, "steps[0].output", "limit of 64"},
		"too many expressions in one step": {Definition{Steps: []Step{step("a", with(`{"body": ["`+strings.Repeat(`${1}`, 2001)+`"]}`))}}, "steps[0].test.body[0]", "more than 2000 expressions"},
		"too many expressions in all": {Definition{Steps: []Step{step("a", with(`{"body": ["`+strings.Repeat(`${1}`, 1500)+`"]}`)), step("b", with(`{"body": ["`+strings.Repeat(`${1}`, 1500)+`"]}`)),
			step("c", with(`{"body": ["`+strings.Repeat(`${1}`, 1001)+`"]}`))}}, "steps[2].test", "more than 4000 expressions"},
		"too many dependencies": {Definition{Steps: []Step{step("a", func(s *Step) {
			for i := range MaxDependenciesStep + 1 {
				s.DependsOn = append(s.DependsOn, fmt.Sprintf("s%d", i))
			}
		})}}, "steps[0].dependsOn", "limit of 32"},
		"no attempt timeout": {Definition{Steps: []Step{step("a", func(s *Step) { s.Do.AttemptTimeout = 0 })}}, "steps[0].attemptTimeout", "between"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plan, errs := Compile(test.def)
			if plan != nil {
				t.Fatal("it compiled")
			}
			for _, e := range errs {
				if e.Field == test.field && strings.Contains(e.Message, test.message) {
					return
				}
			}
			t.Errorf("errors %v; want one at %s with %q", errs, test.field, test.message)
		})
	}
}

func outputs(n int) stepOption {
	return func(s *Step) {
		s.Output = map[string]string{}
		for i := range n {
			s.Output[fmt.Sprintf("o%d", i)] = "${response.status}"
		}
	}
}

func TestWhatIsJustWithinTheLimitsCompiles(t *testing.T) {
	t.Parallel()
	s := step(strings.Repeat("a", MaxNameLength), attempts(MaxAttempts), outputs(MaxOutputsPerStep))
	s.Do.AttemptTimeout = MaxAttemptTimeout
	s.Do.Retry.InitialBackoff, s.Do.Retry.MaxBackoff = MaxBackoff, MaxBackoff
	if _, errs := Compile(Definition{Steps: []Step{s}, Deadline: MaxDeadline}); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestCompileReportsEverythingThatIsWrongAtOnce(t *testing.T) {
	t.Parallel()
	_, errs := Compile(Definition{Steps: []Step{step("a", attempts(0), with(`{"x": "${nope}"}`)), step("b", with(`{"x": "${nope}"}`))}})
	if len(errs) != 3 {
		t.Errorf("%d errors, want 3: %v", len(errs), errs)
	}
}

func TestACompensationMayReadTheOutputOfItsOwnAction(t *testing.T) {
	t.Parallel()
	def := Definition{Steps: []Step{step("a", output("id", "${response.body.id}"), undoWith(`{"url": "http://x/${steps.a.output.id}"}`, 1))}}
	if _, errs := Compile(def); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestAnAncestorThatIsNotADirectDependencyCanBeRead(t *testing.T) {
	t.Parallel()
	def := Definition{Steps: []Step{step("a"), step("b", after("a")), step("c", after("b"), with(`{"x": "${steps.a.output.id}"}`))}}
	if _, errs := Compile(def); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestTheLargestGraphCompiles(t *testing.T) {
	t.Parallel()
	steps := make([]Step, MaxSteps)
	for i := range steps {
		steps[i] = step(fmt.Sprintf("s%d", i))
		for k := max(0, i-MaxDependenciesStep); k < i; k++ {
			steps[i].DependsOn = append(steps[i].DependsOn, fmt.Sprintf("s%d", k))
		}
	}
	if _, errs := Compile(Definition{Steps: steps}); len(errs) > 0 {
		t.Error(errs)
	}
}
