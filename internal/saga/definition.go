package saga

import (
	"encoding/json"
	"time"
)

// Limits of a definition. They bound what one saga can cost the operator; the schema of the resource
// repeats those that a schema can express.
const (
	MaxSteps            = 200
	MaxAttempts         = 100
	MaxDeadline         = 30 * 24 * time.Hour
	MaxAttemptTimeout   = time.Hour
	MaxBackoff          = 24 * time.Hour
	MaxNameLength       = 63
	MaxDefinitionBytes  = 256 << 10
	MaxOutputBytes      = 256 << 10
	MaxSagaOutputBytes  = 4 << 20
	MaxExpressions      = 4_000
	MaxOutputsPerStep   = 64
	MaxDependenciesStep = 32
)

// Defaults of what a manifest leaves out. They are part of the API: a saga that was written without them must
// behave the same under every later version.
const (
	DefaultAttemptTimeout          = 30 * time.Second
	DefaultInitialBackoff          = time.Second
	DefaultMaxBackoff              = time.Minute
	DefaultActionAttempts          = 5
	DefaultCompensationAttempts    = 20
	DefaultCompensationMaxBackoff  = 5 * time.Minute
	DefaultCompensationInitBackoff = time.Second
)

// Definition is what a saga is to do: its steps and how long it may take to go forward. It is recorded in the saga's first event and
// never changes afterwards, so its JSON form is a stored format: fields are added, never renamed. It is read strictly: a version that
// does not know a field leaves the saga alone. A field that is added has to be left out of the JSON form where it is not used, and to
// have a row in the table of features.
type Definition struct {
	// Steps in the order in which they were written. Every dependency is explicit here: "follows the one before it" has been
	// resolved by whoever made the definition.
	Steps []Step `json:"steps"`
	// Deadline bounds the way forward, from the start of the saga to its last action. Zero means none. Rollback is not subject to it.
	Deadline time.Duration `json:"deadline,omitempty"`
}

// Step is one part of a saga.
type Step struct {
	Name string `json:"name"`
	// DependsOn names the steps whose actions must have succeeded before this one starts.
	DependsOn []string `json:"dependsOn,omitempty"`
	// Do is the action of the step.
	Do Effect `json:"do"`
	// Output maps names to templates that are evaluated over the participant's response.
	Output map[string]string `json:"output,omitempty"`
	// Compensation undoes the action. A step without one has nothing to undo.
	Compensation *Effect `json:"compensation,omitempty"`
}

// Effect is something a participant is asked to do, as an action or as a compensation: what to do, and how persistently.
type Effect struct {
	// Kind names the kind of participant, for example "http".
	Kind string `json:"kind"`
	// With holds the settings of that kind, any JSON object. Its strings may hold ${…} expressions.
	With json.RawMessage `json:"with"`
	// Retry says how often, and after which pauses, the effect is tried.
	Retry Retry `json:"retry"`
	// AttemptTimeout bounds one attempt.
	AttemptTimeout time.Duration `json:"attemptTimeout"`
}

// Retry is exponential backoff with full jitter: before attempt n+1 the pause is drawn evenly from
// [0, min(MaxBackoff, InitialBackoff·2^(n-1))] (Brooker, "Exponential Backoff And Jitter", 2015).
type Retry struct {
	MaxAttempts    int           `json:"maxAttempts"`
	InitialBackoff time.Duration `json:"initialBackoff"`
	MaxBackoff     time.Duration `json:"maxBackoff"`
}

// FieldError says what is wrong with one field of what a user wrote.
type FieldError struct {
	// Field is the path from the root of the definition, for example steps[1].http.url.
	Field   string
	Message string
}

func (e FieldError) Error() string { return e.Field + ": " + e.Message }
