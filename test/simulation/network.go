package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// network is what stands between operators and participants: HTTP, and a broker.
type network struct{ w *World }

func newNetwork(w *World) *network { return &network{w: w} }

// headerOutcome is how a participant vouches for its no.
const headerOutcome = "Saga-Outcome"

// RoundTrip sends a request of a node by the fate that it meets.
func (n *node) RoundTrip(req *http.Request) (*http.Response, error) {
	w, key := n.w, req.Header.Get("Idempotency-Key")
	e := w.books.effect(key)
	name := fmt.Sprintf("%s http %s", n.id, e.name)
	name = fmt.Sprintf("%s #%d", name, w.bus.count(name))
	body := ""
	if req.Body != nil {
		data, _ := io.ReadAll(req.Body)
		body = string(data)
	}
	w.books.sending(n, e)
	ctx, callback := req.Context(), req.Header.Get("Saga-Callback")
	f, gaveUp := w.bus.await(ctx, n, request, name)
	if f == failedBefore {
		w.books.notSent(n, e)
		return nil, errors.New("dial tcp: connection refused")
	}
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	e.meet(f)
	handle := func() reply { return w.net.handle(e, body, callback) }
	broken := errors.New("read: connection reset by peer")
	switch f {
	case failedAfter:
		handle()
		return nil, broken
	case hungBefore, hungAfter:
		if f == hungAfter {
			handle()
		}
		if !gaveUp {
			w.bus.hang(ctx, n, name)
		}
		return nil, ctx.Err()
	case repeated:
		handle()
	case late:
		w.later(w.lateness(ctx, e, name), nil, "late "+name, func() { handle() })
		return nil, broken
	case slow:
		w.net.workOn(ctx, e, body, callback, name)
		w.bus.hang(ctx, n, name)
		return nil, ctx.Err()
	case gateway, gatewayDone:
		if f == gatewayDone {
			handle()
		}
		g := w.gatewayFor(name, f == gatewayDone)
		e.gateways = append(e.gateways, g.status)
		return response(req, g.status, g.body, g.typ), nil
	}
	r := handle()
	data, _ := json.Marshal(r.body)
	resp := response(req, r.status, string(data), "application/json")
	if r.vouched {
		resp.Header.Set(headerOutcome, "Rejected")
	}
	return resp, nil
}

func response(req *http.Request, status int, body, typ string) *http.Response {
	h := http.Header{"Content-Type": {typ}}
	return &http.Response{
		StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req, ProtoMajor: 1, ProtoMinor: 1,
	}
}

// lateness draws how much later something arrives. Where nothing but time keeps an undo from overtaking its action, it arrives while its attempt lasts.
func (w *World) lateness(ctx context.Context, e *effect, name string) time.Duration {
	longest := time.Minute
	if until, ok := ctx.Deadline(); ok && !e.saga.barrier {
		longest = max(time.Until(until), time.Millisecond)
	}
	return w.between("lateness", name, 0, longest)
}

// reply is what a participant says.
type reply struct {
	status  int
	vouched bool
	body    map[string]any
}

func (r reply) accepted() bool { return r.status == http.StatusAccepted }

// handle is a participant that gets a request, or a consumer that gets a message.
func (t *network) handle(e *effect, body, callback string) reply {
	if r, known := e.arrive(t.w, body, callback); known {
		return r
	}
	if e.step.later(e.compensation) {
		e.state = pending
		t.schedule(e)
		return reply{status: http.StatusAccepted, body: map[string]any{}}
	}
	return e.decide(t.w)
}

// workOn has a participant take a request whose work takes longer than the caller waits.
func (t *network) workOn(ctx context.Context, e *effect, body, callback, name string) {
	if _, known := e.arrive(t.w, body, callback); known {
		return
	}
	if e.step.later(e.compensation) {
		e.state = pending
		t.schedule(e)
		return
	}
	e.state = working
	t.w.later(t.w.lateness(ctx, e, name), nil, "finish "+name, func() {
		if e.state == working {
			e.state = untouched
			e.decide(t.w)
		}
	})
}

