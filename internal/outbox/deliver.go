package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/vextrus/saga-operator/internal/panics"
)

// How long a shard leaves a sink alone that takes nothing. It is short, because whoever has mended a broker wants to see it drain.
const (
	minUnavailable = 200 * time.Millisecond
	maxUnavailable = 5 * time.Second
	// maxAsked bounds the pause that a destination may ask for.
	maxAsked = 5 * time.Minute
	// fewRefusals is how often in a row a gateway refuses before what is left of a page is put aside.
	fewRefusals = 3
)

// delivery is the messages of a page on their way: at most one of each key at a time, as many keys at once as the publisher likes.
type delivery struct {
	*shard
	all []Message
	// queues are the places in all of what is left of each key, in order; ready the keys of which nothing is on its way.
	queues map[string][]int
	ready  []string
	// settled says of each message whether it has been dealt with; parked what becomes of those that were not published.
	settled []bool
	parked  map[int]parkedMessage
	// held are the keys that the shard's parking has to be told about when the page is committed, one for each call.
	held      []string
	published int
	// takes is told when the sink has taken something.
	takes func()

	flying  int
	results chan flown
	// refusals counts how often in a row the sink took nothing.
	refusals int
	trouble  *Error
	// refused is what judge remembers of each key, why the last refusal for the sink's sake.
	refused map[string]int64
	why     map[string]*Error
	// unsure is why it could not be said whether the lease is still held. The page is given up then, and the shard with it: what is settled behind the first message that is
	// not is known here only.
	unsure error
}

// flown is what a call of the publisher came to.
type flown struct {
	places []int
	errs   []error
}

// newDelivery sorts out a page: what the sink does not want is settled, what belongs to a parked key is to be parked.
func (s *shard) newDelivery(all []Message) *delivery {
	d := &delivery{
		shard: s, all: all, queues: map[string][]int{}, settled: make([]bool, len(all)), parked: map[int]parkedMessage{}, results: make(chan flown),
		refused: map[string]int64{}, why: map[string]*Error{},
	}
	following := map[string]bool{} // keys that were parked before
	for i := range all {
		m := &all[i]
		switch {
		case !s.sink.wants(m):
			d.settled[i] = true
		case following[m.Key]:
			d.park(i, nil)
		case len(d.queues[m.Key]) > 0:
			d.queues[m.Key] = append(d.queues[m.Key], i)
		case s.parking.holds(m.Key):
			following[m.Key] = true
			d.held = append(d.held, m.Key)
			d.park(i, nil)
		default:
			d.queues[m.Key] = []int{i}
			d.ready = append(d.ready, m.Key)
		}
	}
	return d
}

// wants reports whether a sink takes a message: one that names it, or one that names nobody and that it has chosen.
func (s *Sink) wants(m *Message) bool {
	if m.Destination != "" {
		return m.Destination == s.Name
	}
	return s.Wants == nil || s.Wants(m)
}

// park settles a message by parking it.
func (d *delivery) park(place int, failure *Error) {
	p := parkedMessage{message: &d.all[place], failure: failure}
	if failure != nil {
		p.dead = failure.Kind == Rejected || failure.Kind == Failed && d.sink.Retry.MaxAttempts <= 1
		p.pause = max(d.sink.Retry.pause(1), min(failure.RetryAfter, maxAsked))
	}
	d.parked[place] = p
	d.settled[place] = true
}

// run publishes the page. It returns when all is settled, or when ctx is done and nothing is on its way any more. What is on its way is only given up with hard.
func (d *delivery) run(ctx, hard context.Context) {
	defer d.drain()
	for {
		for d.trouble == nil && d.unsure == nil && ctx.Err() == nil && len(d.ready) > 0 && d.flying < d.room() {
			if d.unsure = d.checkLease(hard); d.unsure != nil {
				break
			}
			d.launch(hard)
		}
		switch {
		case d.flying > 0:
			d.land(<-d.results)
		case len(d.ready) == 0 || d.unsure != nil || ctx.Err() != nil || hard.Err() != nil:
			return
		case d.stuck():
			d.putAside(ctx)
		default:
			d.holdOff(ctx)
		}
	}
}

// drain waits for what is on its way, where a panic has left it there: nobody else may publish those keys before.
func (d *delivery) drain() {
	for ; d.flying > 0; d.flying-- {
		<-d.results
	}
}

// probing reports whether one message is enough to see whether the sink, which took nothing, does again.
func (d *delivery) probing() bool { return d.refusals > 0 || d.refusesAll() }

// room is how many calls may be under way.
func (d *delivery) room() int {
	if d.probing() {
		return 1
	}
	return d.limits.Parallel
}

// launch hands messages of different keys to the publisher.
func (d *delivery) launch(hard context.Context) {
	n := min(d.limits.Batch, len(d.ready))
	if d.probing() {
		n = 1
	}
	places, messages := make([]int, n), make([]Message, n)
	for i, key := range d.ready[:n] {
		places[i] = d.queues[key][0]
		messages[i] = d.all[places[i]]
	}
	d.ready = d.ready[n:]
	d.flying++
	go func() { d.results <- flown{places, d.publish(hard, messages)} }()
}

