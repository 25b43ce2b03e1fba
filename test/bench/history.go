package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"k8s.io/client-go/rest"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/internal/projection/sagas"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/server"
	"github.com/vextrus/saga-operator/pkg/idempotency"
	"github.com/vextrus/saga-operator/test/cluster"
)

const (
	// historyEvents is how many events the saga has that is read.
	historyEvents = 1000
	// historyReads is how often it is read.
	historyReads = 200
	// historyMark is what reading it may take, in milliseconds.
	historyMark = 20
)

// historyViewer lets a service account see the sagas of its namespace.
const historyViewer = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: viewer, namespace: bench}
rules: [{apiGroups: [saga.vextrus.io], resources: [sagas], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer, namespace: bench}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: viewer}
subjects: [{kind: ServiceAccount, name: viewer, namespace: bench}]
`

// measureHistory measures what reading the history of a long saga takes over HTTPS, with a real API server that is asked for the object and whether the reader may see it.
func measureHistory(ctx context.Context, _ settings) (rows []Row, err error) {
	postgres, _, pool, err := database(ctx, 8)
	if err != nil {
		return nil, err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, postgres.Close())
	}()
	kubernetes, err := cluster.Start(ctx, cluster.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, kubernetes.Stop()) }()
	viewer, err := kubernetes.ServiceAccount(ctx, "bench", "viewer")
	if err != nil {
		return nil, err
	}
	if err := kubernetes.Apply(ctx, []byte(historyViewer)); err != nil {
		return nil, err
	}
	if err := longHistory(ctx, pool); err != nil {
		return nil, err
	}
	handler, err := apiOver(kubernetes.Config, pool)
	if err != nil {
		return nil, err
	}
	site := httptest.NewTLSServer(handler)
	defer site.Close()
	took := make([]float64, 0, historyReads)
	for range historyReads {
		began := time.Now()
		if err := readLongHistory(ctx, site, viewer.BearerToken); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(began).Microseconds())/1000)
	}
	return []Row{row("history.1000", median(took), "ms", historyMark, "the history of a saga with 1,000 events over HTTPS, with authorization, median; limit: the mark")}, nil
}

// apiOver is the operator's HTTP API.
func apiOver(config *rest.Config, pool *pgxpool.Pool) (http.Handler, error) {
	kube, err := operations.NewClient(config, nil)
	if err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	store := storepg.New(pool)
	machine, err := engine.New(engine.Options{Store: store, Notify: func(engine.Key) {}, Workers: 1, Logger: quiet})
	if err != nil {
		return nil, err
	}
	ops, err := operations.New(operations.Options{
		Client: kube, Access: operations.ClusterAccess{Client: kube}, Database: pool, Keys: idempotency.NewPostgres(pool, idempotency.Options{}),
		Decider: machine, Abandoner: machine, Callbacks: &engine.Callbacks{Store: store}, Logger: quiet,
	})
	if err != nil {
		return nil, err
	}
	const unlimited = 1e6 // what is measured is not the limit
	return server.New(server.Options{
		Operations: ops, Authenticator: server.NewAuthenticator(kube, nil, nil), Logger: quiet, Limits: server.Limits{UserRate: unlimited, AddressRate: unlimited},
	})
}

// longHistory records a saga, and waits until the read model shows all of it.
func longHistory(ctx context.Context, pool *pgxpool.Pool) error {
	store := storepg.New(pool)
	runner, err := projection.NewRunner(projection.Options{Pool: pool, Store: store}, sagas.History())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	go func() { _ = runner.Run(ctx) }()
	uid := uuid.NewString()
	at := saga.At{At: time.Now().UTC()}
	facts := []saga.Event{saga.SagaStarted{At: at, UID: uid, Namespace: "bench", Name: "long"}}
	for n := 1; len(facts) < historyEvents; n++ {
		a := saga.Attempt{EffectID: saga.EffectID{Step: "reserve-stock", Direction: saga.Action}, Number: n}
		facts = append(facts, saga.AttemptStarted{At: at, Attempt: a}, saga.AttemptFailed{At: at, Attempt: a, Outcome: saga.Retryable, Reason: "busy", Message: "the participant answered 503 Service Unavailable", Next: saga.NextRetry, RetryAt: at.At})
	}
	all := eventstore.Append{Stream: "saga-" + uid}
	for _, f := range facts[:historyEvents] {
		kind, schema, data, err := saga.Marshal(f)
		if err != nil {
			return err
		}
		all.Events = append(all.Events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: kind, SchemaVersion: schema, Data: data})
	}
	done, err := store.Append(ctx, all)
	if err != nil {
		return err
	}
	for projection.Wait(ctx, pool, "saga_history", done.Token) != nil { // its first generation is made now
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the history: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// readLongHistory reads it as a client does, and looks whether it is whole.
func readLongHistory(ctx context.Context, site *httptest.Server, token string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, site.URL+fmt.Sprintf("/v1/namespaces/bench/sagas/long/history?limit=%d", historyEvents), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := site.Client().Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	var page struct{ Events []struct{ Version int } }
	if err := json.Unmarshal(body, &page); err != nil || len(page.Events) != historyEvents {
		return fmt.Errorf("reading the history: status %d, %d events: %.300s: %w", res.StatusCode, len(page.Events), body, err)
	}
	return nil
}
