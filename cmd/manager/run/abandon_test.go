package run

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/saga"
)

// abandonRig is a database with sagas, and no cluster.
type abandonRig struct {
	*testing.T
	dsn   string
	pool  *pgxpool.Pool
	store *storepg.Store
}

func newAbandonRig(t *testing.T) *abandonRig {
	t.Helper()
	r := &abandonRig{T: t, dsn: patient(t, throwaway.Database(t))}
	var err error
	if r.pool, err = postgres.Open(t.Context(), postgres.Config{URL: r.dsn}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	r.store = storepg.New(r.pool)
	return r
}

// record puts a saga with the step reserve into the database, and returns its uid.
func (r *abandonRig) record(more ...saga.Event) string {
	r.Helper()
	uid := uuid.New()
	now := saga.At{At: time.Now().UTC().Truncate(time.Microsecond)}
	effect := saga.Effect{Kind: "http", With: json.RawMessage(`{}`), Retry: saga.Retry{MaxAttempts: 3}, AttemptTimeout: time.Minute}
	started := saga.SagaStarted{At: now, UID: uid.String(), Namespace: "shop", Name: "order-1", Definition: saga.Definition{Steps: []saga.Step{{Name: "reserve", Do: effect, Compensation: &effect}}}}
	a := eventstore.Append{Stream: engine.StreamOf(uid.String())}
	for _, e := range append([]saga.Event{started}, more...) {
		kind, schema, data, err := saga.Marshal(e)
		if err != nil {
			r.Fatal(err)
		}
		a.Events = append(a.Events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: kind, SchemaVersion: schema, Data: data})
	}
	a.State = &eventstore.SagaState{UID: uid, Namespace: "shop", Name: "order-1", Phase: "Running", Version: int64(len(a.Events)), State: json.RawMessage(`{}`)}
	if _, err := r.store.Append(r.Context(), a); err != nil {
		r.Fatal(err)
	}
	return uid.String()
}

func underWay() saga.Event {
	return saga.AttemptStarted{At: saga.At{At: time.Now().UTC()}, Attempt: saga.Attempt{EffectID: saga.EffectID{Step: "reserve", Direction: saga.Action}, Number: 1}}
}

// abandonments returns those that are recorded of a saga.
func (r *abandonRig) abandonments(uid string) (all []saga.SagaAbandoned) {
	r.Helper()
	events, err := r.store.Load(r.Context(), engine.StreamOf(uid), 1, 100)
	if err != nil {
		r.Fatal(err)
	}
	for _, e := range events {
		if e.Type == "SagaAbandoned" {
			var a saga.SagaAbandoned
			if err := json.Unmarshal(e.Data, &a); err != nil {
				r.Fatal(err)
			}
			all = append(all, a)
		}
	}
	return all
}

func (r *abandonRig) command(args ...string) (int, string) {
	var out bytes.Buffer
	code := Main(r.Context(), append([]string{"abandon"}, args...), environ("DATABASE_URL", r.dsn, "KUBECONFIG", "/nowhere"), &out, &out)
	return code, out.String()
}

func TestAbandonCommandPrintsWhatMayRemain(t *testing.T) {
	t.Parallel()
	r := newAbandonRig(t)
	uid := r.record(underWay())
	for range 2 { // again is the same
		code, out := r.command(uid, "--reason", "the warehouse is gone", "--log-level=debug")
		if code != exitOK || !strings.Contains(out, "shop/order-1") || !strings.Contains(out, uid) || !strings.Contains(out, "may remain: reserve\n") {
			t.Errorf("exit code %d, %s", code, out)
		}
	}
	all := r.abandonments(uid)
	if len(all) != 1 || all[0].Reason != "the warehouse is gone" || all[0].By != "command:"+actor() {
		t.Errorf("recorded %+v", all)
	}
	untouched := r.record()
	if code, out := r.command(untouched, "--reason=it is not needed", "--by", "ann"); code != exitOK || !strings.Contains(out, "no effects") {
		t.Errorf("before the first attempt: exit code %d, %s", code, out)
	}
	if all := r.abandonments(untouched); len(all) != 1 || all[0].By != "ann" {
		t.Errorf("recorded %+v", all)
	}
}

// TestAbandonCommandSaysThatNothingIsKnown has an event that this version does not know.
func TestAbandonCommandSaysThatNothingIsKnown(t *testing.T) {
	t.Parallel()
	r := newAbandonRig(t)
	uid := r.record(underWay())
	future := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "FromTheFuture", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
	if _, err := r.store.Append(t.Context(), eventstore.Append{Stream: engine.StreamOf(uid), Expected: eventstore.AnyVersion, Events: []eventstore.Event{future}}); err != nil {
		t.Fatal(err)
	}
	if code, out := r.command(uid, "--reason", "it takes too long"); code != exitOK || !strings.Contains(out, "not known what may remain") {
		t.Errorf("exit code %d, %s", code, out)
	}
	if all := r.abandonments(uid); len(all) != 1 {
		t.Errorf("recorded %+v", all)
	}
}

func TestAbandonCommandErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	r := newAbandonRig(t)
	uid, unknown := r.record(underWay()), uuid.NewString()
	completed := r.record(saga.SagaCompleted{At: saga.At{At: time.Now().UTC()}})
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{exitFailed, "the database has no saga with the uid " + unknown + ": check the uid", []string{unknown, "--reason", "x"}},
		{exitFailed, "the saga is Completed", []string{completed, "--reason", "x"}},
		{exitUsage, "usage: manager abandon UID --reason TEXT", nil},
		{exitUsage, "usage: manager abandon", []string{uid, uid, "--reason", "x"}},
		{exitUsage, "usage: manager abandon", []string{"--reason", "x", uid}},
		{exitUsage, `"order-1" is not the uid of a saga`, []string{"order-1", "--reason", "x"}},
		{exitUsage, "--reason: it is required", []string{uid}},
		{exitUsage, "--reason: it is required", []string{uid, "--reason", " "}},
		{exitUsage, "--reason: it is 1025 bytes long", []string{uid, "--reason", strings.Repeat("x", 1025)}},
		{exitUsage, "the name of the person", []string{uid, "--reason", "x", "--by", " "}},
		{exitUsage, "needs an argument", []string{uid, "--reason"}},
		{exitUsage, "dance", []string{uid, "--reason", "x", "--dance"}},
		{exitOK, "manager abandon UID --reason TEXT [--by NAME]", []string{"--help"}},
	} {
		if code, out := r.command(c.args...); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%.80q: exit code %d, want %d and %q: %.300s", c.args, code, c.code, c.want, out)
		}
	}
	if all := append(r.abandonments(uid), r.abandonments(completed)...); len(all) > 0 {
		t.Errorf("recorded %+v", all)
	}
}