// schedule has a participant do later what it has accepted, and say so.
func (t *network) schedule(e *effect) {
	longest := 12 * time.Second
	if t.w.calm() {
		longest = time.Second
	}
	name := fmt.Sprintf("work on %s %d", e.name, t.w.bus.count("work on "+e.name))
	t.w.later(t.w.between("work", name, 10*time.Millisecond, longest), nil, name, func() {
		if e.state != pending {
			return // withdrawn
		}
		if e.compensation && e.action.state == working { // it waits for the end of what it is to undo
			t.schedule(e)
			return
		}
		e.state = untouched
		for e.busy > 0 { // it tries again by itself
			e.busy--
		}
		e.decide(t.w)
		t.say(e)
	})
}

// say tells the operator what became of something that was accepted.
func (t *network) say(e *effect) {
	no := e.state == refused
	if e.step.kind(e.compensation) == byReply {
		t.w.incoming(brokerIn, "reply "+e.name, func(ctx context.Context, n *node) bool {
			return n.answers.Handle(ctx, "sim/events", answerTo(e, no)) != nil
		})
		return
	}
	for i, url := range e.callbacks {
		token := url[strings.LastIndexByte(url, '/')+1:]
		t.w.incoming(callbackIn, fmt.Sprintf("callback %s %d", e.name, i), func(ctx context.Context, n *node) bool {
			a := engine.CallbackAnswer{Rejected: no, Response: map[string]any{"body": map[string]any{"id": "id-" + e.step.name}}}
			if no {
				a = engine.CallbackAnswer{Rejected: true, Reason: "No", Message: "no"}
			}
			return again(n.callbacks.Answer(ctx, token, a))
		})
	}
}

// again reports whether a callback is worth repeating.
func again(err error) bool {
	for _, final := range []error{engine.ErrNoCallback, engine.ErrCallbackExpired, engine.ErrCallbackUsed, engine.ErrCallbackOver} {
		if errors.Is(err, final) {
			return false
		}
	}
	return err != nil
}

// answerTo is the CloudEvent that answers a message.
func answerTo(e *effect, no bool) outbox.Incoming {
	in := outbox.Incoming{
		Headers: map[string]string{
			"ce-specversion": "1.0", "ce-id": "r-" + e.key, "ce-type": "com.example.done", "ce-source": "/consumer", "ce-correlationid": e.key, "content-type": "application/json",
		},
		Body: []byte(`{"id":"id-` + e.step.name + `"}`),
	}
	if e.saga.index%2 == 0 && e.attempt > 0 { // the others do not know of it
		in.Headers["ce-sagaattempt"] = strconv.Itoa(e.attempt)
	}
	if no {
		in.Headers["ce-sagarejected"], in.Body = "true", []byte(`{"reason":"No","message":"no"}`)
	}
	return in
}

// incoming delivers something to one of the operators until it is taken: at least once.
func (w *World) incoming(c class, name string, try func(ctx context.Context, n *node) (again bool)) {
	taken, tries := false, 0
	var deliver func(f fate)
	send := func() {
		if taken && tries > 0 {
			return
		}
		tries++
		f := w.fateOf(&call{class: c, name: fmt.Sprintf("%s try %d", name, tries)})
		if w.met[c] == nil {
			w.met[c] = map[fate]int{}
		}
		w.met[c][f]++
		if f != done {
			w.faults[fmt.Sprintf("%s try %d", name, tries)] = f
		}
		deliver(f)
	}
	retry := func(d time.Duration) { w.later(d, nil, fmt.Sprintf("%s again %d", name, tries), send) }
	deliver = func(f fate) {
		n := w.nodeFor(fmt.Sprintf("%s %d", name, tries))
		switch {
		case n == nil || f == failedBefore:
			retry(2 * time.Second)
			return
		case f == late:
			w.later(w.pause("lateness", fmt.Sprintf("%s %d", name, tries), time.Minute), nil, fmt.Sprintf("%s late %d", name, tries), func() { deliver(done) })
			return
		case f == repeated: // once more, perhaps much later
			w.later(w.pause("repeated", name, 2*time.Minute), nil, fmt.Sprintf("%s repeated %d", name, tries), func() { deliver(done) })
		}
		this := tries
		ended := false
		n.spawn(fmt.Sprintf("%s %d %s", name, this, f), func(ctx context.Context) func() {
			more := try(ctx, n)
			return func() {
				if ended = true; more || f == failedAfter {
					retry(2 * time.Second)
				} else {
					taken = true
				}
			}
		})
		w.later(30*time.Second, nil, fmt.Sprintf("%s acknowledged %d?", name, this), func() {
			if !ended && !taken {
				send()
			}
		})
	}
	w.later(0, nil, fmt.Sprintf("%s arrives %d", name, w.bus.count("arrives "+name)), send) // each by itself: two at once would go on in any order
}

