package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
)

// How a shard polls when nobody wakes it, and how often it puts down a checkpoint that has moved.
const (
	minPoll   = 5 * time.Millisecond
	maxPoll   = time.Second
	saveEvery = 100 * time.Millisecond
	// checkEvery is how old the certainty may be that a lease is held when messages are handed over. It is how long a relay goes on whose lease was taken by force.
	checkEvery = 100 * time.Millisecond
	// commandsEvery is how often the lease is renewed at least, and people's commands are looked for.
	commandsEvery = time.Second
	// lastCalls is how long calls under way may go on when a shard is given up of its own accord.
	lastCalls = 5 * time.Second
)

// shard publishes the keys of one shard of a sink while it holds the lease.
type shard struct {
	*Relay
	sink    *Sink
	limits  Limits
	log     *slog.Logger
	parking parking
	tend    chan struct{} // there may be something to do with what is parked

	mu       sync.Mutex // guards reader, which the keeper reads too
	reader   reader
	checked  time.Time // when the lease was last known to be held
	valid    time.Time // until when it is held, if nobody takes it by force
	reload   atomic.Bool
	saved    time.Time
	dirty    bool // the checkpoint has moved since it was put down
	unsaved  int  // published since then
	troubled string
	trouble  sync.Mutex
}

func newShard(r *Relay, s *Sink, at reader) *shard {
	limits := s.Publisher.Limits()
	limits.Batch, limits.Parallel = max(limits.Batch, 1), max(limits.Parallel, 1)
	return &shard{
		Relay: r, sink: s, limits: limits, log: r.log.With("sink", s.Name, "shard", at.shard), reader: at,
		parking: parking{keys: map[string]*parkedKey{}}, tend: make(chan struct{}, 1), checked: time.Now(), valid: time.Now().Add(r.lease), saved: time.Now(),
	}
}

// run publishes until ctx is done, which lets what is on its way arrive, or until the lease is lost, which does not.
func (s *shard) run(ctx context.Context) (err error) {
	hard, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	stopping := context.AfterFunc(ctx, func() { time.AfterFunc(lastCalls, func() { giveUp(context.Canceled) }) })
	defer stopping()
	keys, err := loadParked(ctx, s.pool, &s.reader)
	if err == nil {
		err = s.lookUp(ctx, keys)
	}
	if err != nil {
		return errors.Join(unlessStopped(ctx, err), s.letGo(ctx))
	}
	soft, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.keep(soft, giveUp, stop) })
	wg.Go(func() { s.tendParked(soft, hard) })
	err = s.follow(soft, hard)
	stop()
	wg.Wait()
	if isStale(context.Cause(hard)) {
		return errStale
	}
	return errors.Join(err, s.letGo(ctx))
}

// letGo puts the checkpoint down and gives the lease back.
func (s *shard) letGo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCalls)
	defer cancel()
	if s.dirty {
		if err := s.save(ctx); err != nil {
			return err
		}
	}
	return s.reader.release(ctx, s.pool)
}

// keep renews the lease. When it is lost, whatever is under way is given up.
func (s *shard) keep(ctx context.Context, giveUp context.CancelCauseFunc, stop func()) {
	for sleep(ctx, min(s.lease/3, commandsEvery)) == nil {
		sent := time.Now()
		s.mu.Lock()
		r, valid := s.reader, s.valid
		s.mu.Unlock()
		one, cancel := context.WithDeadline(ctx, valid)
		commands, err := r.renew(one, s.pool, s.lease)
		cancel()
		s.mu.Lock()
		if err == nil {
			s.checked, s.valid = sent, sent.Add(s.lease)
			if commands != s.reader.commands {
				s.reader.commands = commands
				s.reload.Store(true)
				s.wakeParked()
			}
		}
		expired := !time.Now().Before(s.valid)
		s.mu.Unlock()
		if isStale(err) || expired {
			giveUp(errStale)
			stop()
			return
		}
	}
}

// checkLease makes sure, as far as that can be, that the lease is held before something is published.
func (s *shard) checkLease(ctx context.Context) error {
	s.mu.Lock()
	fresh := time.Since(s.checked) < checkEvery
	r := s.reader
	s.mu.Unlock()
	if fresh {
		return nil
	}
	sent := time.Now()
	if _, err := r.verify(ctx, s.pool); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked = sent
	return nil
}

// page is a part of the outbox that has been read, or the reason why not.
type page struct {
	storepg.MessagePage
	err error
}

// follow reads page after page and publishes it. While one is published the next is read.
func (s *shard) follow(ctx, hard context.Context) error {
	pause := minPoll
	var ahead chan page
	for ctx.Err() == nil {
		wake := s.wake.subscribe()
		var p page
		if ahead != nil {
			p = <-ahead
			ahead = nil
		} else {
			p = s.readFrom(ctx, s.current())
		}
		if p.err != nil {
			return unlessStopped(ctx, p.err)
		}
		if p.More {
			ahead = make(chan page, 1)
			next := s.at(&p)
			go func() { ahead <- s.readFrom(ctx, next) }()
		}
		moved, err := s.handle(ctx, hard, &p)
		if err != nil {
			return err
		}
		if moved || p.More {
			pause = minPoll
			continue
		}
		if err := s.rest(ctx, wake, pause); err != nil {
			return err
		}
		pause = min(pause*2, maxPoll)
	}
	return nil
}

