package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// channel is the name under which commits are announced.
	channel = "saga_events"
	// announceEvery is the least time between two announcements: however much is committed, others hear of it so often at most.
	announceEvery = 20 * time.Millisecond
	// reconnectEvery is the pause before a lost connection is made again. Meanwhile readers poll.
	reconnectEvery = time.Second
)

// Announcer tells other processes on the same database that something has been appended, and hears it from them. It never announces within an append's transaction:
// that takes a lock of the whole cluster at commit. Losing an announcement costs its hearers one poll.
type Announcer struct {
	pool    *pgxpool.Pool
	log     *slog.Logger
	hear    func()
	pending chan struct{}
}

// NewAnnouncer returns an announcer that calls hear for everything it hears. hear must not block.
func NewAnnouncer(pool *pgxpool.Pool, log *slog.Logger, hear func()) *Announcer {
	return &Announcer{pool: pool, log: log, hear: hear, pending: make(chan struct{}, 1)}
}

// Announce has the others told soon. It never blocks.
func (a *Announcer) Announce() {
	select {
	case a.pending <- struct{}{}:
	default:
	}
}

// Run announces and hears until ctx is done. It takes one connection of the pool for itself.
func (a *Announcer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.again(ctx, a.speak, "a commit was not announced; readers in other processes poll") })
	a.again(ctx, a.listen, "announcements of other processes are not heard; readers poll")
	return nil
}

// again does something until ctx is done, and after an error or a panic once more, a little later: readers poll, so nothing is lost meanwhile.
func (a *Announcer) again(ctx context.Context, do func(context.Context) error, failed string) {
	once := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
				a.log.Error("a panic", "panic", p, "stack", string(debug.Stack()))
			}
		}()
		return do(ctx)
	}
	for ctx.Err() == nil {
		if err := once(); err != nil && ctx.Err() == nil {
			a.log.Debug(failed, "error", err)
			pause(ctx, reconnectEvery)
		}
	}
}

// speak sends one announcement for all that came together, at once where there was quiet before.
func (a *Announcer) speak(ctx context.Context) error {
	select {
	case <-a.pending:
	case <-ctx.Done():
		return nil
	}
	_, err := a.pool.Exec(ctx, `SELECT pg_notify($1, '')`, channel)
	pause(ctx, announceEvery)
	return err
}

func (a *Announcer) listen(ctx context.Context) error {
	conn, err := a.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	own := conn.Hijack()
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = own.Close(closing)
	}()
	if _, err := own.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
		return fmt.Errorf("listening for announcements: %w", err)
	}
	a.hear() // what came before is not announced again
	for {
		if _, err := own.WaitForNotification(ctx); err != nil {
			return err
		}
		a.hear()
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