// pause draws a time up to longest, or takes it from the script.
func (w *World) pause(kind, name string, longest time.Duration) time.Duration {
	if w.Script != nil {
		return w.Script.Delays[kind+" "+name]
	}
	return w.between(kind, name, 0, longest)
}

// nodeFor picks a node that is up; nil when none is.
func (w *World) nodeFor(name string) *node {
	first := w.below("node", name, len(w.nodes))
	for i := range w.nodes {
		if n := w.nodes[(first+i)%len(w.nodes)]; n.state == nodeUp {
			return n
		}
	}
	return nil
}

// Sink implements message.Sinks: the one sink that there is.
func (n *node) Sink(string) (outbox.Sink, bool) {
	return outbox.Sink{ID: "events", Name: "sim/events", Publisher: &publisher{n}, Replies: "replies"}, true
}

// publisher is a node's connection to the broker.
type publisher struct{ n *node }

func (p *publisher) Check(context.Context) error { return nil }
func (p *publisher) Limits() outbox.Limits       { return outbox.Limits{Batch: 1, Parallel: 1} }
func (p *publisher) Close() error                { return nil }

// Publish implements outbox.Publisher.
func (p *publisher) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := make([]error, len(all))
	for i := range all {
		errs[i] = p.publish(ctx, &all[i])
	}
	return errs
}

func (p *publisher) publish(ctx context.Context, m *outbox.Message) error {
	w, n := p.n.w, p.n
	e := w.books.effect(m.Metadata.CorrelationID)
	name := fmt.Sprintf("%s publish %s", n.id, e.name)
	name = fmt.Sprintf("%s #%d", name, w.bus.count(name))
	w.books.sending(n, e)
	f, gaveUp := w.bus.await(ctx, n, publish, name)
	open := &outbox.Error{Kind: outbox.Unavailable, Reason: outbox.ReasonTimeout, Open: true, Err: errors.New("the connection broke before the broker's answer")}
	e.meet(f)
	switch f {
	case failedBefore:
		w.books.notSent(n, e)
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "connection refused")
	case failedAfter:
		w.net.take(e, m, name)
		return open
	case hungBefore, hungAfter:
		if f == hungAfter {
			w.net.take(e, m, name)
		}
		if !gaveUp {
			w.bus.hang(ctx, n, name)
		}
		return open
	case repeated:
		w.net.take(e, m, name)
	case late:
		w.later(w.between("lateness", name, 0, time.Minute), nil, "late "+name, func() { w.net.take(e, m, name) })
		return open
	}
	w.net.take(e, m, name)
	return nil
}

// take is a broker that gets a message. Where nobody replies, that is the whole effect.
func (t *network) take(e *effect, m *outbox.Message, name string) {
	body, attempt := string(m.Data), m.Attempt
	if !e.step.later(e.compensation) {
		t.handle(e, body, "")
		return
	}
	longest := 3 * time.Second
	if t.w.calm() {
		longest = time.Millisecond
	}
	name = fmt.Sprintf("%s to consumer %d", name, t.w.bus.count("consume "+name))
	t.w.later(t.w.between("consume", name, 0, longest), nil, name, func() {
		e.attempt = attempt
		switch r := t.handle(e, body, ""); {
		case r.accepted():
		case r.status == http.StatusConflict && !r.vouched: // what it is to undo is still at work
			t.w.later(time.Second, nil, name+" again", func() { t.take(e, m, name) })
		default:
			t.say(e)
		}
	})
}
