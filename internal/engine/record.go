package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/saga"
)

// MessageTypePrefix begins the type of every message that the engine puts into the outbox.
const MessageTypePrefix = "io.vextrus.saga."

// StreamOf names the stream of a saga.
func StreamOf(uid string) string { return "saga-" + uid }

// load folds a saga's stream.
func (e *Engine) load(ctx context.Context, r *running) error {
	if err := ctx.Err(); err != nil { // select would choose between it and a free slot by chance
		return fmt.Errorf("loading its stream: %w", err)
	}
	select {
	case e.loadSlots <- struct{}{}:
		defer func() { <-e.loadSlots }()
	case <-ctx.Done():
		return fmt.Errorf("loading its stream: waiting for other loads: %w", ctx.Err())
	}
	state, err := e.fold(ctx, r.key)
	if unreadable(err) {
		abandoned, ok, rowErr := e.abandonedState(ctx, r.key)
		if rowErr != nil {
			return errors.Join(err, rowErr)
		}
		if ok {
			state, err = abandoned, nil
		}
	}
	if err != nil {
		return err
	}
	if state.Version == 0 {
		return e.checkRemoved(ctx, r, state)
	}
	r.setLoaded(state)
	e.takeBack(r)
	return nil
}

// fold reads a saga's stream. The error is a *StreamError or a *PanicError if what is recorded cannot be
// understood.
func (e *Engine) fold(ctx context.Context, key Key) (state saga.State, err error) {
	defer func() {
		if p := recover(); p != nil {
			e.Logger.Error("panic while reading a saga's stream", "saga", key, "panic", p, "stack", string(debug.Stack()))
			err = &PanicError{Value: p}
		}
	}()
	const page = 500
	for {
		recorded, err := e.Store.Load(ctx, StreamOf(key.UID), state.Version+1, page)
		if err != nil {
			return state, fmt.Errorf("loading its stream: %w", err)
		}
		events := make([]saga.Event, len(recorded))
		for i, rec := range recorded {
			if events[i], err = saga.Unmarshal(rec.Type, rec.SchemaVersion, rec.Data); err != nil {
				return state, &StreamError{Stream: rec.Stream, Version: rec.Version, Err: err}
			}
		}
		state = saga.Fold(state, events...)
		if len(recorded) < page {
			return state, nil
		}
	}
}

// checkRemoved tells a saga that has not started from one whose history retention has removed: it must never start again.
func (e *Engine) checkRemoved(ctx context.Context, r *running, state saga.State) error {
	v, err := e.Store.Version(ctx, StreamOf(r.key.UID))
	if err != nil {
		return err
	}
	if v > 0 { // another operator may have begun it between the two reads
		if first, err := e.Store.Load(ctx, StreamOf(r.key.UID), 1, 1); err != nil {
			return err
		} else if len(first) > 0 {
			return eventstore.ErrWrongVersion
		}
		return fmt.Errorf("loading stream %s: its events have been removed: %w", StreamOf(r.key.UID), eventstore.ErrArchived)
	}
	r.setLoaded(state)
	return nil
}

// append commits events together with the state row and, if publish is true, the messages for them, and
// makes next, the result of the events, the saga's state. An abandoned saga needs no plan.
func (e *Engine) append(ctx context.Context, r *running, plan *saga.Plan, events []saga.Event, next saga.State, publish bool) error {
	a := eventstore.Append{Stream: StreamOf(r.key.UID), Encoded: true, Expected: r.state.Version, Events: make([]eventstore.Event, len(events))}
	notices := r.state.Notices
	for i, ev := range events {
		id, err := e.NewID()
		if err != nil {
			return fmt.Errorf("making an event id: %w", err)
		}
		typ, schema, data, err := saga.Marshal(ev)
		if err != nil {
			return err
		}
		meta := eventstore.Metadata{CorrelationID: r.key.UID}
		if started, ok := ev.(saga.SagaStarted); ok {
			meta.Actor, meta.TraceParent = started.CreatedBy, started.TraceParent
		}
		a.Events[i] = eventstore.Event{ID: id, Type: typ, SchemaVersion: schema, Data: data, Metadata: meta}
		if n, told := saga.NoticeOf(ev); told && publish {
			notices++
			m, err := message(next, n, notices, r.state.Version+int64(i)+1)
			if err != nil {
				return err
			}
			m.ID = id
			a.Messages = append(a.Messages, m)
		}
	}
	row, err := stateRow(next, plan)
	if err != nil {
		return err
	}
	a.State = &row
	if _, err := e.Store.Append(ctx, a); err != nil {
		return err
	}
	if next.Phase != r.state.Phase {
		e.metrics.phases.WithLabelValues(string(next.Phase)).Inc()
	}
	r.setCommitted(next)
	return nil
}

func stateRow(s saga.State, plan *saga.Plan) (eventstore.SagaState, error) {
	uid, err := uuid.Parse(s.UID)
	if err != nil {
		return eventstore.SagaState{}, fmt.Errorf("reading the saga's uid: %w", err)
	}
	data, err := json.Marshal(s.ForRow())
	if err != nil {
		return eventstore.SagaState{}, fmt.Errorf("encoding the saga's state: %w", err)
	}
	var wake time.Time
	if plan != nil {
		wake = plan.Wake(s)
	}
	return eventstore.SagaState{
		UID: uid, Namespace: s.Namespace, Name: s.Name, Phase: string(s.Phase), Finished: s.Phase.Terminal(),
		Version: s.Version, WakeAt: wake, State: data,
	}, nil
}

// lifecycle is what a message tells the world about a saga.
type lifecycle struct {
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Version is that of the event in the saga's stream.
	Version int64  `json:"version"`
	Step    string `json:"step,omitempty"`
	Cause   string `json:"cause,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// message is what the world is told by a notice, the nth of the saga, about the event that led to a version of it.
func message(s saga.State, n saga.Notice, nth, version int64) (eventstore.Message, error) {
	data, err := json.Marshal(lifecycle{
		UID: s.UID, Namespace: s.Namespace, Name: s.Name, Version: version, Step: n.Step, Cause: n.Cause, Reason: n.Reason, Message: n.Message,
	})
	if err != nil {
		return eventstore.Message{}, fmt.Errorf("encoding what the world is told: %w", err)
	}
	return eventstore.Message{
		Type: MessageTypePrefix + n.What, Key: s.UID, Source: SourceOf(s.Namespace), Subject: s.Name, Namespace: s.Namespace, Labels: s.Labels, Sequence: nth, Data: data,
		Metadata: eventstore.Metadata{CorrelationID: s.UID, TraceParent: traceParent(s, n.Attempt)},
	}, nil
}

// SourceOf is the CloudEvents source of the messages of a namespace's sagas: the path under which they are found at the API server.
func SourceOf(namespace string) string {
	return "/apis/saga.vextrus.io/v1/namespaces/" + namespace + "/sagas"
}
