package sinktest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"github.com/vextrus/saga-operator/internal/outbox"
)

var delivery = []behaviour{
	{"a message in binary mode has its attributes in headers and its body byte for byte", (*fixture).binary},
	{"a message in structured mode is the same event in its body", (*fixture).structured},
	{"a message has its key", (*fixture).keyed},
	{"a message without a key, a subject and a source goes through", (*fixture).bare},
	{"messages of one key keep the order of the calls", (*fixture).ordered},
	{"a full batch arrives, each message once", (*fixture).batch},
	{"a message that is too large is rejected, and the others of its batch go through", (*fixture).tooLarge},
	{"a message that is no CloudEvent is rejected, and the others of its batch go through", (*fixture).unfit},
	{"a message that is published twice arrives once", (*fixture).dedupes},
	{"calls at the same time do not disturb each other", (*fixture).concurrent},
	{"a destination that would take a message passes the check, and has got none by it", (*fixture).checked},
	{"the limits leave room for at least one message", (*fixture).limits},
	{"an empty batch is nothing", (*fixture).empty},
}

func (f *fixture) binary() {
	m := full()
	f.mustPublish(f.publisher(With{Mode: outbox.Binary}), m)
	got := f.received(1)[0]
	if !bytes.Equal(got.Body, m.Data) {
		f.Errorf("the body is %q, not %q", got.Body, m.Data)
	}
	if is := got.Headers["content-type"]; is != "application/json" {
		f.Errorf("the content type is %q", is)
	}
	for name, want := range map[string]string{
		"specversion": "1.0", "id": m.ID.String(), "type": m.Type, "source": m.Source, "subject": m.Subject, "time": "2026-03-01T12:00:00.123456Z", "partitionkey": m.Key,
		"traceparent": m.Metadata.TraceParent, "sequence": "0000000042", "correlationid": m.Metadata.CorrelationID, "causationid": m.Metadata.CausationID,
	} {
		if is, _ := attribute(&got, name); is != want {
			f.Errorf("attribute %s is %q, not %q", name, is, want)
		}
	}
	for name, value := range got.Headers {
		if strings.Contains(value, m.Metadata.Actor) {
			f.Errorf("header %s has the actor, who is nobody's business: %q", name, value)
		}
	}
	f.same(&got, m)
}

func (f *fixture) structured() {
	m := full()
	f.mustPublish(f.publisher(With{Mode: outbox.Structured}), m)
	got := f.received(1)[0]
	if is := got.Headers["content-type"]; !strings.HasPrefix(is, "application/cloudevents+json") {
		f.Errorf("the content type is %q", is)
	}
	var e cloudevents.Event
	if err := json.Unmarshal(got.Body, &e); err != nil {
		f.Fatalf("the body is no CloudEvent: %v", err)
	}
	if e.ID() != m.ID.String() {
		f.Errorf("the event has id %s, not %s", e.ID(), m.ID)
	}
	f.same(&got, m)
}

// same checks that what was received is the event that a message is, and that a repetition of it would be known. Data is compared as JSON, because structured mode may
// leave out white space.
func (f *fixture) same(received *Got, m outbox.Message) {
	f.Helper()
	if received.ID != m.ID.String() {
		f.Errorf("a repetition is known by %q, not by %s", received.ID, m.ID)
	}
	got := f.decode(received)
	want, err := m.CloudEvent()
	if err != nil {
		f.Fatal(err)
	}
	if got.Context == nil || got.Context.String() != want.Context.String() {
		f.Errorf("the event is\n%s\nand not\n%s", got, want)
	}
	if is, should := compact(got.Data()), compact(want.Data()); is != should {
		f.Errorf("the data is %s, not %s", is, should)
	}
}

// compact also makes one form of what JSON may escape or not.
func compact(raw []byte) string {
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return string(raw)
	}
	text := out.Bytes()
	out = bytes.Buffer{}
	json.HTMLEscape(&out, text)
	return out.String()
}

func (f *fixture) keyed() {
	f.need(!f.h.Unordered, "keys of its own")
	f.mustPublish(f.publisher(With{}), message("order-1", "1"))
	if got := f.received(1)[0]; got.Key != "order-1" {
		f.Errorf("the key is %q", got.Key)
	}
}

func (f *fixture) bare() {
	m := message("", "1")
	m.Subject, m.Source = "", ""
	f.mustPublish(f.publisher(With{}), m)
	got := f.received(1)[0]
	for _, name := range []string{"subject", "partitionkey", "traceparent", "sequence", "correlationid"} {
		if value, there := attribute(&got, name); there {
			f.Errorf("attribute %s is %q, where the message has none", name, value)
		}
	}
	if source, _ := attribute(&got, "source"); source != outbox.DefaultSource {
		f.Errorf("the source is %q", source)
	}
}

