// Package participant is the small interface behind which every kind of participant stands. Each kind has a package of its own
// below this one and is made known to the operator by one line in a Registry; nothing else has to change for a new one.
package participant

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Identity says on behalf of which saga a call is made.
type Identity struct {
	UID       string
	Namespace string
	Name      string
}

// Call is one attempt, ready to be carried out.
type Call struct {
	Saga    Identity
	Attempt saga.Attempt
	// Key is the idempotency key of the effect. It is the same for all its attempts.
	Key string
	// With holds the settings of the effect, every expression rendered. It is the same for all attempts of one effect.
	With map[string]any
	// TraceParent is the W3C trace context to pass on; empty when there is none.
	TraceParent string
	// ReserveMemory waits until memory for the given number of bytes of a response is available. It
	// returns an error if ctx ends first, or if the number exceeds the limit of the namespace. The
	// engine releases the memory after it has evaluated the response. Nil means no limit.
	ReserveMemory func(ctx context.Context, bytes int64) error
	// Callback is the URL at which the participant replies later; empty if it does not, or if Prepare was not called.
	Callback string
}

// Result is what a call came to.
type Result struct {
	Kind saga.OutcomeKind
	// Author says of a Rejected whose word it is. Only the participant's own word settles what an earlier attempt left open.
	Author saga.Author
	// Over says of an Unknown that a response came, after which the participant does no more: a rollback need not wait until the call's time
	// is over.
	Over bool
	// Accepted says that the participant has taken the attempt and answers later, within AnswerWithin (at most MaxAnswerWithin): the answer comes to the event store, by whatever
	// way, and without one the outcome is unknown. Kind means nothing then.
	Accepted     bool
	AnswerWithin time.Duration
	// Reason is one CamelCase word for programs, Message a short text for people (at most 1 KiB). Both are empty when it succeeded.
	Reason  string
	Message string
	// RetryAfter is the pause that the participant asked for; zero when it asked for none.
	RetryAfter time.Duration
	// Response is what output expressions see as `response`: JSON values only. Its "body" can be a
	// json.RawMessage; the engine decodes it if the step has an output.
	Response map[string]any
}

// MaxAnswerWithin bounds how long an answer is waited for.
const MaxAnswerWithin = saga.MaxDeadline

// Participant carries out the effects of one kind.
type Participant interface {
	// Check reports what is wrong with the settings of an effect before any expression in them is rendered. A string that holds an
	// expression is not known yet and passes. Fields are relative to the settings, for example "url" or "headers.Host".
	Check(with map[string]any) []saga.FieldError
	// Do carries out one attempt and returns when it has ended, or when ctx has. It is safe for concurrent use. Whatever happens
	// it must say which of the four outcomes it was, and when in doubt: Unknown.
	Do(ctx context.Context, call Call) Result
}

// Preparer is a participant that has something to do before it is called for an attempt, such as storing the token of a callback. The engine
// looks once more whether the attempt is still wanted between Prepare and Do.
type Preparer interface {
	// Prepare may change the call. A result that is not nil ends the attempt: nothing was sent.
	Prepare(ctx context.Context, call *Call) *Result
}

// Registry maps the name of each kind to who carries it out.
type Registry map[string]Participant

// Check reports what is wrong with the settings of every effect of a definition: a kind that nobody carries out, and what its participant
// finds. Field paths begin at the definition, for example steps[1].http.url. What saga.Compile reports is not repeated.
func (r Registry) Check(def *saga.Definition) []saga.FieldError {
	var errs []saga.FieldError
	for i := range def.Steps {
		field := "steps[" + strconv.Itoa(i) + "]"
		errs = append(errs, r.check(field, &def.Steps[i].Do)...)
		if c := def.Steps[i].Compensation; c != nil {
			errs = append(errs, r.check(field+".compensation", c)...)
		}
	}
	return errs
}

func (r Registry) check(field string, e *saga.Effect) []saga.FieldError {
	if e.Kind == "" {
		return nil
	}
	field += "." + e.Kind
	p, ok := r[e.Kind]
	if !ok {
		return []saga.FieldError{{Field: field, Message: fmt.Sprintf("this operator does not carry out actions of the kind %q", e.Kind)}}
	}
	value, err := expression.Decode(e.With)
	with, ok := value.(map[string]any)
	if err != nil || !ok {
		return nil
	}
	errs := p.Check(with)
	for i := range errs {
		if errs[i].Field != "" {
			errs[i].Field = "." + errs[i].Field
		}
		errs[i].Field = field + errs[i].Field
	}
	return errs
}
