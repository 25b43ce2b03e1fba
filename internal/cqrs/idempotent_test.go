package cqrs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// Every store of the package is good for the bus.
var _ cqrs.IdempotencyStore = idempotency.Store(nil)

type pay struct {
	cqrs.Answers[receipt]
	Realm, Key string
	Cents      int
}

func (p pay) IdempotencyKey() (realm, key string) { return p.Realm, p.Key }

type receipt struct {
	Number int
	At     time.Time
}

// stores runs a test on each store.
func stores(t *testing.T, test func(t *testing.T, s cqrs.IdempotencyStore)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, idempotency.NewMemory(idempotency.Options{Lease: time.Hour}))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.exec(idempotency.Schema) // does nothing where it is there
		test(t, patient{idempotency.NewPostgres(r.pool, idempotency.Options{Lease: time.Hour})})
	})
}

// patient is a store that keeps an answer however long the machine takes; a caller who has given up is the bus's business.
type patient struct{ cqrs.IdempotencyStore }

// unbounded is the context without its end, unless its caller has given up already.
func unbounded(ctx context.Context) context.Context {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx
	}
	return context.WithoutCancel(ctx)
}

func (p patient) Complete(ctx context.Context, c idempotency.Claim, r idempotency.Response) error {
	return p.IdempotencyStore.Complete(unbounded(ctx), c, r)
}

func (p patient) Fail(ctx context.Context, c idempotency.Claim, r idempotency.Response) error {
	return p.IdempotencyStore.Fail(unbounded(ctx), c, r)
}

func (p patient) Release(ctx context.Context, c idempotency.Claim) error {
	return p.IdempotencyStore.Release(unbounded(ctx), c)
}

// paying returns a bus whose handler counts its calls and fails as it is told.
func paying(t *testing.T, s cqrs.IdempotencyStore, fail func(pay) error) (b *cqrs.Commands, calls *atomic.Int32) {
	t.Helper()
	calls = &atomic.Int32{}
	b = commands(t, func(_ context.Context, p pay) (receipt, error) {
		n := calls.Add(1)
		if fail != nil {
			if err := fail(p); err != nil {
				return receipt{}, err
			}
		}
		return receipt{Number: int(n), At: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)}, nil
	}, cqrs.Idempotent(s))
	return b, calls
}

func TestAnIdempotentCommandActsOnceHoweverOftenItIsSent(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s cqrs.IdempotencyStore) {
		b, calls := paying(t, s, nil)
		send := func() (receipt, error) {
			return cqrs.Send(t.Context(), b, pay{Realm: "shop", Key: "k-1", Cents: 500})
		}
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				var busy *idempotency.InProgressError
				if got, err := send(); err != nil && !errors.As(err, &busy) || err == nil && got.Number != 1 {
					t.Errorf("answered with %+v, %v", got, err)
				}
			})
		}
		wg.Wait()
		first, err := send()
		if err != nil || calls.Load() != 1 || first != (receipt{1, time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)}) {
			t.Errorf("the repetition is answered with %+v, %v, after %d calls", first, err, calls.Load())
		}
		if got, err := cqrs.Send(t.Context(), b, pay{Realm: "another", Key: "k-1", Cents: 500}); err != nil || got.Number != 2 {
			t.Errorf("the key of another realm: %+v, %v", got, err)
		}
		if _, err := cqrs.Send(t.Context(), b, pay{Realm: "shop", Key: "k-1", Cents: 501}); !errors.Is(err, idempotency.ErrMismatch) {
			t.Errorf("another command with the key: %v", err)
		}
		for want := 3; want < 5; want++ { // without a key each is one of its own
			if got, err := cqrs.Send(t.Context(), b, pay{Realm: "shop"}); err != nil || got.Number != want {
				t.Errorf("without a key: %+v, %v", got, err)
			}
		}
	})
}

