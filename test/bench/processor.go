package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/saga"
)

// processor returns the processor time that this process has used. PostgreSQL is another process.
func processor() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("reading the processor time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// used returns how much processor time something takes.
func used(do func() error) (time.Duration, error) {
	before, err := processor()
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := processor()
	return after - before, err
}

// measureProcessor measures what sagas cost in processor time, which depends little on how busy the machine is, and what a step costs in time.
func measureProcessor(ctx context.Context, s settings) (rows []Row, err error) {
	server, _, pool, err := database(ctx, s.clients)
	if err != nil {
		return nil, err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, server.Close())
	}()
	parts, err := startParticipants()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, parts.stop()) }()
	if rows, err = measureCost(ctx, s, pool, parts.url); err != nil {
		return rows, err
	}
	overhead, err := measureStep(ctx, s, pool, parts)
	return append(rows, overhead...), err
}

// measureCost measures sagas that go through, sagas that are rolled back, and the calls that they make without any saga, in turns.
func measureCost(ctx context.Context, s settings, pool *pgxpool.Pool, url string) ([]Row, error) {
	rejected := threeSteps(url)
	last := &rejected.Steps[len(rejected.Steps)-1]
	last.Do = httpEffect(map[string]any{"method": "POST", "url": url + refused, "body": map[string]any{"order": "${input.orderId}"}})
	var bare, forward, back []float64
	for range s.rounds {
		for _, m := range []struct {
			to *[]float64
			do func() error
		}{
			{&bare, func() error { return callBare(ctx, s, url) }},
			{&forward, func() error {
				return drive(ctx, fleet{s: s, store: storepg.NewGathering(pool, 2), def: threeSteps(url), end: saga.Completed})
			}},
			{&back, func() error {
				return drive(ctx, fleet{s: s, store: storepg.NewGathering(pool, 2), def: rejected, end: saga.Compensated})
			}},
		} {
			took, err := used(m.do)
			if err != nil {
				return nil, err
			}
			*m.to = append(*m.to, float64(took.Microseconds())/1000/float64(s.sagas))
		}
	}
	return []Row{
		row("engine.cpu", median(forward), "ms", median(bare), "processor time of a saga of three HTTP steps, without PostgreSQL's; limit: the same three calls by a bare client"),
		row("engine.rollbacks", median(back), "ms", median(forward), "processor time of a saga whose third step is refused; limit: one that goes through"),
	}, nil
}

// callBare makes the HTTP calls of s.sagas sagas of three steps, without an engine.
func callBare(ctx context.Context, s settings, url string) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: s.clients}}
	defer client.CloseIdleConnections()
	errs := make([]error, s.clients)
	var wg sync.WaitGroup
	for i := range s.clients {
		wg.Go(func() {
			for range s.sagas / s.clients {
				for _, step := range []string{"reserve", "charge", "ship"} {
					if errs[i] = callOnce(ctx, client, url+"/"+step); errs[i] != nil {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func callOnce(ctx context.Context, client *http.Client, url string) error {
	body := []byte(`{"lines":[{"quantity":2,"sku":"B-1"}],"order":"1042","previous":"r-1042"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// measureStep measures the time from one step's request to the next one's of a saga that is alone, against a bare call's.
func measureStep(ctx context.Context, s settings, pool *pgxpool.Pool, parts *participants) ([]Row, error) {
	client := &http.Client{}
	defer client.CloseIdleConnections()
	var bare, steps []float64
	for range s.samples {
		began := time.Now()
		if err := callOnce(ctx, client, parts.url+"/reserve"); err != nil {
			return nil, err
		}
		bare = append(bare, float64(time.Since(began).Microseconds())/1000)
	}
	var arrived []time.Time
	parts.seen = func(*http.Request) { arrived = append(arrived, time.Now()) } // one saga has one request at a time
	s.sagas, s.clients = 1, 1
	def := threeSteps(parts.url)
	for range s.samples {
		arrived = arrived[:0]
		if err := drive(ctx, fleet{s: s, store: storepg.NewGathering(pool, 2), def: def, end: saga.Completed}); err != nil {
			return nil, err
		}
		for i := range len(arrived) - 1 {
			steps = append(steps, float64(arrived[i+1].Sub(arrived[i]).Microseconds())/1000)
		}
	}
	parts.seen = nil
	slices.Sort(steps)
	return []Row{row("step.overhead.p50", median(steps), "ms", median(bare), "from one step's request to the next one's, of a saga that is alone; limit: a bare call")}, nil
}