func (f *fixture) ordered() {
	const rounds, keys = 20, 3
	p := f.publisher(With{})
	for i := range rounds {
		var all []outbox.Message
		for k := range keys {
			all = append(all, message(fmt.Sprint("order-", k), fmt.Sprint(i)))
		}
		f.mustPublish(p, all...)
	}
	next := map[string]int{}
	for _, got := range f.received(rounds * keys) {
		key, _ := attribute(&got, "partitionkey")
		if string(got.Body) != fmt.Sprint(next[key]) {
			f.Errorf("%s has %s where %d was to be", key, got.Body, next[key])
		}
		next[key]++
	}
}

func (f *fixture) batch() {
	// Some more in one call than the limits ask for must do no harm.
	const least, most = 10, 100
	p := f.publisher(With{})
	all := make([]outbox.Message, min(max(p.Limits().Batch, least), most))
	for i := range all {
		all[i] = message(fmt.Sprint("order-", i), fmt.Sprint(i))
	}
	for i, err := range f.publish(f.Context(), p, all...) {
		if err != nil {
			f.Errorf("message %d was not taken: %v", i, err)
		}
	}
	f.each(all)
}

// each checks that the destination has each message once.
func (f *fixture) each(all []outbox.Message) {
	f.Helper()
	times := map[string]int{}
	for _, got := range f.received(len(all)) {
		times[got.ID]++
	}
	for i := range all {
		if n := times[all[i].ID.String()]; n != 1 {
			f.Errorf("message %d arrived %d times", i, n)
		}
	}
}

func (f *fixture) tooLarge() {
	f.need(f.h.TooLarge > 0, "limit to the size of a message")
	p := f.publisher(With{})
	first, huge, last := message("order-1", "1"), message("order-2", large(f.h.TooLarge)), message("order-3", "3")
	errs := f.publish(f.Context(), p, first, huge, last)
	if errs[0] != nil || errs[2] != nil {
		f.Errorf("the others were not taken: %v, %v", errs[0], errs[2])
	}
	f.wantError("a message too large", errs[1], outbox.Rejected, outbox.ReasonTooLarge)
	after := message("order-2", "4")
	f.mustPublish(p, after)
	// A protocol whose only way to refuse is to end the connection may have the others go twice.
	missing := map[string]bool{first.ID.String(): true, last.ID.String(): true, after.ID.String(): true}
	f.await("messages are missing", func() bool {
		for _, got := range f.h.Received(f.T) {
			if got.ID == huge.ID.String() {
				f.Fatal("the message that is too large arrived")
			}
			delete(missing, got.ID)
		}
		return len(missing) == 0
	})
}

func (f *fixture) unfit() {
	p := f.publisher(With{})
	first, bad, last := message("order-1", "1"), message("order-2", "2"), message("order-3", "3")
	bad.Type = "" // the specification asks for one
	errs := f.publish(f.Context(), p, first, bad, last)
	if errs[0] != nil || errs[2] != nil {
		f.Errorf("the others were not taken: %v, %v", errs[0], errs[2])
	}
	f.wantError("a message without a type", errs[1], outbox.Rejected, outbox.ReasonRefused)
	f.each([]outbox.Message{first, last})
}

func (f *fixture) dedupes() {
	f.need(f.h.Deduplicates, "memory of what it already has")
	p := f.publisher(With{})
	twice, after := message("order-1", "1"), message("order-1", "2")
	f.mustPublish(p, twice)
	f.mustPublish(p, twice)
	f.mustPublish(f.publisher(With{}), twice) // as after a crash
	f.mustPublish(p, after)
	f.each([]outbox.Message{twice, after})
}

func (f *fixture) concurrent() {
	const callers, rounds = 8, 10
	p := f.publisher(With{})
	all := make([]outbox.Message, callers*rounds)
	for i := range all {
		all[i] = message(fmt.Sprint("order-", i/rounds), fmt.Sprint(i%rounds))
	}
	failures := make(chan error, len(all))
	f.within("publishing", func() {
		var wait sync.WaitGroup
		for c := range callers {
			wait.Go(func() {
				for i := range rounds {
					failures <- p.Publish(f.Context(), all[c*rounds+i:c*rounds+i+1])[0]
				}
			})
		}
		wait.Wait()
	})
	close(failures)
	for err := range failures {
		if err != nil {
			f.Errorf("a message was not taken: %v", err)
		}
	}
	f.each(all)
}

func (f *fixture) checked() {
	p := f.publisher(With{})
	for range 2 {
		if err := f.check(f.Context(), p); err != nil {
			f.Fatalf("the check failed: %v", err)
		}
	}
	m := message("order-1", "1")
	f.mustPublish(p, m)
	f.each([]outbox.Message{m})
}

func (f *fixture) limits() {
	if l := f.publisher(With{}).Limits(); l.Batch < 1 || l.Parallel < 1 {
		f.Errorf("the limits are %+v", l)
	}
	if n := f.dials.Load(); n != 0 {
		f.Errorf("%d connections were asked for before anything was published", n)
	}
}

func (f *fixture) empty() {
	f.publish(f.Context(), f.publisher(With{}))
}
