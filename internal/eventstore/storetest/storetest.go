// Package storetest is the conformance suite of event stores: what every implementation of eventstore.Store must do, one named behaviour each. An
// implementation's test calls Run.
package storetest

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// behaviour is one thing that every store must do.
type behaviour struct {
	name  string
	check func(*testing.T, *fixture)
}

// Run checks every behaviour against stores that open makes. Each call of open returns a store that nobody else uses, and that is gone when its test ends.
func Run(t *testing.T, open func(testing.TB) eventstore.Store) {
	t.Helper()
	for _, group := range [][]behaviour{versions, atomicity, repetition, several, reading, backwards, limits, values, sagas, answers, callbacks, outbox, order, following, archiving, snapshots, retention, concurrency} {
		for _, b := range group {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				b.check(t, &fixture{Store: open(t), t: t})
			})
		}
	}
}

// fixture is a store with the short-hands of this suite.
type fixture struct {
	eventstore.Store
	t *testing.T
}

func event(data string) eventstore.Event {
	return eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Happened", SchemaVersion: 1, Data: json.RawMessage(data)}
}

func events(n int) []eventstore.Event {
	all := make([]eventstore.Event, n)
	for i := range all {
		all[i] = event(`{"n":` + string(rune('0'+i%10)) + `}`)
	}
	return all
}

func message(key string) eventstore.Message {
	return eventstore.Message{ID: uuid.Must(uuid.NewV7()), Type: "happened", Key: key, Data: json.RawMessage(`{}`)}
}

func state(uid uuid.UUID) *eventstore.SagaState {
	return &eventstore.SagaState{UID: uid, Namespace: "shop", Name: "order", Phase: "Running", State: json.RawMessage(`{"phase":"Running"}`)}
}

// append does an append that has to succeed.
func (f *fixture) append(a eventstore.Append) eventstore.Appended {
	f.t.Helper()
	done, err := f.Append(f.t.Context(), a)
	if err != nil {
		f.t.Fatalf("appending: %v", err)
	}
	return done
}

func (f *fixture) load(stream string, from int64, limit int) []eventstore.Recorded {
	f.t.Helper()
	events, err := f.Load(f.t.Context(), stream, from, limit)
	if err != nil {
		f.t.Fatalf("loading: %v", err)
	}
	return events
}

func (f *fixture) version(stream string) int64 {
	f.t.Helper()
	v, err := f.Version(f.t.Context(), stream)
	if err != nil {
		f.t.Fatalf("reading the version: %v", err)
	}
	return v
}

func (f *fixture) messages() []eventstore.RecordedMessage {
	f.t.Helper()
	m, err := f.Messages(f.t.Context(), 0, 1000)
	if err != nil {
		f.t.Fatalf("reading the outbox: %v", err)
	}
	return m
}

func (f *fixture) unfinished(after uuid.UUID, limit int) []eventstore.SagaState {
	f.t.Helper()
	s, err := f.UnfinishedSagas(f.t.Context(), after, limit)
	if err != nil {
		f.t.Fatalf("listing unfinished sagas: %v", err)
	}
	return s
}
