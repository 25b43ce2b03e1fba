package http

import (
	"context"
	"fmt"
	"time"

	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Completion says when an effect has happened.
const (
	// CompletionResponse: when the request has been answered. It is the default.
	CompletionResponse = "Response"
	// CompletionCallback: when the participant, having answered 202, says so at the URL that it was given.
	CompletionCallback = "Callback"
)

// HeaderCallback is the header with the URL at which a participant answers later.
const HeaderCallback = "Saga-Callback"

// completion returns how long the answer may take that comes later; zero where none does.
func (p *Participant) completion(with map[string]any) (within time.Duration, wrong *saga.FieldError) {
	timeout, given := with["callbackTimeout"]
	switch with["completion"] {
	case nil, CompletionResponse:
		if given {
			return 0, &saga.FieldError{Field: "callbackTimeout", Message: "means nothing without completion: " + CompletionCallback}
		}
		return 0, nil
	case CompletionCallback:
	default:
		return 0, &saga.FieldError{Field: "completion", Message: "must be " + CompletionResponse + " or " + CompletionCallback + ", and cannot be an expression"}
	}
	text, _ := timeout.(string)
	within, err := time.ParseDuration(text)
	if err != nil || within < time.Second || within > participant.MaxAnswerWithin {
		return 0, &saga.FieldError{Field: "callbackTimeout", Message: fmt.Sprintf("a duration from 1s to %s is needed, such as 10m", participant.MaxAnswerWithin)}
	}
	if p.callbacks == nil {
		return 0, &saga.FieldError{Field: "completion", Message: "this operator takes no callbacks: its administrator has to say by --callback-url where participants reach it"}
	}
	return within, nil
}

// Prepare implements participant.Preparer: it makes the URL at which the participant replies later. The URL is good for as long as the
// request may take to be accepted, and then as long as was agreed.
func (p *Participant) Prepare(ctx context.Context, call *participant.Call) *participant.Result {
	within, wrong := p.completion(call.With)
	if wrong != nil || within == 0 {
		return nil // Do says what is wrong
	}
	if deadline, ok := ctx.Deadline(); ok {
		within += max(time.Until(deadline), 0)
	}
	url, err := p.callbacks.Issue(ctx, *call, within)
	if err != nil {
		return &participant.Result{Kind: saga.Retryable, Reason: "CallbackUnavailable", Message: short("nothing was sent: " + err.Error())}
	}
	call.Callback = url
	return nil
}
