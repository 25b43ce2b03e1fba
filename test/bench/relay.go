package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	natsgo "github.com/nats-io/nats.go"

	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

// measureRelay measures how fast messages leave the outbox: from a backlog, and when there is nothing else to do.
func measureRelay(ctx context.Context, s settings) (rows []Row, err error) {
	server, _, pool, err := database(ctx, s.clients)
	if err != nil {
		return nil, err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, server.Close())
	}()
	const memoryMark, latencyMark = 50_000, 10
	var rates []float64
	for range s.rounds {
		rate, err := drainRate(ctx, pool, s.messages, &memory.Publisher{Discard: true}, nil)
		if err != nil {
			return nil, err
		}
		rates = append(rates, rate)
	}
	var ours, bare, p50, p99 float64
	err = withNATS(func(conn *natsgo.Conn, url string) error {
		if ours, bare, err = natsRates(ctx, pool, conn, url, s); err != nil {
			return err
		}
		p50, p99, err = relayLatency(ctx, pool, conn, url, s)
		return err
	})
	if err != nil {
		return nil, err
	}
	return []Row{
		row("relay.memory", median(rates), "messages/s", memoryMark, fmt.Sprintf("a backlog of %d messages to a sink in the same process, each encoded as a CloudEvent; limit: the mark", s.messages)),
		row("relay.nats", ours, "messages/s", bare, "the same backlog to NATS JetStream, one message in flight per key; limit: a bare asynchronous publisher of the same messages on the same server"),
		row("relay.latency.p50", p50, "ms", latencyMark, "from the commit of a message to the acknowledgement of NATS JetStream, idle, median; limit: the mark"),
		row("relay.latency.p99", p99, "ms", 0, "the same, 99 of 100"),
	}, nil
}

// messagesPerKey is about what a saga of three steps tells.
const messagesPerKey = 5

// fillOutbox writes messages as appends would have, many at once: those of a saga come at different times.
const fillOutbox = `INSERT INTO outbox_events (message_id, type, key, destination, data, metadata)
SELECT gen_random_uuid(), 'io.vextrus.saga.StepSucceeded', 'bench-' || k.n, '', '` + eventData + `',
	('{"correlationId":"bench-' || k.n || '","source":"/bench","subject":"order-' || k.n || '","namespace":"shop","sequence":' || m.n || '}')::json
FROM generate_series(1, $2) m (n), generate_series(1, $1) k (n) ORDER BY (k.n / 1000), m.n, k.n`

// drainRate is how fast a backlog of so many messages goes to a publisher. Await, where given, says when they have arrived.
func drainRate(ctx context.Context, pool *pgxpool.Pool, n int, to outbox.Publisher, await func(context.Context, int) error) (float64, error) {
	relay, err := outbox.NewRelay(outbox.Options{Pool: pool})
	if err != nil {
		return 0, err
	}
	id := uuid.NewString()
	if await == nil {
		await = to.(*memory.Publisher).Await //nolint:forcetypeassert // the others bring their own
	}
	if err := relay.Set(ctx, outbox.Sink{ID: id, Name: "bench", Publisher: to}); err != nil {
		return 0, err
	}
	if _, err := pool.Exec(ctx, fillOutbox, n/messagesPerKey, messagesPerKey); err != nil {
		return 0, fmt.Errorf("filling the outbox: %w", err)
	}
	if _, err := pool.Exec(ctx, `ANALYZE outbox_events`); err != nil {
		return 0, fmt.Errorf("filling the outbox: %w", err)
	}
	running, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	began := time.Now()
	wg.Go(func() { _ = relay.Run(running) })
	err = await(running, n)
	took := time.Since(began)
	cancel()
	wg.Wait()
	if err != nil {
		return 0, fmt.Errorf("waiting for %d messages: %w", n, err)
	}
	_, err = outbox.Forget(ctx, pool, id)
	return float64(n) / took.Seconds(), err
}

// acknowledged counts what a broker has taken.
type acknowledged struct {
	outbox.Publisher
	one chan struct{}
}

// Publish implements outbox.Publisher.
func (p *acknowledged) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := p.Publisher.Publish(ctx, all)
	for _, err := range errs {
		if err == nil {
			p.one <- struct{}{}
		}
	}
	return errs
}

// relayLatency commits one message at a time and waits until the broker has acknowledged it.
func relayLatency(ctx context.Context, pool *pgxpool.Pool, conn *natsgo.Conn, url string, s settings) (p50, p99 float64, err error) {
	const subject = "bench.latency"
	if _, _, err := stream(ctx, conn, subject); err != nil {
		return 0, 0, err
	}
	broker, err := natsPublisher(url, subject)
	if err != nil {
		return 0, 0, err
	}
	relay, err := outbox.NewRelay(outbox.Options{Pool: pool})
	if err != nil {
		return 0, 0, err
	}
	to := &acknowledged{broker, make(chan struct{}, 1)}
	if err := relay.Set(ctx, outbox.Sink{ID: "latency", Name: "latency", Publisher: to}); err != nil {
		return 0, 0, err
	}
	running, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = relay.Run(running) })
	store := storepg.NewGathering(pool, 2, storepg.OnCommit(relay.Wake))
	const unmeasured = 20 // until everything has been done once
	var took []float64
	for i := range s.samples + unmeasured {
		a := sagaMove("saga-" + uuid.NewString())
		if _, err := store.Append(running, a); err != nil {
			return 0, 0, err
		}
		began := time.Now()
		select {
		case <-to.one:
		case <-running.Done():
			return 0, 0, fmt.Errorf("waiting for message %d, after %v: %w", i, took, running.Err())
		}
		if i >= unmeasured {
			took = append(took, float64(time.Since(began).Microseconds())/1000)
		}
		if err := idle(running); err != nil {
			return 0, 0, err
		}
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}

// idle lets the system come to rest between two samples.
func idle(ctx context.Context) error {
	select {
	case <-time.After(10 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
