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
	// saveIdle is the same where nothing was published: whatever is committed in the cluster moves it.
	saveIdle = time.Second
	// checkEvery is how old the certainty may be that a lease is held when messages are handed over. It is how long a relay goes on whose lease was taken by force.
	checkEvery = 100 * time.Millisecond
	// commandsEvery is how often the lease is renewed at least, and people's commands are looked for.
	commandsEvery = time.Second
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
	moved    bool // the checkpoint has, since it was put down
	unsaved  int  // published since then
	troubled string
	trouble  sync.Mutex

	// through counts what has gone through; inARow the keys of which a message has failed since.
	through, inARow atomic.Int64
	// fits is how many messages are read at once, by the size of the last ones.
	fits atomic.Int64
	// refused is what judge remembers of the keys that are parked; away is true while none of them is taken for the sink's sake, and one at a time is tried.
	refused map[string]int64
	away    bool
}

func newShard(r *Relay, s *Sink, at reader, log *slog.Logger) *shard {
	limits := s.Publisher.Limits()
	limits.Batch, limits.Parallel = max(limits.Batch, 1), max(limits.Parallel, 1)
	sh := &shard{
		Relay: r, sink: s, limits: limits, log: log, reader: at, troubled: at.troubled, refused: map[string]int64{},
		parking: parking{keys: map[string]*parkedKey{}}, tend: make(chan struct{}, 1), checked: time.Now(), valid: time.Now().Add(r.lease), saved: time.Now(),
	}
	sh.fits.Store(int64(r.page))
	return sh
}

// run publishes until ctx is done, which lets what is on its way arrive, or until the lease is lost, which does not. Where code of it panics it ends without giving the lease back.
func (s *shard) run(ctx context.Context) (err error) {
	hard, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	if err := s.loadParking(ctx); err != nil {
		return errors.Join(unlessStopped(ctx, err), s.letGo(ctx))
	}
	soft, stop := context.WithCancel(ctx)
	defer stop()
	stopping := context.AfterFunc(soft, func() { time.AfterFunc(s.lastCalls, func() { giveUp(context.Canceled) }) })
	defer stopping()
	var wg sync.WaitGroup
	var errs [3]error
	edge := func(i int, doing string, f func() error) {
		errs[i] = caught(s.log, doing, f)
		if panicked(errs[i]) {
			stop()
		}
	}
	wg.Go(func() {
		edge(0, "keeping the lease of a shard", func() error { s.keep(soft, giveUp, stop); return nil })
	})
	wg.Go(func() {
		edge(1, "looking after parked messages", func() error { s.tendParked(soft, hard); return nil })
	})
	edge(2, "publishing messages", func() error { return s.follow(soft, hard) })
	stop()
	wg.Wait()
	err = errors.Join(errs[:]...)
	switch {
	case isStale(context.Cause(hard)):
		return errStale
	case panicked(err):
		return err
	}
	return errors.Join(err, s.letGo(ctx))
}

// loadParking looks up what is parked.
func (s *shard) loadParking(ctx context.Context) error {
	keys, err := loadParked(ctx, s.pool, &s.reader)
	if err == nil {
		err = s.lookUp(ctx, keys)
	}
	waiting, _ := s.parking.count()
	s.inARow.Store(int64(waiting)) // as far as this shard knows nothing has gone through since they failed
	return err
}

