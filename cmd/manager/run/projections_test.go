package run

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/internal/projection/sagas"
)

// TestAPersonSendsAStoppedReadModelOn has an event that no read model can understand, and does what an operator would do about it.
func TestAPersonSendsAStoppedReadModelOn(t *testing.T) {
	t.Parallel()
	dsn := patient(t, throwaway.Database(t))
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: dsn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store := storepg.New(pool)
	poison := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "SagaExploded", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "saga-" + uuid.NewString(), Events: []eventstore.Event{poison}}); err != nil {
		t.Fatal(err)
	}
	runner, err := projection.NewRunner(projection.Options{Pool: pool, Store: store, Logger: slog.New(slog.DiscardHandler)}, sagas.History(), sagas.Summary())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = runner.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })

	command := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := Main(t.Context(), append([]string{"projections"}, args...), environ("DATABASE_URL", dsn), &out, &out)
		return code, out.String()
	}
	until := func(want string) {
		t.Helper()
		eventually(t, func() error {
			code, out := command("list")
			if code != exitOK || !strings.Contains(out, want) {
				return fmt.Errorf("exit code %d, and the list does not say %q:\n%s", code, want, out)
			}
			return nil
		})
	}
	until(`projection saga_history knows no event type "SagaExploded"`)
	until(`projection saga_summary knows no event type "SagaExploded"`)
	if code, out := command("skip", "saga_summary", "nobody", "needs", "it"); code != exitOK || !strings.Contains(out, poison.ID.String()) {
		t.Errorf("skipping: exit code %d, %s", code, out)
	}
	if code, out := command("retry", "saga_history"); code != exitOK {
		t.Errorf("retrying: exit code %d, %s", code, out)
	}
	until(`projection saga_history knows no event type "SagaExploded"`) // it is still there
	if code, out := command("rebuild", "saga_summary"); code != exitOK {
		t.Errorf("rebuilding: exit code %d, %s", code, out)
	}
	until("saga_summary   2            1         live")
	for _, wrong := range [][]string{
		{"retry", "none"}, {"rebuild", "none"}, {"skip", "none", "why"}, {"retry", "saga_summary"}, {"remove", "none"},
		{"remove", "saga_summary"}, // it is fed
		{"skip", "saga_history", "not this one", "--event", uuid.NewString()},
	} {
		if code, out := command(wrong...); code != exitFailed || !strings.Contains(out, wrong[1]) {
			t.Errorf("%v: exit code %d, %s", wrong, code, out)
		}
	}
	for _, wrong := range [][]string{{}, {"dance"}, {"skip", "saga_summary"}, {"rebuild"}, {"remove"}, {"retry", "saga_history", "--event", poison.ID.String()}} {
		if code, out := command(wrong...); code != exitUsage || !strings.Contains(out, "usage: manager projections") {
			t.Errorf("%v: exit code %d, %s", wrong, code, out)
		}
	}
	if code, out := command("skip", "saga_history", "nobody needs it", "--event", "7"); code != exitUsage || !strings.Contains(out, "the ID of an event") {
		t.Errorf("skipping what is no event: exit code %d, %s", code, out)
	}
	if code, out := command("skip", "saga_history", "nobody needs it", "--event", poison.ID.String()); code != exitOK || !strings.Contains(out, poison.ID.String()) {
		t.Errorf("skipping by the event's ID: exit code %d, %s", code, out)
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO projections (name, generation, version, status) VALUES ('saga_histories', 1, 1, 'live')`); err != nil {
		t.Fatal(err)
	}
	if code, out := command("remove", "saga_histories"); code != exitOK || !strings.Contains(out, "is removed") {
		t.Errorf("removing one whose code is gone: exit code %d, %s", code, out)
	}
	until("saga_histories   1            1         retired")
}
