package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/panics"
)

// What a relay does where Options does not say.
const (
	DefaultShards = 4
	DefaultLease  = 10 * time.Second
	DefaultPage   = 2000
	// pageBytes bounds the data of the messages that are read at once, but for the last of them.
	pageBytes = 4 << 20
	// superviseEvery is how often shards are looked for that nobody publishes.
	superviseEvery = time.Second
	// lastCalls is how long calls under way may go on when a shard is given up of its own accord, and how long giving it back may take; lastWord how long the others are told that this relay ends.
	lastCalls = 5 * time.Second
	lastWord  = time.Second
)

// Options are what a relay works with. Pool is required.
type Options struct {
	Pool *pgxpool.Pool
	// Owner names this process in the leases; made up by default.
	Owner string
	// Lease is how long a relay that has died holds its shards up; DefaultLease by default.
	Lease time.Duration
	// Shards is how many shards a new sink is read in, which is how many relays can share it; 1 to 64, DefaultShards by default. A sink keeps what it began with.
	Shards int
	// Partition is how many positions a partition of the log has; 500,000 by default.
	Partition int64
	// Page is how many messages are read at once, and so how many are published again at most after a crash, in each shard; DefaultPage by default.
	Page    int
	Logger  *slog.Logger
	Metrics prometheus.Registerer
	tests   onlyInTests
	// OnReply, where given, gets what arrives at the sinks' reply addresses. After an error the message comes again.
	OnReply func(ctx context.Context, sink string, in Incoming) error
}

// onlyInTests is what nobody else says otherwise.
type onlyInTests struct {
	poll  time.Duration
	bytes int
	last  time.Duration
}

// Relay publishes the messages of an outbox to sinks. Any number of processes may run one each: leases in the database share the shards among them, evenly, and one that has
// lost a lease publishes no more.
type Relay struct {
	pool    *pgxpool.Pool
	owner   string
	lease   time.Duration
	shards  int
	page    int
	bytes   int   // of the data of a page
	size    int64 // of a partition
	log     *slog.Logger
	metrics *metrics
	wake    wake
	changed chan struct{} // the sinks have
	// minPoll and maxPoll bound the pause between two looks of a shard that nobody wakes.
	minPoll, maxPoll time.Duration
	// lastCalls and lastWord bound the end.
	lastCalls, lastWord time.Duration
	onReply             func(ctx context.Context, sink string, in Incoming) error

	mu    sync.Mutex
	sinks map[string]*served
	// reported are the names of the sinks whose backlogs this process says.
	reported map[string]bool
}

// served is a sink that this process publishes to.
type served struct {
	sink   Sink
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	shards map[int]*held // those that are this process'
}

// held is a shard that this process publishes.
type held struct {
	cancel context.CancelFunc
	ending bool // it is being given up
}