// letGo puts the checkpoint down and gives the lease back.
func (s *shard) letGo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.lastCalls)
	defer cancel()
	if s.moved {
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

// follow reads page after page and publishes it. While one is published the next is read, once the sink has shown that it takes messages.
func (s *shard) follow(ctx, hard context.Context) error {
	pause := s.minPoll
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
		moved, err := s.handle(ctx, hard, &p, func() {
			if p.More && ahead == nil {
				ahead = make(chan page, 1)
				next := s.at(&p)
				go func() { ahead <- s.readFrom(ctx, next) }()
			}
		})
		if err != nil {
			return err
		}
		if moved || p.More {
			pause = s.minPoll
			continue
		}
		if err := s.rest(ctx, wake, pause); err != nil {
			return err
		}
		pause = min(pause*2, s.maxPoll)
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

func (s *shard) readFrom(ctx context.Context, r reader) (p page) {
	p.err = caught(s.log, "reading messages", func() (err error) {
		p.MessagePage, err = storepg.ReadOutbox(ctx, s.pool, r.checkpoint, r.shard, r.shards, int(s.fits.Load()), s.bytes)
		return err
	})
	if n := len(p.Messages); n > 0 {
		size := 0
		for i := range p.Messages {
			size += len(p.Messages[i].Data)
		}
		s.fits.Store(int64(min(max(s.bytes/max(size/n, 1), 1), s.page))) // the next are likely as large
	}
	return p
}

// rest is until something has been committed, the pause is over, or a checkpoint wants to be put down.
func (s *shard) rest(ctx context.Context, wake <-chan struct{}, pause time.Duration) error {
	if s.due() {
		if err := s.save(ctx); err != nil {
			return err
		}
	}
	if s.moved {
		pause = min(pause, s.saveAfter()-time.Since(s.saved))
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

// handle publishes a page and moves the checkpoint behind it; takes is called when the sink has taken something of it. It reports whether there was anything in it.
func (s *shard) handle(ctx, hard context.Context, p *page, takes func()) (bool, error) {
	if len(p.Messages) == 0 {
		s.move(p, 0, 0)
		if waiting, _ := s.parking.count(); waiting == 0 && !p.More {
			s.tellTrouble(ctx, nil) // there is nothing that the sink could take
		}
		return false, nil
	}
	all := make([]Message, len(p.Messages))
	for i := range p.Messages {
		all[i] = Message{RecordedMessage: p.Messages[i]}
	}
	for obstacle := s.obstacle(ctx, all); obstacle != nil; obstacle = s.obstacle(ctx, all) {
		s.tellTrouble(ctx, obstacle)
		if err := sleep(ctx, maxPoll); err != nil {
			return false, unlessStopped(ctx, err) // nothing of the page has been touched
		}
	}
	d := s.newDelivery(all)
	d.takes = takes
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

// obstacle is why the messages of a page cannot be published at the moment, before any is tried.
func (s *shard) obstacle(ctx context.Context, all []Message) *Error {
	if s.parking.full(s.refusesAll()) {
		return Errorf(Unavailable, ReasonRefused, "publishing to sink %s: so many messages have failed that no more are tried before some of them go through or are dropped", s.sink.Name)
	}
	if s.sink.Prepare == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.sink.Timeout)
	defer cancel()
	if err := s.sink.Prepare(ctx, all); err != nil {
		return Errorf(Unavailable, ReasonUndecided, "publishing to sink %s: it cannot be said at the moment which messages it wants: %w", s.sink.Name, err)
	}
	return nil
}

// move makes the end of the first n messages of a page the checkpoint, in memory. What of them is to be parked has to be put down with it.
func (s *shard) move(p *page, n, published int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := p.After(n)
	s.moved = s.moved || published > 0 || n > 0 || next.Floor > s.reader.checkpoint.Floor || time.Since(s.saved) > s.lease/3
	s.reader.checkpoint = next
	s.unsaved += published
}

// saveAfter is how long a checkpoint that has moved may wait until it is put down. One that nothing was published for saves others some reading at most, and is not worth much.
func (s *shard) saveAfter() time.Duration {
	if s.unsaved > 0 {
		return saveEvery
	}
	return min(s.lease/3, saveIdle)
}

// due reports whether the checkpoint is to be put down.
func (s *shard) due() bool {
	return s.moved && (s.unsaved >= s.page || time.Since(s.saved) >= s.saveAfter())
}

// commit moves the checkpoint behind the first n messages of a page. Where messages are to be parked that happens with it, in one transaction; otherwise it is put down now and
// then, and what was published since then is published again after a crash.
func (s *shard) commit(ctx context.Context, p *page, d *delivery, n int) error {
	before := s.current().checkpoint
	s.move(p, n, d.published)
	parked := d.parkedBefore(n)
	if len(parked) == 0 {
		if s.due() {
			return s.save(ctx)
		}
		return nil
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
			s.moved, s.unsaved, s.saved = false, 0, time.Now()
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
