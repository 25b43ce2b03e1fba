package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// durable opens a pool on a server that waits for its disk, as one in production does.
func durable(b *testing.B, conns int32) *pgxpool.Pool {
	b.Helper()
	server := throwaway.NewServer(b, throwaway.Options{Durable: true, Own: true})
	url, _, err := server.NewDatabase(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		b.Fatal(err)
	}
	cfg.MaxConns = conns
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return pool
}

// spread runs b.N appends by so many clients and reports their rate.
func spread(b *testing.B, clients int, do func(client int) error) {
	b.Helper()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := do(c); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
}

func single() eventstore.Append {
	return eventstore.Append{Stream: "saga-" + uuid.Must(uuid.NewV7()).String(), Events: []eventstore.Event{event()}}
}

// mover returns what makes each client move a saga of its own, again and again.
func mover(store eventstore.Store, clients int) func(client int) error {
	uids, at := make([]uuid.UUID, clients), make([]int64, clients)
	for i := range uids {
		uids[i] = uuid.Must(uuid.NewV7())
	}
	return func(c int) error {
		done, err := store.Append(context.Background(), move("saga-"+uids[c].String(), uids[c], at[c]))
		at[c] = done.Version
		return err
	}
}

func BenchmarkAppend(b *testing.B) {
	pool := durable(b, 32)
	for _, s := range []struct {
		name    string
		store   eventstore.Store
		clients []int
	}{{"alone", storepg.New(pool), []int{1, 32}}, {"gathered", storepg.NewGathering(pool, 2), []int{1, 32, 256}}} {
		for _, clients := range s.clients {
			b.Run(fmt.Sprintf("%s/single/clients=%d", s.name, clients), func(b *testing.B) {
				spread(b, clients, func(int) error {
					_, err := s.store.Append(context.Background(), single())
					return err
				})
			})
			b.Run(fmt.Sprintf("%s/move/clients=%d", s.name, clients), func(b *testing.B) {
				spread(b, clients, mover(s.store, clients))
			})
		}
	}
}
