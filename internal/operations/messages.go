package operations

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Limits.
const (
	// MaxSpecBytes is how large the spec of a saga may be.
	MaxSpecBytes = 256 << 10
	// MaxPage is how many sagas one answer has at most.
	MaxPage = 500
	// MaxEvents is how many events one answer has at most.
	MaxEvents = 1000
	// DefaultPage is how many sagas or events an answer has when nothing is said.
	DefaultPage = 100
)

// Object is a saga as the API server has it, in JSON, without the notes of who manages which field.
type Object struct {
	JSON json.RawMessage
}

// StartSaga creates a saga. It needs the verb create on sagas.
type StartSaga struct {
	cqrs.Answers[Object]
	Namespace string
	// Name or GenerateName; the latter is a prefix, to which something is added that follows from the key.
	Name, GenerateName  string
	Labels, Annotations map[string]string
	Spec                json.RawMessage
	// User is the caller; Key is theirs and names this one saga.
	User, Key string
}

// Needs implements what the bus asks for.
func (c StartSaga) Needs() Permission { return Permission{Verb: "create", Namespace: c.Namespace} }

// IdempotencyKey implements cqrs.Keyed.
func (c StartSaga) IdempotencyKey() (realmName, key string) { return realm(c.Namespace, c.User), c.Key }

// Validate implements cqrs.Validator.
func (c StartSaga) Validate() error {
	switch {
	case c.Namespace == "":
		return invalid("path.namespace", "a saga needs a namespace")
	case c.Key == "":
		return errors.New("starting a saga needs an idempotency key")
	case (c.Name == "") == (c.GenerateName == ""):
		return invalid("metadata.name", "a saga needs either a name or a generateName")
	case len(c.Spec) == 0:
		return invalid("spec", "a saga needs a spec")
	case len(c.Spec) > MaxSpecBytes:
		return invalid("spec", "the spec has %d bytes; the limit is %d", len(c.Spec), MaxSpecBytes)
	}
	for what, names := range map[string]map[string]string{"labels": c.Labels, "annotations": c.Annotations} {
		for name := range names {
			if operatorsOwn(name) {
				return invalid("metadata."+what, "%q belongs to the operator, which sets it where it is needed; leave it out", name)
			}
		}
	}
	return nil
}

// operatorsOwn reports whether a label or annotation is in the operator's domain.
func operatorsOwn(name string) bool {
	domain, _, _ := strings.Cut(name, "/")
	return domain == group || strings.HasSuffix(domain, "."+group)
}

// Ref names a saga.
type Ref struct{ Namespace, Name string }

func (r Ref) String() string { return r.Namespace + "/" + r.Name }

func (r Ref) needs(verb string) Permission {
	return Permission{Verb: verb, Namespace: r.Namespace, Name: r.Name}
}

// Validate implements cqrs.Validator.
func (r Ref) Validate() error {
	if r.Namespace == "" || r.Name == "" {
		return invalid("path.name", "the namespace or the name of the saga is missing")
	}
	return nil
}

// SuspendSaga holds a saga: no attempt is started. It needs the verb patch. Suspending one that is suspended changes nothing.
type SuspendSaga struct {
	cqrs.Answers[Object]
	Ref
}

// Needs implements what the bus asks for.
func (c SuspendSaga) Needs() Permission { return c.needs("patch") }

// ResumeSaga has a suspended saga go on. It needs the verb patch.
type ResumeSaga struct {
	cqrs.Answers[Object]
	Ref
}

// Needs implements what the bus asks for.
func (c ResumeSaga) Needs() Permission { return c.needs("patch") }

// CancelSaga has a saga rolled back. It needs the verb patch. A saga that has finished otherwise is a *ConflictError.
type CancelSaga struct {
	cqrs.Answers[Object]
	Ref
}

// Needs implements what the bus asks for.
func (c CancelSaga) Needs() Permission { return c.needs("patch") }

