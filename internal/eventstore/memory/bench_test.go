package memory_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

func BenchmarkAppend(b *testing.B) {
	store := memory.New()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			e := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Happened", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
			if _, err := store.Append(context.Background(), eventstore.Append{Stream: e.ID.String(), Events: []eventstore.Event{e}}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