// NewRelay returns a relay that knows no sink yet.
func NewRelay(o Options) (*Relay, error) {
	const maxShards = 64 // the slots that keys are spread over
	if o.Pool == nil {
		return nil, errors.New("making a relay: Pool is required")
	}
	if o.Shards < 0 || o.Shards > maxShards {
		return nil, fmt.Errorf("making a relay: %d shards are not between 1 and %d", o.Shards, maxShards)
	}
	r := &Relay{pool: o.Pool, owner: o.Owner, lease: o.Lease, shards: o.Shards, page: o.Page, size: o.Partition, log: o.Logger, changed: make(chan struct{}, 1), onReply: o.OnReply, sinks: map[string]*served{}}
	if r.owner == "" {
		host, _ := os.Hostname() // a name for people; without it the rest is enough
		r.owner = host + "_" + uuid.NewString()
	}
	if r.lease <= 0 {
		r.lease = DefaultLease
	}
	if r.shards == 0 {
		r.shards = DefaultShards
	}
	if r.page <= 0 {
		r.page = DefaultPage
	}
	if r.size <= 0 {
		r.size = partitionSize
	}
	if r.bytes = o.tests.bytes; r.bytes <= 0 {
		r.bytes = pageBytes
	}
	r.minPoll, r.maxPoll = minPoll, maxPoll
	if o.tests.poll > 0 {
		r.minPoll, r.maxPoll = o.tests.poll, o.tests.poll
	}
	r.lastCalls, r.lastWord = lastCalls, lastWord
	if o.tests.last > 0 {
		r.lastCalls, r.lastWord = o.tests.last, o.tests.last
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	var err error
	r.metrics, err = newMetrics(o.Metrics)
	return r, err
}

// Wake tells the relay that something has been committed, so that it need not wait for its next poll. It never blocks.
func (r *Relay) Wake() { r.wake.signal() }

// Begin says that there is a sink, which may not be ready to be set: what is committed from now on waits for it. One that has begun goes on where it is.
func (r *Relay) Begin(ctx context.Context, id, name string) error {
	return ensureReaders(ctx, r.pool, id, name, r.shards)
}

// Set adds a sink, or puts it in the place of the one with its ID: what is on its way still goes where it was to go, and everything after that the new way. The relay closes the
// publisher when the sink is replaced or removed, or Run ends. A sink that has not begun gets what is committed from now on.
func (r *Relay) Set(ctx context.Context, s Sink) error {
	const usualTimeout = 10 * time.Second
	if s.ID == "" || s.Publisher == nil {
		return errors.New("adding a sink: ID and Publisher are required")
	}
	if s.Timeout <= 0 {
		s.Timeout = usualTimeout
	}
	s.Retry.MaxAttempts = max(s.Retry.MaxAttempts, 1)
	if err := r.Begin(ctx, s.ID, s.Name); err != nil {
		return err
	}
	own, cancel := context.WithCancel(context.Background())
	r.mu.Lock()
	old := r.sinks[s.ID]
	now := &served{sink: s, ctx: own, cancel: cancel, shards: map[int]*held{}}
	r.sinks[s.ID] = now
	r.metrics.begin(s.Name)
	r.listen(now)
	r.mu.Unlock()
	r.end(old)
	r.nudge()
	return nil
}

// Remove stops publishing to a sink. What was read and parked for it is kept, for when it comes back; Forget drops that.
func (r *Relay) Remove(id string) {
	r.mu.Lock()
	old := r.sinks[id]
	delete(r.sinks, id)
	r.mu.Unlock()
	r.end(old)
	r.nudge()
}

// end lets a sink finish what is on its way, and closes its publisher then.
func (r *Relay) end(s *served) {
	if s == nil {
		return
	}
	s.cancel()
	go func() {
		defer panics.Recover(r.log, "ending a sink")
		s.wg.Wait()
		r.close(s)
		r.metrics.end(s.sink.Name)
		r.nudge() // its shards are free
	}()
}

// close ends the connection of a sink. Nothing can be done about what goes wrong then.
func (r *Relay) close(s *served) {
	if err := caught(r.log, "closing the connection of a sink", s.sink.Publisher.Close); err != nil {
		r.log.Debug("closing the connection of a sink", "sink", s.sink.Name, "error", err)
	}
}

// listen hands over the answers that arrive at a sink's broker, for as long as the sink is there. All relays on one database do, as one group.
func (r *Relay) listen(s *served) {
	from, ok := s.sink.Publisher.(Listener)
	if s.sink.Replies == "" || r.onReply == nil || !ok {
		return
	}
	s.wg.Go(func() {
		for pause := minUnavailable; s.ctx.Err() == nil; pause = min(pause*2, maxUnavailable) {
			began := time.Now()
			err := caught(r.log, "listening for answers", func() error {
				group, err := r.replyGroup(s.ctx, &s.sink)
				if err != nil {
					return err
				}
				return from.Listen(s.ctx, s.sink.Replies, group, func(ctx context.Context, in Incoming) error {
					return caught(r.log, "keeping an answer", func() error { return r.onReply(ctx, s.sink.Name, in) })
				})
			})
			if s.ctx.Err() != nil {
				return
			}
			if time.Since(began) > maxUnavailable {
				pause = minUnavailable
			}
			r.log.Warn("the answers at a sink's broker are not heard at the moment; it is tried again", "sink", s.sink.Name, "address", s.sink.Replies, "error", err)
			_ = sleep(s.ctx, pause)
		}
	})
}

// replyGroup is the group as which all relays on this database listen for a sink, today and after a restart. Nobody else has it: two sinks at one address, or two operators, would
// each get a part of the answers, and drop those that are for the other.
func (r *Relay) replyGroup(ctx context.Context, s *Sink) (string, error) {
	var cluster, database int64
	err := r.pool.QueryRow(ctx, `SELECT c.system_identifier, d.oid::bigint FROM store_clusters c, pg_database d WHERE d.datname = current_database() ORDER BY c.epoch DESC LIMIT 1`).
		Scan(&cluster, &database)
	if err != nil {
		return "", fmt.Errorf("asking which database this is: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %s", cluster, database, s.ID))
	return "saga-operator-" + hex.EncodeToString(sum[:8]), nil
}

// Sink returns the sink of a name, where this process publishes to it.
func (r *Relay) Sink(name string) (Sink, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sinks {
		if s.sink.Name == name {
			return s.sink, true
		}
	}
	return Sink{}, false
}

func (r *Relay) nudge() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Run publishes until ctx is done, and then what is on its way. Errors of one sink hold no other up; what passes by itself is tried again.
func (r *Relay) Run(ctx context.Context) error {
	defer r.stop(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { r.maintain(ctx) })
	for ctx.Err() == nil {
		if err := caught(r.log, "looking up the shards of the outbox", func() error { return r.supervise(ctx) }); err != nil && ctx.Err() == nil {
			r.log.Warn("the shards of the outbox cannot be looked up; it is tried again", "error", err)
		}
		timer := time.NewTimer(superviseEvery)
		select {
		case <-timer.C:
		case <-r.changed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// stop ends all sinks and waits for what is on its way.
func (r *Relay) stop(ctx context.Context) {
	r.mu.Lock()
	all := r.sinks
	r.sinks = map[string]*served{}
	r.mu.Unlock()
	for _, s := range all {
		s.cancel()
	}
	for _, s := range all {
		s.wg.Wait()
		r.close(s)
		r.metrics.end(s.sink.Name)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.lastWord)
	defer cancel()
	if err := leave(ctx, r.pool, r.owner); err != nil {
		r.log.Debug("the other relays were not told that this one ends", "error", err)
	}
}

// supervise takes this process' share of the shards.
func (r *Relay) supervise(ctx context.Context) error {
	relays, err := attend(ctx, r.pool, r.owner, r.lease)
	if err != nil {
		return err
	}
	ids, held := r.holding()
	total := 0
	if err := r.pool.QueryRow(ctx, `SELECT count(*) FROM outbox_readers WHERE sink = ANY ($1)`, ids).Scan(&total); err != nil {
		return fmt.Errorf("counting the shards of the outbox: %w", err)
	}
	share := (total + relays - 1) / relays
	if held > share {
		r.giveUp(held - share)
	}
	if held >= share || len(ids) == 0 {
		return nil
	}
	taken, err := acquire(ctx, r.pool, ids, r.owner, share-held, r.lease)
	if err != nil {
		return err
	}
	for i := range taken {
		if r.start(ctx, taken[i]) {
			continue
		}
		if err := taken[i].release(ctx, r.pool); err != nil && !isStale(err) {
			return fmt.Errorf("giving a shard back that cannot be published at the moment: %w", err)
		}
	}
	return nil
}

// holding returns the sinks and how many shards of them this process has.
func (r *Relay) holding() (ids []string, held int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.sinks {
		ids = append(ids, id)
		for _, h := range s.shards {
			if !h.ending {
				held++
			}
		}
	}
	return ids, held
}

// giveUp ends some shards, for others to take.
func (r *Relay) giveUp(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sinks {
		for _, h := range s.shards {
			if n <= 0 {
				return
			}
			if !h.ending {
				h.ending = true
				h.cancel()
				n--
			}
		}
	}
}

// start publishes a shard whose lease this process has just taken, unless the sink has gone meanwhile or the shard's last run here has not ended quite.
func (r *Relay) start(ctx context.Context, at reader) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sinks[at.sink]
	if s == nil || s.shards[at.shard] != nil {
		return false
	}
	own, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	s.shards[at.shard] = &held{cancel: cancel}
	s.wg.Go(func() {
		defer stop()
		defer cancel()
		r.publish(own, s, at)
		r.mu.Lock()
		delete(s.shards, at.shard)
		r.mu.Unlock()
	})
	return true
}

// publish publishes a shard, until ctx is done or it cannot go on. After something went wrong it rests.
func (r *Relay) publish(ctx context.Context, s *served, at reader) {
	log := r.log.With("sink", s.sink.Name, "shard", at.shard)
	log.Debug("publishing", "lease", at.leaseEpoch)
	err := caught(log, "publishing to a sink", func() error { return newShard(r, &s.sink, at, log).run(ctx) })
	switch {
	case isStale(err):
		log.Info("a shard of a sink is somebody else's now")
	case panicked(err):
		log.Error("a shard of a sink is held up and tried again", "error", err)
		r.confess(ctx, &at, err)
		_ = sleep(ctx, maxUnavailable)
	case err != nil && ctx.Err() == nil:
		log.Warn("a shard of a sink is held up and tried again", "error", err)
		_ = sleep(ctx, superviseEvery) // not in a hot loop
	}
}

// wake is a signal to everybody who waits at the moment.
type wake struct {
	mu sync.Mutex
	ch chan struct{}
}

func (w *wake) subscribe() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ch == nil {
		w.ch = make(chan struct{})
	}
	return w.ch
}

func (w *wake) signal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ch != nil {
		close(w.ch)
		w.ch = nil
	}
}
