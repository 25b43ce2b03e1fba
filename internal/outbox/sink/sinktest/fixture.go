package sinktest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
)

const (
	// patience is how long anything may take that is to happen at all, on a machine that has other things to do.
	patience = 5 * time.Minute
	// timeout is a connection's where a test has to see it pass. All other connections have never: what they wait for comes, or the test fails before.
	timeout = 500 * time.Millisecond
	never   = 2 * patience
	// first is how long a call may take that is to be given up; the next one may take longer. pause is that between two looks at a state.
	first = time.Second
	pause = 10 * time.Millisecond
	// nobody is an address at which nobody listens. A port that was free a moment ago would be somebody else's by now.
	nobody = "127.0.0.1:1"
)

// fixture is a destination with the short-hands of this suite.
type fixture struct {
	*testing.T
	h *Harness
	// dials counts connections that were asked for.
	dials atomic.Int64
}

// need skips a behaviour that the destination has no part in.
func (f *fixture) need(has bool, what string) {
	f.Helper()
	if !has {
		f.Skipf("this destination has no %s", what)
	}
}

// publisher makes a publisher that is closed when the test ends.
func (f *fixture) publisher(w With) outbox.Publisher {
	f.Helper()
	if w.Mode == "" {
		w.Mode = outbox.Binary
	}
	if w.Timeout == 0 {
		w.Timeout = never
	}
	dial := w.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	w.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		f.dials.Add(1)
		return dial(ctx, network, address)
	}
	p := f.h.New(f.T, w)
	f.Cleanup(func() { f.within("Close", func() { _ = p.Close() }) })
	return p
}

// within fails the test when do does not return.
func (f *fixture) within(what string, do func()) {
	f.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(patience):
		f.Fatalf("%s has not returned after %s", what, patience)
	}
}

// publish publishes and returns as many errors as there were messages, each of which is looked through for secrets.
func (f *fixture) publish(ctx context.Context, p outbox.Publisher, all ...outbox.Message) (errs []error) {
	f.Helper()
	f.within("Publish", func() { errs = p.Publish(ctx, all) })
	if len(errs) != len(all) {
		f.Fatalf("publishing %d messages returned %d errors", len(all), len(errs))
	}
	for _, err := range errs {
		f.decent(err)
	}
	return errs
}

func (f *fixture) check(ctx context.Context, p outbox.Publisher) (err error) {
	f.Helper()
	f.within("Check", func() { err = p.Check(ctx) })
	f.decent(err)
	return err
}

// decent checks what holds for every error.
func (f *fixture) decent(err error) {
	f.Helper()
	if err == nil {
		return
	}
	var e *outbox.Error
	if !errors.As(err, &e) {
		f.Errorf("an error does not say whose fault it is: %v", err)
	}
	if e != nil && e.Reason == "" {
		f.Errorf("an error has no reason: %v", err)
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
		if strings.Contains(text, Secret) {
			f.Errorf("an error shows a secret: %s", text)
		}
	}
}

// mustPublish publishes what has to be taken, the messages of one call after those of the one before.
func (f *fixture) mustPublish(p outbox.Publisher, all ...outbox.Message) {
	f.Helper()
	most := max(p.Limits().Batch, 1)
	for len(all) > 0 {
		n := min(most, len(all))
		for i, err := range f.publish(f.Context(), p, all[:n]...) {
			if err != nil {
				f.Fatalf("message %s of key %s was not taken: %v", all[i].ID, all[i].Key, err)
			}
		}
		all = all[n:]
	}
}

// wantError checks the kind and the reason of an error.
func (f *fixture) wantError(what string, err error, kind outbox.Kind, reason string) {
	f.Helper()
	var e *outbox.Error
	switch {
	case err == nil:
		f.Errorf("%s gave no error, not one of kind %d and reason %s", what, kind, reason)
	case !errors.As(err, &e):
		f.Errorf("%s gave an error that does not say whose fault it is: %v", what, err)
	case e.Kind != kind || e.Reason != reason:
		f.Errorf("%s gave kind %d and reason %s, not kind %d and reason %s: %v", what, e.Kind, e.Reason, kind, reason, err)
	}
}

// await looks until a condition holds.
func (f *fixture) await(what string, holds func() bool) {
	f.Helper()
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			f.Fatalf("after %s %s", patience, what)
		}
	}
}

// received waits until the destination has n messages, and returns all that it has.
func (f *fixture) received(n int) (got []Got) {
	f.Helper()
	f.await("messages are missing", func() bool {
		got = f.h.Received(f.T)
		return len(got) >= n
	})
	if len(got) > n {
		f.Errorf("the destination has %d messages, not %d", len(got), n)
	}
	return got
}

// attribute is what a header says, whatever the prefix of the protocol is.
func attribute(g *Got, name string) (value string, there bool) {
	for _, prefix := range []string{"ce-", "ce_", "cloudevents:", "cloudevents_"} {
		if value, there = g.Headers[prefix+name]; there {
			return value, true
		}
	}
	return "", false
}

// decode reads a message that was received.
func (f *fixture) decode(g *Got) cloudevents.Event {
	f.Helper()
	e, err := outbox.Decode(g.Incoming)
	if err != nil {
		f.Fatalf("what was received is no CloudEvent: %v", err)
	}
	return e
}

// message makes a message that says little.
func message(key, data string) outbox.Message {
	return outbox.Message{RecordedMessage: eventstore.RecordedMessage{
		Message: eventstore.Message{
			ID: uuid.Must(uuid.NewV7()), Type: "saga.vextrus.io/v1.SagaCompleted", Key: key, Source: "urn:shop:orders", Subject: "order-1", Namespace: "shop",
			Data: json.RawMessage(data),
		},
		RecordedAt: time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC),
	}}
}

// full makes a message that has everything that a message can have, in forms that are easily broken on the way.
func full() outbox.Message {
	m := message("shop/order 1", "{\"b\" : 1.0,  \"a\":\"é <&> \\u0000 ☃\", \"big\": 12345678901234567890}\n")
	m.Sequence = 42
	m.Source = "/shop/orders?tenant=a%20b"
	m.Subject = `Müller & "Söhne" 100% €`
	m.Metadata = eventstore.Metadata{
		CorrelationID: "purchase 7", CausationID: "c-8", TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Actor: "alice",
	}
	return m
}

// large makes a JSON text of about n bytes that does not get smaller by compression.
func large(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	text := make([]byte, n)
	for i := range text {
		text[i] = letters[rand.IntN(len(letters))]
	}
	return `"` + string(text) + `"`
}
