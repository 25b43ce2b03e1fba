package postgres

import (
	"context"
	"fmt"
	"log/slog"
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
	go a.speak(ctx)
	for ctx.Err() == nil {
		if err := a.listen(ctx); err != nil && ctx.Err() == nil {
			a.log.Debug("announcements of other processes are not heard; readers poll", "error", err)
			pause(ctx, reconnectEvery)
		}
	}
	return nil
}

// speak sends one announcement for all that came together, at once where there was quiet before.
func (a *Announcer) speak(ctx context.Context) {
	for {
		select {
		case <-a.pending:
		case <-ctx.Done():
			return
		}
		if _, err := a.pool.Exec(ctx, `SELECT pg_notify($1, '')`, channel); err != nil && ctx.Err() == nil {
			a.log.Debug("a commit was not announced; readers in other processes poll", "error", err)
		}
		pause(ctx, announceEvery)
	}
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