// land takes the results of a call.
func (d *delivery) land(f flown) {
	d.flying--
	d.went(succeeded(f.errs[:len(f.places)]))
	for i, place := range f.places {
		key := d.all[place].Key
		err := asError(f.errs[i])
		if err != nil {
			before := d.refused[key]
			err = d.judge(err, &before)
			d.refused[key] = before
		}
		switch {
		case err == nil:
			d.settled[place] = true
			d.published++
			d.refusals = 0
			d.takes()
			if len(d.refused) > 0 {
				delete(d.refused, key)
			}
			d.metrics.took(d.sink.Name, time.Since(d.all[place].RecordedAt))
			d.queues[key] = d.queues[key][1:]
			if len(d.queues[key]) > 0 {
				d.ready = append(d.ready, key)
			}
		case err.Kind == Unavailable:
			d.trouble, d.why[key] = err, err
			d.ready = append(d.ready, key)
		default:
			dead := d.park1(key, err)
			d.metrics.failed(d.sink.Name, dead)
			if dead {
				d.died(&d.all[place], 1, err)
			}
			if err.Kind == Failed {
				d.inARow.Add(1)
			}
		}
	}
}

// succeeded is how many of some results are good.
func succeeded(errs []error) (n int) {
	for _, err := range errs {
		if err == nil {
			n++
		}
	}
	return n
}

// park1 parks what is left of a key, the first of which has failed, and reports whether that is a dead letter.
func (d *delivery) park1(key string, err *Error) bool {
	left := d.queues[key]
	for i, place := range left {
		if i == 0 {
			d.park(place, err)
		} else {
			d.park(place, nil)
		}
	}
	d.parking.park(key)
	d.held = append(d.held, key)
	delete(d.queues, key)
	return d.parked[left[0]].dead
}

// stuck reports whether a gateway has refused all that is left of the page. Whether the destination behind it is away, or these messages bring it down, only others can tell.
func (d *delivery) stuck() bool {
	if !d.trouble.Open || d.refusals < fewRefusals {
		return false
	}
	for _, key := range d.ready {
		if d.refused[key] == 0 {
			return false
		}
	}
	return true
}

// putAside parks what is left of the page, so that others are read. It is tried again beside them, and no attempt counts before others have gone through.
func (d *delivery) putAside(ctx context.Context) {
	d.tellTrouble(ctx, d.trouble)
	for _, key := range d.ready {
		d.park1(key, d.why[key])
	}
	d.ready, d.trouble = nil, nil
}

// holdOff leaves a sink alone that takes nothing.
func (d *delivery) holdOff(ctx context.Context) {
	d.refusals++
	d.tellTrouble(ctx, d.trouble)
	longest := min(minUnavailable<<min(d.refusals-1, 10), maxUnavailable)
	pause := max(longest/2+rand.N(longest/2+1), min(d.trouble.RetryAfter, maxAsked))
	d.trouble = nil
	_ = sleep(ctx, pause)
}

// prefix is how many messages at the beginning of the page are settled.
func (d *delivery) prefix() int {
	for i, done := range d.settled {
		if !done {
			return i
		}
	}
	return len(d.settled)
}

// parkedBefore returns what is to be parked of the first n messages, in order.
func (d *delivery) parkedBefore(n int) []parkedMessage {
	var all []parkedMessage
	for i := range n {
		if p, ok := d.parked[i]; ok {
			all = append(all, p)
		}
	}
	return all
}

// publish calls the publisher. Whatever it does, there is an answer for each message.
func (s *shard) publish(ctx context.Context, all []Message) (errs []error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.sink.Timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			panics.Report(s.log, "publishing to a sink", p)
			errs = nil
			for range all {
				errs = append(errs, Errorf(Failed, ReasonRefused, "publishing: the publisher's code panicked: %v", p))
			}
		}
		s.metrics.called(s.sink.Name, time.Since(began))
	}()
	errs = s.sink.Publisher.Publish(ctx, all)
	for len(errs) < len(all) {
		errs = append(errs, Errorf(Failed, ReasonRefused, "publishing: the publisher answered %d times to %d messages", len(errs), len(all)))
	}
	return errs
}

func asError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: Failed, Reason: ReasonRefused, Err: fmt.Errorf("publishing: %w", err)}
}

// pause is how long to wait after so many attempts: full jitter, which spreads those that failed together.
func (r *Retry) pause(attempts int) time.Duration {
	longest := r.InitialBackoff
	for range attempts - 1 {
		if longest >= r.MaxBackoff/2 {
			longest = r.MaxBackoff
			break
		}
		longest *= 2
	}
	return rand.N(max(min(longest, r.MaxBackoff), 1))
}

// sleep is until the pause is over, or ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
