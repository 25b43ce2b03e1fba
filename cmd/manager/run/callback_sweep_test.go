package run

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

func TestCallbacksAreForgottenAWeekAfterTheyHaveExpired(t *testing.T) {
	t.Parallel()
	store, now := memory.New(), time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	put := func(name string, expires time.Time) [32]byte {
		c := eventstore.Callback{TokenHash: sha256.Sum256([]byte(name)), UID: uuid.New(), Step: "pay", Direction: "action", Attempt: 1, ExpiresAt: expires}
		if err := store.PutCallback(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		return c.TokenHash
	}
	for i := range callbackSweepBatch + 1 { // more than one transaction removes
		put(fmt.Sprint("old", i), now.Add(-8*24*time.Hour))
	}
	gone, late, good := put("gone", now.Add(-7*24*time.Hour-time.Second)), put("late", now.Add(-7*24*time.Hour+time.Second)), put("good", now.Add(time.Hour))
	(&callbackSweep{store: store, log: slog.New(slog.DiscardHandler)}).remove(t.Context(), now)
	for hash, known := range map[[32]byte]bool{gone: false, late: true, good: true, sha256.Sum256([]byte("old0")): false, sha256.Sum256([]byte(fmt.Sprint("old", callbackSweepBatch))): false} {
		if _, err := store.Callback(t.Context(), hash); errors.Is(err, eventstore.ErrNotFound) == known {
			t.Errorf("%x: %v", hash[:4], err)
		}
	}
}
