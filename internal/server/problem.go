package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// Problem is every error of the API: RFC 9457, with a reason for programs.
type Problem struct {
	Type   string         `json:"type" doc:"Always about:blank: status and reason say which problem it is." example:"about:blank"`
	Title  string         `json:"title" doc:"The status in words."`
	Status int            `json:"status" doc:"The HTTP status."`
	Reason string         `json:"reason" doc:"What is wrong, in one word for programs." example:"AlreadyExists"`
	Detail string         `json:"detail" doc:"What is wrong, and what to do about it."`
	Errors []ProblemField `json:"errors,omitempty" nullable:"false" doc:"What is wrong with which part of the request."`

	header http.Header
}

// ProblemField is what is wrong with one part of a request.
type ProblemField struct {
	Location string `json:"location" doc:"Where it is: in the path, the query, a header, or the body." example:"body.spec.steps[0].name"`
	Message  string `json:"message" doc:"What is wrong with it."`
}

const problemJSON = "application/problem+json"

func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (*Problem) ContentType(string) string { return problemJSON }

// GetHeaders implements huma.HeadersError.
func (p *Problem) GetHeaders() http.Header { return p.header }

func newProblem(status int, reason, format string, args ...any) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

func (p *Problem) with(name, value string) *Problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

// later says when it is worth trying again.
func (p *Problem) later(d time.Duration) *Problem {
	return p.with("Retry-After", strconv.Itoa(max(1, int(math.Ceil(d.Seconds())))))
}

// write answers a request with it.
func (p *Problem) write(w http.ResponseWriter) {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // there is nothing in it that could not be encoded
	}
	for name, values := range p.header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", problemJSON)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // whoever is gone asks again
}

// huma keeps the constructor of its errors, and whether the letters of a key count, in variables of the package, so this is the one place for them. Values that were sent are not sent back.
func init() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		if status >= http.StatusInternalServerError {
			return internalError()
		}
		p := newProblem(status, reasonOf(status), "%s", message)
		for _, err := range errs {
			var detailed huma.ErrorDetailer
			switch {
			case err == nil:
			case errors.As(err, &detailed):
				d := detailed.ErrorDetail()
				p.Errors = append(p.Errors, ProblemField{Location: d.Location, Message: d.Message})
			default:
				p.Errors = append(p.Errors, ProblemField{Message: err.Error()})
			}
		}
		return p
	}
}

// reasonOf is the reason where nothing more is known than the status.
func reasonOf(status int) string {
	switch status {
	case http.StatusUnprocessableEntity:
		return "Invalid"
	case http.StatusBadRequest:
		return "Malformed"
	case http.StatusRequestEntityTooLarge:
		return "TooLarge"
	case http.StatusUnsupportedMediaType:
		return "UnsupportedMediaType"
	}
	return "Failed"
}

func internalError() *Problem {
	return newProblem(http.StatusInternalServerError, "Internal", "something went wrong within the operator; its log says what, under the request's id (X-Request-Id)")
}

// soon is when to try again what is expected to pass.
const soon = time.Second

// problemOf is an error of the buses as the API answers it. Nil means that it is nothing that a client should read.
func problemOf(err error) *Problem {
	var (
		already   *Problem
		forbidden *operations.ForbiddenError
		missing   *operations.NotFoundError
		conflict  *operations.ConflictError
		gone      *operations.GoneError
		expired   *operations.ExpiredError
		rejected  *operations.RejectedError
		wrong     *operations.InvalidError
		refused   *cqrs.RefusedError
	)
	switch {
	case errors.Is(err, operations.ErrUnavailable), postgres.Classify(err) == postgres.Unavailable:
		return newProblem(http.StatusServiceUnavailable, "Unavailable", "the API server or the database cannot be reached at the moment; ask again").later(soon)
	case errors.As(err, &already):
		return already
	case errors.As(err, &forbidden):
		return newProblem(http.StatusForbidden, "Forbidden", "%v", forbidden)
	case errors.As(err, &missing):
		return newProblem(http.StatusNotFound, "NotFound", "%v", missing)
	case errors.As(err, &conflict):
		p := newProblem(http.StatusConflict, conflict.Reason, "%v", conflict)
		if conflict.Again {
			p = p.later(soon)
		}
		return p
	case errors.As(err, &gone):
		return newProblem(http.StatusGone, "Over", "%v", gone)
	case errors.As(err, &expired):
		return newProblem(http.StatusGone, "Expired", "%v", expired)
	case errors.As(err, &rejected):
		return newProblem(http.StatusForbidden, "NotAdmitted", "%v", rejected)
	case errors.As(err, &wrong):
		return invalidProblem(wrong)
	case errors.As(err, &refused):
		return newProblem(http.StatusConflict, refused.Reason, "%v", refused)
	}
	return keyProblem(err)
}

// invalidProblem says which fields are wrong. Those without a place of their own are in the body.
func invalidProblem(wrong *operations.InvalidError) *Problem {
	p := newProblem(http.StatusUnprocessableEntity, "Invalid", "%s", wrong.Message)
	for _, f := range wrong.Fields {
		location := f.Name
		if !elsewhere.MatchString(location) {
			location = "body." + location
		}
		p.Errors = append(p.Errors, ProblemField{Location: location, Message: f.Message})
	}
	return p
}

// keyProblem is what an idempotency key was refused for.
func keyProblem(err error) *Problem {
	var busy *idempotency.InProgressError
	switch {
	case errors.As(err, &busy):
		return newProblem(http.StatusConflict, "InProgress", "a request with this idempotency key is being carried out; ask again").later(min(busy.RetryAfter, soon))
	case errors.Is(err, idempotency.ErrQuota):
		return newProblem(http.StatusTooManyRequests, "KeptAnswersQuota",
			"the stored responses to your requests in this namespace have reached their quota (--api-kept-bytes); retry after some have expired, 24 hours after their requests").later(time.Minute)
	case errors.Is(err, idempotency.ErrMismatch):
		return newProblem(http.StatusUnprocessableEntity, "KeyReused", "this idempotency key was used for another request: a new request needs a new key, and a repetition the same content")
	case errors.Is(err, idempotency.ErrFenced):
		return newProblem(http.StatusConflict, "InProgress", "another request with this idempotency key has taken over; ask again for its answer").later(soon)
	case errors.Is(err, idempotency.ErrInvalidKey):
		return newProblem(http.StatusBadRequest, "InvalidKey", "%v", err)
	}
	return nil
}