func TestARefusalIsRepeatedAndAnyOtherErrorFreesTheKey(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s cqrs.IdempotencyStore) {
		broken := errors.New("broken")
		var with error
		b, calls := paying(t, s, func(pay) error { return with })
		for i, with2 := range []error{broken, fmt.Errorf("paying: %w", cqrs.Refuse("CardDeclined", "the card was declined")), nil} {
			with = with2
			_, err := cqrs.Send(t.Context(), b, pay{Key: "k-1"})
			var refused *cqrs.RefusedError
			switch {
			case i == 0 && !errors.Is(err, broken):
				t.Errorf("the broken one: %v", err)
			case i > 0 && (!errors.As(err, &refused) || refused.Reason != "CardDeclined" || !strings.Contains(refused.Message, "declined")):
				t.Errorf("attempt %d of the refused one: %v", i, err)
			}
		}
		if calls.Load() != 2 {
			t.Errorf("the handler was called %d times", calls.Load())
		}
	})
}

// unkept is a store that keeps no answer.
type unkept struct{ cqrs.IdempotencyStore }

func (unkept) Complete(context.Context, idempotency.Claim, idempotency.Response) error {
	return errors.New("the disk is full")
}

func TestAKeyWhoseAnswerIsNotKeptStaysClaimedBecauseItsEffectIsThere(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s cqrs.IdempotencyStore) {
		b, calls := paying(t, unkept{s}, nil)
		if _, err := cqrs.Send(t.Context(), b, pay{Key: "k-1"}); err == nil || !strings.Contains(err.Error(), "was carried out, but its answer could not be kept") {
			t.Errorf("error %v", err)
		}
		var busy *idempotency.InProgressError
		if _, err := cqrs.Send(t.Context(), b, pay{Key: "k-1"}); !errors.As(err, &busy) || calls.Load() != 1 {
			t.Errorf("sent again at once: %v, after %d calls", err, calls.Load())
		}
	})
}

func TestAPanicFreesTheKey(t *testing.T) {
	t.Parallel()
	s := idempotency.NewMemory(idempotency.Options{Lease: time.Hour})
	first := true
	b := cqrs.NewCommands(cqrs.Recover(logger(t)), cqrs.Idempotent(s))
	err := cqrs.HandleCommand(b, func(context.Context, pay) (receipt, error) {
		if first {
			first = false
			panic("at the disco")
		}
		return receipt{Number: 7}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var panicked *cqrs.PanicError
	if _, err := cqrs.Send(t.Context(), b, pay{Key: "k-1"}); !errors.As(err, &panicked) {
		t.Errorf("error %v", err)
	}
	if got, err := cqrs.Send(t.Context(), b, pay{Key: "k-1"}); err != nil || got.Number != 7 {
		t.Errorf("sent again: %+v, %v", got, err)
	}
}

func TestTheAnswerIsKeptWhenItsCallerHasGivenUp(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s cqrs.IdempotencyStore) {
		ctx, cancel := context.WithCancel(t.Context())
		b, calls := paying(t, s, func(pay) error { cancel(); return nil })
		_, _ = cqrs.Send(ctx, b, pay{Key: "k-1"})
		if got, err := cqrs.Send(t.Context(), b, pay{Key: "k-1"}); err != nil || got.Number != 1 || calls.Load() != 1 {
			t.Errorf("sent again: %+v, %v, after %d calls", got, err, calls.Load())
		}
	})
}

type lossy struct {
	cqrs.Answers[hidden]
	Key string
}

type hidden struct{ number int }

func (l lossy) IdempotencyKey() (realm, key string) { return "", l.Key }

func TestAnAnswerThatJSONWouldLoseIsRefusedAtRegistration(t *testing.T) {
	t.Parallel()
	err := cqrs.HandleCommand(cqrs.NewCommands(), func(context.Context, lossy) (hidden, error) { return hidden{1}, nil })
	if err == nil || !strings.Contains(err.Error(), "number is unexported") {
		t.Errorf("error %v", err)
	}
}
