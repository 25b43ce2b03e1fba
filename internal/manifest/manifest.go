// Package manifest turns what users write (api/v1) into what the state machine understands (internal/saga): every default applied, every
// dependency explicit, and everything checked that can be known before a participant is called. What is wrong is reported with the field that it is
// wrong in, all of it at once. Definition does all of it; Read and Report are its parts for those that compile elsewhere.
package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/panics"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Limits of a manifest that no schema can express.
const (
	// MaxSpecBytes bounds the whole spec, as compact JSON.
	MaxSpecBytes = saga.MaxDefinitionBytes
	// MaxInputBytes bounds the input, as compact JSON.
	MaxInputBytes = 64 << 10
)

// Definition makes the definition of a saga, and its input (a JSON object, never empty). It returns everything that is wrong, at most maxErrors
// errors in the order of their fields and then how many more there are; definition and input mean nothing then. Field paths begin at the root of the
// object, for example spec.steps[1].http.url. For the largest manifests it takes seconds; Read is its fast part.
//
// Kinds are the participants that effects are checked by. A kind that is not among them is an error.
func Definition(o *v1.Saga, kinds participant.Registry) (def saga.Definition, input json.RawMessage, errs []saga.FieldError) {
	def, input, errs = Read(o)
	wrong := safely(func() []saga.FieldError {
		_, wrong := saga.Compile(def)
		if len(def.Steps) <= saga.MaxSteps {
			wrong = append(wrong, kinds.Check(&def)...)
		}
		return wrong
	})
	return def, input, Report(errs, wrong)
}

// Read makes the definition of a saga, and its input, without checking what [saga.Compile] and the
// participants check. What is wrong is returned for Report.
func Read(o *v1.Saga) (def saga.Definition, input json.RawMessage, errs []saga.FieldError) {
	var r reader
	wrong := safely(func() []saga.FieldError {
		r.checkSize(&o.Spec)
		input = r.input(o.Spec.Input)
		def = r.definition(&o.Spec)
		if len(def.Steps) <= saga.MaxSteps {
			r.checkOutputNames(&def)
		}
		return nil
	})
	return def, input, append(r.errs, wrong...)
}

// safely turns a panic into an error, because a manifest must not stop other sagas.
func safely(check func() []saga.FieldError) (errs []saga.FieldError) {
	defer func() {
		if p := recover(); p != nil {
			errs = []saga.FieldError{{Message: fmt.Sprintf("reading it panicked%s: %v; this is a fault of the operator, please report it", panics.Site(), p)}}
		}
	}()
	return check()
}

// reader gathers what is wrong while it reads. Its field paths begin at the spec; the empty path is the spec itself.
type reader struct {
	errs []saga.FieldError
}

func (r *reader) fail(field, format string, args ...any) {
	r.errs = append(r.errs, saga.FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
}

func (r *reader) checkSize(spec *v1.SagaSpec) {
	size, err := SpecBytes(spec)
	switch {
	case err != nil:
		r.fail("", "it is not JSON: %v", err)
	case size > MaxSpecBytes:
		r.failSize(size)
	}
}

func (r *reader) failSize(size int64) {
	r.fail("", "%d bytes of JSON are more than the limit of %d", size, MaxSpecBytes)
}

// CheckSize returns what is wrong with a spec of a size, for callers that know it without the spec.
func CheckSize(size int64) []saga.FieldError {
	if size <= MaxSpecBytes {
		return nil
	}
	var r reader
	r.failSize(size)
	return Report(r.errs, nil)
}

// SpecBytes returns the size of a spec in bytes of compact JSON.
func SpecBytes(spec *v1.SagaSpec) (int64, error) {
	data, err := encode(spec)
	return int64(len(data)), err
}

func (r *reader) input(in *v1.JSON) json.RawMessage {
	if in == nil || len(in.Raw) == 0 {
		return json.RawMessage(`{}`)
	}
	data, err := encode(in)
	if err != nil {
		r.fail("input", "it is not JSON: %v", err)
		return nil
	}
	if len(data) > MaxInputBytes {
		r.fail("input", "%d bytes of JSON are more than the limit of %d", len(data), MaxInputBytes)
		return nil
	}
	value, err := expression.Decode(data)
	if err != nil {
		r.fail("input", "%v", err)
	} else if _, ok := value.(map[string]any); !ok {
		r.fail("input", "it is not a JSON object")
	}
	return data
}

func (r *reader) definition(spec *v1.SagaSpec) saga.Definition {
	def := saga.Definition{Steps: make([]saga.Step, len(spec.Steps))}
	if d := spec.Deadline; d != nil {
		if def.Deadline = d.Duration; d.Duration == 0 { // which would mean that there is none
			r.fail("deadline", "0s is not more than 0s")
		}
	}
	for i := range spec.Steps {
		def.Steps[i] = r.step(spec.Steps, i)
	}
	return def
}

func (r *reader) step(steps []v1.Step, i int) saga.Step {
	field, in := fmt.Sprintf("steps[%d]", i), &steps[i]
	out := saga.Step{Name: in.Name, DependsOn: dependencies(steps, i), Do: r.effect(field, &in.Effect, actionDefaults)}
	if len(in.Output) > 0 {
		out.Output = make(map[string]string, len(in.Output))
		for name, template := range in.Output {
			out.Output[name] = string(template)
		}
	}
	if in.Compensation != nil {
		e := r.effect(field+".compensation", in.Compensation, compensationDefaults)
		out.Compensation = &e
	}
	return out
}

// dependencies makes it explicit what a step waits for: what it says, and if it says nothing, the step that is written before it.
func dependencies(steps []v1.Step, i int) []string {
	switch {
	case len(steps[i].DependsOn) > 0:
		return append([]string(nil), steps[i].DependsOn...)
	case steps[i].DependsOn == nil && i > 0:
		return []string{steps[i-1].Name}
	}
	return nil
}

// effect translates the kinds without knowing them: in the JSON of an effect, what is not about persistence is the one kind that is given and its
// settings. A new kind needs a field in api/v1 and nothing here.
func (r *reader) effect(field string, in *v1.Effect, defaults persistence) saga.Effect {
	out := defaults.applied(in)
	data, err := encode(in)
	if err != nil {
		r.fail(field, "it is not JSON: %v", err)
		return out
	}
	var kinds map[string]json.RawMessage
	if err := json.Unmarshal(data, &kinds); err != nil {
		r.fail(field, "it is not a JSON object: %v", err)
		return out
	}
	delete(kinds, "retry")
	delete(kinds, "attemptTimeout")
	if out.Kind, out.With, err = only(kinds); err != nil {
		r.fail(field, "%v", err)
	}
	return out
}

// only returns the one kind of action that is given. That none is given is for saga.Compile to report.
func only(kinds map[string]json.RawMessage) (kind string, with json.RawMessage, err error) {
	if len(kinds) > 1 {
		return "", nil, fmt.Errorf("%s are given, and exactly one kind of action is needed", strings.Join(slices.Sorted(maps.Keys(kinds)), " and "))
	}
	for kind, with = range kinds {
	}
	return kind, with, nil
}

// outputName is what can stand behind the last dot of ${steps.NAME.output.NAME}.
var outputName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

func (r *reader) checkOutputNames(def *saga.Definition) {
	for i := range def.Steps {
		for name := range def.Steps[i].Output {
			if !outputName.MatchString(name) {
				r.fail(fmt.Sprintf("steps[%d].output", i), "%q is not a name of an output: it consists of letters, digits and underscores, does not begin with a digit, and has at most 63 characters", clip(name, 80))
			}
		}
	}
}
