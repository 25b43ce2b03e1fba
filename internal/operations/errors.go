package operations

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/postgres"
)

// ErrUnavailable says that the API server or PostgreSQL cannot be reached or cannot answer now. What was asked for may have been done; asking again is safe.
var ErrUnavailable = errors.New("it is not available at the moment")

// ForbiddenError says which right is missing. It says nothing of whether the saga exists.
type ForbiddenError struct {
	User       string
	Permission Permission
	// Reason is what the cluster says about it, if anything.
	Reason string
}

func (e *ForbiddenError) Error() string {
	s := fmt.Sprintf("user %q lacks the right to %s", e.User, e.Permission)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// NotFoundError says that something does not exist.
type NotFoundError struct {
	What string
	// Hint says what to do about it, if there is anything.
	Hint string
}

func (e *NotFoundError) Error() string {
	s := e.What + " does not exist"
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// ExpiredError says that a place in a list is no longer known.
type ExpiredError struct{}

func (*ExpiredError) Error() string {
	return "the value of continue has expired, because the list has changed since; list again from the beginning"
}

// ConflictError says that a saga is in no state for what was asked. It may be later.
type ConflictError struct {
	// Reason is one word for programs: Finished, NotParked, NotStarted, Changed, or what a callback is refused for.
	Reason, Message string
	// Again says that the same may be asked for again at once, without looking first.
	Again bool
}

func (e *ConflictError) Error() string { return e.Message }

// RejectedError is an admission policy's or a quota's no to a saga.
type RejectedError struct{ Message string }

func (e *RejectedError) Error() string { return "the cluster does not admit the saga: " + e.Message }

// Field is what is wrong with one field.
type Field struct{ Name, Message string }

// InvalidError says what is wrong with a saga or a decision.
type InvalidError struct {
	Message string
	Fields  []Field
}

func (e *InvalidError) Error() string { return e.Message }

func invalid(field, format string, args ...any) *InvalidError {
	m := fmt.Sprintf(format, args...)
	return &InvalidError{Message: m, Fields: []Field{{field, m}}}
}

// fromDatabase classifies an error of PostgreSQL.
func fromDatabase(doing string, err error) error {
	if errors.Is(err, eventstore.ErrUnavailable) || postgres.Classify(err) == postgres.Unavailable {
		return fmt.Errorf("%s: PostgreSQL: %w: %w", doing, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// fromAPIServer classifies an error of the API server.
func fromAPIServer(doing string, err error) error {
	var status apierrors.APIStatus
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, budget.ErrExhausted):
		return err
	case !errors.As(err, &status),
		apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err), apierrors.IsServiceUnavailable(err), apierrors.IsInternalError(err):
		return fmt.Errorf("%s: the API server: %w: %w", doing, ErrUnavailable, err)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return rejectedFields(status.Status())
	case apierrors.IsForbidden(err):
		return &RejectedError{Message: status.Status().Message}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// strictField finds the fields that strict decoding complains of: unknown field "spec.stpes".
var strictField = regexp.MustCompile(`((?:unknown|duplicate) field) "([^"]+)"`)

// rejectedFields is what the API server finds wrong with an object, field by field where it says so.
func rejectedFields(s metav1.Status) error {
	e := &InvalidError{Message: s.Message}
	if s.Details != nil {
		for _, c := range s.Details.Causes {
			e.Fields = append(e.Fields, Field{Name: c.Field, Message: c.Message})
		}
	}
	if len(e.Fields) == 0 {
		for _, m := range strictField.FindAllStringSubmatch(s.Message, -1) {
			e.Fields = append(e.Fields, Field{Name: strings.ReplaceAll(m[2], "..", "."), Message: m[1]})
		}
	}
	return e
}
