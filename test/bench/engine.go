package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/participant"
	participanthttp "github.com/vextrus/saga-operator/internal/participant/http"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/testenv/driver"
)

// participants is a real HTTP server that says yes to almost everything: what is measured is the operator, not a service.
type participants struct {
	server *http.Server
	url    string
	calls  atomic.Int64
	// seen is called for each request, before its response.
	seen func(*http.Request)
}

// refused is the prefix of the paths at which every request is rejected.
const refused = "/refused"

func startParticipants() (*participants, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the participants: %w", err)
	}
	p := &participants{url: "http://" + l.Addr().String()}
	p.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		p.calls.Add(1)
		if p.seen != nil {
			p.seen(r)
		}
		w.Header().Set("Content-Type", "application/json")
		if strings.HasPrefix(r.URL.Path, refused) {
			w.Header().Set("Saga-Outcome", "Rejected")
			w.WriteHeader(http.StatusConflict)
		}
		_, _ = io.WriteString(w, `{"id":"r-1042"}`)
	})}
	go func() { _ = p.server.Serve(l) }()
	return p, nil
}

func (p *participants) stop() error { return p.server.Close() }

// sagaInput is the input of every saga that is measured.
const sagaInput = `{"orderId":"1042","customer":"c-7","lines":[{"sku":"B-1","quantity":2}],"total":{"amount":"129.90","currency":"EUR"}}`

// threeSteps is a saga of three HTTP steps, each with an output that the next one reads, and a compensation.
func threeSteps(url string) *saga.Definition {
	def := &saga.Definition{Deadline: 10 * time.Minute}
	previous := ""
	for _, name := range []string{"reserve", "charge", "ship"} {
		body := map[string]any{"order": "${input.orderId}", "lines": "${input.lines}"}
		s := saga.Step{Name: name, Output: map[string]string{"id": "${response.body.id}"}}
		if previous != "" {
			s.DependsOn = []string{previous}
			body["previous"] = "${steps." + previous + ".output.id}"
		}
		previous = name
		s.Do = httpEffect(map[string]any{"method": "POST", "url": url + "/" + name, "body": body})
		undo := httpEffect(map[string]any{"method": "DELETE", "url": url + "/" + name + "/${input.orderId}"})
		s.Compensation = &undo
		def.Steps = append(def.Steps, s)
	}
	return def
}

func httpEffect(with map[string]any) saga.Effect {
	data, err := json.Marshal(with)
	if err != nil {
		panic(err) // a literal of this file
	}
	return saga.Effect{Kind: "http", With: data, AttemptTimeout: saga.DefaultAttemptTimeout, Retry: saga.Retry{
		MaxAttempts: saga.DefaultActionAttempts, InitialBackoff: saga.DefaultInitialBackoff, MaxBackoff: saga.DefaultMaxBackoff,
	}}
}

// caller calls participants on loopback, which an operator does only when it is allowed to.
func caller() (*participanthttp.Participant, error) {
	policy, err := egress.New([]string{"127.0.0.0/8"}, nil)
	if err != nil {
		return nil, err
	}
	return participanthttp.New(participanthttp.Options{Egress: policy}), nil
}

// measureEngine drives sagas of three HTTP steps without objects: what the operator can do when the API server is not in the way.
func measureEngine(ctx context.Context, s settings) (rows []Row, err error) {
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

	var rates []float64
	for range s.rounds {
		rate, err := driveSagas(ctx, s, storepg.NewGathering(pool, 2), parts.url)
		if err != nil {
			return nil, err
		}
		rates = append(rates, rate)
	}
	return []Row{row("engine.sagas", median(rates), "sagas/s", 0, "three HTTP steps, each with output and compensation, without objects; no limit row")}, nil
}

func driveSagas(ctx context.Context, s settings, store eventstore.Store, url string) (float64, error) {
	began := time.Now()
	err := drive(ctx, fleet{s: s, store: store, def: threeSteps(url), end: saga.Completed})
	return float64(s.sagas) / time.Since(began).Seconds(), err
}

// fleet are sagas that are driven together.
type fleet struct {
	s     settings
	store eventstore.Store
	def   *saga.Definition
	// end is the phase that all of them have to end in.
	end saga.Phase
}

// drive drives sagas without objects, and returns when all have ended.
func drive(ctx context.Context, f fleet) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	obs := engine.Observation{Definition: f.def, Input: json.RawMessage(sagaInput)}
	var ended, wrong atomic.Int64
	runner := &driver.Runner{Workers: f.s.clients, Observe: func(engine.Key) engine.Observation { return obs }}
	runner.Finished = func(_ engine.Key, r engine.Result) {
		if r.State.Phase != f.end {
			wrong.Add(1)
		}
		if ended.Add(1) == int64(f.s.sagas) {
			cancel()
		}
	}
	http, err := caller()
	if err != nil {
		return err
	}
	defer http.Close()
	e, err := engine.New(engine.Options{Store: f.store, Notify: runner.Enqueue, Workers: 64, Participants: participant.Registry{"http": http}})
	if err != nil {
		return err
	}
	runner.Engine = e
	for range f.s.sagas {
		runner.Enqueue(engine.Key{Namespace: "bench", Name: "saga", UID: uuid.Must(uuid.NewV7()).String()})
	}
	if err := runner.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	_ = e.Shutdown(ctx)
	if n := ended.Load(); n < int64(f.s.sagas) || wrong.Load() > 0 {
		return fmt.Errorf("%d of %d sagas ended, %d of them not %s", n, f.s.sagas, wrong.Load(), f.end)
	}
	return nil
}