// unlessStopped is an error, unless it only says that ctx is done: that is no fault.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// at is the reader behind a page.
func (s *shard) at(p *page) reader {
	r := s.current()
	r.checkpoint = p.Next
	return r
}

// current is the reader as it is now.
func (s *shard) current() reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reader
}

func (s *shard) readFrom(ctx context.Context, r reader) page {
	p, err := storepg.ReadOutbox(ctx, s.pool, r.checkpoint, r.shard, r.shards, s.page)
	return page{p, err}
}

// rest is until something has been committed, the pause is over, or a checkpoint wants to be put down.
func (s *shard) rest(ctx context.Context, wake <-chan struct{}, pause time.Duration) error {
	if s.dirty {
		if left := saveEvery - time.Since(s.saved); left <= 0 {
			if err := s.save(ctx); err != nil {
				return err
			}
		} else {
			pause = min(pause, left)
		}
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// handle publishes a page and moves the checkpoint behind it. It reports whether there was anything in it.
func (s *shard) handle(ctx, hard context.Context, p *page) (bool, error) {
	if len(p.Messages) == 0 {
		s.move(p, 0, 0)
		return false, nil
	}
	for s.parking.full() {
		s.tellTrouble(ctx, Errorf(Unavailable, ReasonRefused, "publishing to sink %s: so many messages have failed that no more are tried before some of them go through or are dropped", s.sink.Name))
		if err := sleep(ctx, maxPoll); err != nil {
			return false, unlessStopped(ctx, err) // nothing of the page has been touched
		}
	}
	all := make([]Message, len(p.Messages))
	for i := range p.Messages {
		all[i] = Message{p.Messages[i]}
	}
	d := s.newDelivery(all)
	d.run(ctx, hard)
	if isStale(context.Cause(hard)) {
		return true, errStale
	}
	n := d.prefix()
	err := s.commit(hard, p, d, n)
	s.parking.settled(d.held)
	if len(d.held) > 0 {
		s.wakeParked()
	}
	if d.published > 0 {
		s.tellTrouble(ctx, nil)
	}
	if err == nil && d.unsure != nil {
		err = fmt.Errorf("publishing to sink %s, when it could not be said whether its lease is still held: %w", s.sink.Name, d.unsure)
	}
	return true, err
}

// move makes the end of the first n messages of a page the checkpoint, in memory. What of them is to be parked has to be put down with it.
func (s *shard) move(p *page, n, published int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := p.After(n)
	s.dirty = s.dirty || published > 0 || n > 0 || next.Floor > s.reader.checkpoint.Floor || time.Since(s.saved) > s.lease/3
	s.reader.checkpoint = next
	s.unsaved += published
}

// commit moves the checkpoint behind the first n messages of a page. Where messages are to be parked that happens with it, in one transaction; otherwise it is put down now and
// then, and what was published since then is published again after a crash.
func (s *shard) commit(ctx context.Context, p *page, d *delivery, n int) error {
	before := s.current().checkpoint
	s.move(p, n, d.published)
	parked := d.parkedBefore(n)
	if len(parked) == 0 && s.unsaved < s.page && time.Since(s.saved) < saveEvery {
		return nil
	}
	if len(parked) == 0 {
		return s.save(ctx)
	}
	err := s.persist(ctx, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if err := insertParked(ctx, tx, &s.reader, parked); err != nil {
				return err
			}
			return s.reader.save(ctx, tx, s.unsaved, s.lease)
		})
	})
	if err != nil { // the last save must not pass over what is not parked
		s.mu.Lock()
		s.reader.checkpoint = before
		s.mu.Unlock()
	}
	return err
}

// save puts the checkpoint down.
func (s *shard) save(ctx context.Context) error {
	return s.persist(ctx, func(ctx context.Context) error { return s.reader.save(ctx, s.pool, s.unsaved, s.lease) })
}

// persist writes, again and again while the lease lasts: what has been published would be published again otherwise.
func (s *shard) persist(ctx context.Context, write func(context.Context) error) error {
	for {
		sent := time.Now()
		err := write(ctx)
		if err == nil {
			s.mu.Lock()
			s.dirty, s.unsaved, s.saved = false, 0, time.Now()
			s.checked, s.valid = sent, sent.Add(s.lease)
			s.mu.Unlock()
			return nil
		}
		s.mu.Lock()
		over := time.Now().After(s.valid)
		s.mu.Unlock()
		if isStale(err) || over || ctx.Err() != nil {
			return fmt.Errorf("putting down how far sink %s has read: %w", s.sink.Name, err)
		}
		if sleep(ctx, minUnavailable) != nil {
			return err
		}
	}
}

// tellTrouble records why the sink takes nothing, once for each reason; nil that it does.
func (s *shard) tellTrouble(ctx context.Context, e *Error) {
	s.trouble.Lock()
	defer s.trouble.Unlock()
	var t *trouble
	reason := ""
	if e != nil {
		reason = e.Reason
		t = &trouble{Reason: e.Reason, Message: clip(e.Error()), At: time.Now().UTC()}
	}
	if reason == s.troubled {
		return
	}
	r := s.current()
	if err := r.report(ctx, s.pool, t); err != nil {
		return // the next time
	}
	s.troubled = reason
	if e != nil {
		s.log.Warn("a sink takes nothing; its messages wait", "reason", e.Reason, "error", e)
	} else {
		s.log.Info("a sink takes messages again")
	}
}