// DecideSaga is a person's word on a parked saga. It needs the verb update on sagas/decide: what is skipped stays done, and that is not for everybody who may edit.
type DecideSaga struct {
	cqrs.Answers[Object]
	Ref
	// Step is empty for all whose compensation has failed.
	Step    string
	Verdict saga.Verdict
	Reason  string
	// About is the version at which the saga was parked, as the caller saw it; zero means the present parking.
	About int64
	// User is the caller; Key is theirs, or empty.
	User, Key string
	// ID names the decision, so that it counts once; see DecisionID.
	ID string
}

// DecisionID derives the id of a decision from the idempotency key with which a user asks for it. Without a key it is a new one: the
// caller can repeat its request with that as the key.
func DecisionID(user, key string) string {
	if key == "" {
		return uuid.NewString()
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(user+"\x00"+key)).String()
}

// Needs implements what the bus asks for.
func (c DecideSaga) Needs() Permission {
	p := c.needs("update")
	p.Subresource = "decide"
	return p
}

// IdempotencyKey implements cqrs.Keyed.
func (c DecideSaga) IdempotencyKey() (realmName, key string) {
	return realm(c.Namespace, c.User), c.Key
}

// Token is a credential, and shows itself to nobody by accident.
type Token string

const redacted = "[redacted]"

// String implements fmt.Stringer.
func (Token) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Token) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// AnswerCallback is a participant's later answer to an attempt. The token is the credential.
type AnswerCallback struct {
	cqrs.Answers[Answered]
	Token           Token
	Rejected        bool
	Reason, Message string
	// Body is any JSON; output expressions see it as response.body.
	Body json.RawMessage
}

// FindCallback asks for the saga that a token of a callback was issued for. It fails with a
// [*NotFoundError] if the token was not issued.
type FindCallback struct {
	cqrs.Answers[FoundCallback]
	Token Token
}

func (FindCallback) byToken() {}

// FoundCallback is the result of [FindCallback]. Namespace is the namespace of the saga; it is empty
// if the saga is gone.
type FoundCallback struct{ Namespace string }

// Answered is the empty result of [AnswerCallback].
type Answered struct{}

func (AnswerCallback) byToken() {}

// Validate implements cqrs.Validator.
func (c AnswerCallback) Validate() error {
	const maxText = 1 << 10
	if !c.Rejected && (c.Reason != "" || c.Message != "") {
		return invalid("reason", "reason and message say why something was rejected; what has succeeded has none")
	}
	for name, text := range map[string]string{"reason": c.Reason, "message": c.Message} {
		if len(text) > maxText || strings.ContainsRune(text, 0) {
			return invalid(name, "the %s is text without NUL of %d bytes at most", name, maxText)
		}
	}
	return nil
}

// GetSaga reads a saga from the API server. It needs the verb get.
type GetSaga struct {
	cqrs.Answers[Object]
	Ref
}

// Needs implements what the bus asks for.
func (q GetSaga) Needs() Permission { return q.needs("get") }

// ListSagas reads the sagas of a namespace from the API server, page by page. It needs the verb list.
type ListSagas struct {
	cqrs.Answers[List]
	Namespace string
	// Phase and LabelSelector narrow the list, where they are not empty.
	Phase, LabelSelector string
	// Limit is at most MaxPage; 0 is DefaultPage. Continue is that of the page before.
	Limit    int
	Continue string
}

// List is a page of sagas.
type List struct {
	Items []json.RawMessage
	// Continue is for the next page; empty on the last.
	Continue string
	// Remaining is how many more there are; nil where the API server does not say.
	Remaining *int64
}

// Needs implements what the bus asks for.
func (q ListSagas) Needs() Permission { return Permission{Verb: "list", Namespace: q.Namespace} }

// Validate implements cqrs.Validator.
func (q ListSagas) Validate() error { return checkLimit(q.Limit, MaxPage) }

func checkLimit(limit, most int) error {
	if limit < 0 || limit > most {
		return invalid("query.limit", "%d is not from 1 to %d", limit, most)
	}
	return nil
}

// limited is a page's length.
func limited(limit int) int {
	if limit <= 0 {
		return DefaultPage
	}
	return limit
}

func noSaga(r Ref) error { return &NotFoundError{What: fmt.Sprintf("saga %s", r)} }
