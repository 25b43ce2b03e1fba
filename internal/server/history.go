package server

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/operations"
)

type historyInput struct {
	SagaPath
	UID         string `query:"uid" format:"uuid" doc:"Which of several sagas that have had the name one after the other. Without it the one that is there, else the last."`
	After       int64  `query:"after" minimum:"0" doc:"Only events after this version."`
	Limit       int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"How many events the answer has at most. It does not limit those who follow."`
	LastEventID string `header:"Last-Event-Id" pattern:"^[0-9]{1,18}$" doc:"Where to go on following: the id of the last event that was received. It wins over after."`
}

// HistoryEvent is one thing that has happened in a saga.
type HistoryEvent struct {
	Version   int64      `json:"version" doc:"1 for the first event of a saga, and one more for each that follows."`
	At        time.Time  `json:"at" doc:"When it was decided."`
	Type      string     `json:"type" doc:"What happened." example:"AttemptFailed"`
	Step      string     `json:"step,omitempty"`
	Direction string     `json:"direction,omitempty" doc:"action or compensation."`
	Attempt   int        `json:"attempt,omitempty" doc:"Which attempt of the step's action or compensation; 1 is the first."`
	Outcome   string     `json:"outcome,omitempty" doc:"What became of the attempt."`
	Reason    string     `json:"reason,omitempty"`
	Message   string     `json:"message,omitempty"`
	Actor     string     `json:"actor,omitempty" doc:"Who did it, where it was a person or a program outside of the operator."`
	RetryAt   *time.Time `json:"retryAt,omitempty" doc:"When the next attempt follows."`
}

// HistoryPage is a part of what has happened in a saga.
type HistoryPage struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	UID       string         `json:"uid" format:"uuid"`
	Events    []HistoryEvent `json:"events" nullable:"false" doc:"The events, oldest first."`
	Next      int64          `json:"next,omitempty" doc:"Ask for later events with after=next. It is missing where there are none yet."`
	Finished  bool           `json:"finished" doc:"The saga has ended, and nothing more will happen in it."`
}

func event(e operations.Event) HistoryEvent { return HistoryEvent(e) }

// historyOutput writes its answer itself: it is JSON or a stream.
type historyOutput struct{ Body func(huma.Context) }

func historyOperation(api huma.API) huma.Operation {
	page := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[HistoryPage](), true, "")
	one := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[HistoryEvent](), true, "")
	return huma.Operation{
		OperationID: "getSagaHistory", Method: http.MethodGet, Path: sagaPath + "/history", Summary: "Read or follow the history of a saga",
		Description: "Needs the verb get, also for a saga whose object is gone. With Accept: text/event-stream the answer goes on until the saga has finished: each event has its version as id, " +
			"its type as event and a HistoryEvent as data. A client that comes back with Last-Event-Id gets what it has missed, and 204 when there is nothing more to come.",
		Responses: map[string]*huma.Response{
			"200": {Description: "The events.", Content: map[string]*huma.MediaType{
				"application/json": {Schema: page},
				eventStream:        {Schema: &huma.Schema{Type: huma.TypeString, Description: "Server-sent events; the data of each is a " + one.Ref}},
			}},
			"204": {Description: "The saga has finished, and everything has been received. Do not come back."},
		},
	}
}

func (s *Server) sagaHistory(ctx context.Context, in *historyInput) (*historyOutput, error) {
	q := operations.SagaHistory{Ref: in.ref(), UID: in.UID, After: in.After, Limit: in.Limit}
	if in.LastEventID != "" {
		var err error
		if q.After, err = strconv.ParseInt(in.LastEventID, 10, 64); err != nil {
			return nil, &operations.InvalidError{Message: "the header Last-Event-Id is no number", Fields: []operations.Field{{Name: "header.Last-Event-Id", Message: "is no number"}}}
		}
	}
	if exchangeOf(ctx).follows {
		return s.follow(ctx, q)
	}
	h, err := cqrs.Ask(ctx, s.commands.Queries, q)
	if err != nil {
		return nil, err
	}
	page := HistoryPage{Namespace: h.Namespace, Name: h.Name, UID: h.UID, Events: make([]HistoryEvent, 0, len(h.Events)), Finished: h.Finished}
	for _, e := range h.Events {
		page.Events = append(page.Events, event(e))
	}
	if n := len(page.Events); h.More && n > 0 {
		page.Next = page.Events[n-1].Version
	}
	body, err := json.Marshal(page)
	if err != nil {
		return nil, err
	}
	return &historyOutput{Body: func(c huma.Context) {
		_, w := humago.Unwrap(c)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // whoever is gone asks again
	}}, nil
}
