package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/nats"
)

// withNATS starts a server, and stops it after use.
func withNATS(use func(conn *natsgo.Conn, url string) error) (err error) {
	dir, err := os.MkdirTemp("", "bench-nats-")
	if err != nil {
		return fmt.Errorf("making room for NATS: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		return fmt.Errorf("starting NATS: %w", err)
	}
	srv.Start()
	defer func() { srv.Shutdown(); srv.WaitForShutdown() }()
	const patience = 20 * time.Second
	if !srv.ReadyForConnections(patience) {
		return errors.New("starting NATS: it does not take connections")
	}
	conn, err := natsgo.Connect(srv.ClientURL())
	if err != nil {
		return fmt.Errorf("connecting to NATS: %w", err)
	}
	defer conn.Close()
	return use(conn, srv.ClientURL())
}

// natsRates lets a bare publisher and the relay publish the same messages to a server, taking turns, and returns the medians.
func natsRates(ctx context.Context, pool *pgxpool.Pool, conn *natsgo.Conn, url string, s settings) (ours, bare float64, err error) {
	var relayed, alone []float64
	for round := range s.rounds {
		subject := "bench." + strconv.Itoa(round)
		b, err := barePublisher(ctx, conn, subject, s.messages)
		if err != nil {
			return 0, 0, err
		}
		r, err := relayToNATS(ctx, pool, conn, url, subject, s.messages)
		if err != nil {
			return 0, 0, err
		}
		alone, relayed = append(alone, b), append(relayed, r)
	}
	return median(relayed), median(alone), nil
}

// stream makes an empty stream for a subject.
func stream(ctx context.Context, conn *natsgo.Conn, subject string) (jetstream.JetStream, jetstream.Stream, error) {
	const unacknowledged = 4096 // more than the server keeps up with
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(unacknowledged))
	if err != nil {
		return nil, nil, fmt.Errorf("using JetStream: %w", err)
	}
	st, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{subject}, Duplicates: time.Minute})
	if err == nil {
		err = st.Purge(ctx)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("making a stream: %w", err)
	}
	return js, st, nil
}

// barePublisher publishes as fast as the client and the server can: asynchronously, with the ids and headers that the relay's messages have.
func barePublisher(ctx context.Context, conn *natsgo.Conn, subject string, n int) (float64, error) {
	js, _, err := stream(ctx, conn, subject)
	if err != nil {
		return 0, err
	}
	header := natsgo.Header{"content-type": {"application/json"}}
	for name, value := range map[string]string{
		"specversion": "1.0", "type": "io.vextrus.saga.StepSucceeded", "source": "/bench", "subject": "order-1",
		"time": "2030-01-02T03:04:05.678901Z", "partitionkey": "bench-1", "correlationid": "bench-1", "sequence": "0000000001",
	} {
		header["ce-"+name] = []string{value}
	}
	began := time.Now()
	for range n {
		m := &natsgo.Msg{Subject: subject, Data: []byte(eventData), Header: natsgo.Header{}}
		for name, values := range header {
			m.Header[name] = values
		}
		id := uuid.NewString()
		m.Header["ce-id"] = []string{id}
		if _, err := js.PublishMsgAsync(m, jetstream.WithMsgID(id)); err != nil {
			return 0, fmt.Errorf("publishing: %w", err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
		return float64(n) / time.Since(began).Seconds(), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func natsPublisher(url, subject string) (*nats.Publisher, error) {
	return nats.New(nats.Config{Connection: sink.Connection{Dial: (&net.Dialer{}).DialContext, Mode: outbox.Binary}, Servers: []string{url}, Subject: subject})
}

// relayToNATS is how fast a backlog goes to the stream.
func relayToNATS(ctx context.Context, pool *pgxpool.Pool, conn *natsgo.Conn, url, subject string, n int) (float64, error) {
	_, st, err := stream(ctx, conn, subject)
	if err != nil {
		return 0, err
	}
	p, err := natsPublisher(url, subject)
	if err != nil {
		return 0, err
	}
	return drainRate(ctx, pool, n, p, func(ctx context.Context, n int) error {
		for {
			info, err := st.Info(ctx)
			if err != nil {
				return fmt.Errorf("looking at the stream: %w", err)
			}
			if info.State.Msgs >= uint64(n) {
				return nil
			}
			if err := idle(ctx); err != nil {
				return err
			}
		}
	})
}
