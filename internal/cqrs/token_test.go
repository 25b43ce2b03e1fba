package cqrs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
)

func queries(t *testing.T, middleware ...cqrs.Middleware) *cqrs.Queries {
	t.Helper()
	b := cqrs.NewQueries()
	if err := cqrs.HandleQuery(b, answerName, middleware...); err != nil {
		t.Fatal(err)
	}
	return b
}

func never(ctx context.Context, _ string, _ eventstore.Token) error {
	<-ctx.Done()
	return errors.New("some error of the driver's")
}

func TestAQueryThatWaitsInVainSaysForWhat(t *testing.T) {
	t.Parallel()
	b := queries(t, cqrs.WaitFor("orders", 20*time.Millisecond, never))
	ctx := cqrs.WithToken(t.Context(), eventstore.Token{Epoch: 1, Transaction: 1042})
	_, err := cqrs.Ask(ctx, b, lookUp{})
	var stale *cqrs.StaleError
	if !errors.As(err, &stale) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	for _, part := range []string{"cqrs_test.lookUp", "orders", "1-1042", "without the token"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
	if _, err := cqrs.Ask(t.Context(), b, lookUp{}); err != nil {
		t.Errorf("without a token there is nothing to wait for: %v", err)
	}
}

func TestAQueryThatCannotWaitForATokenSaysSo(t *testing.T) {
	t.Parallel()
	ctx := cqrs.WithToken(t.Context(), eventstore.Token{Epoch: 1, Transaction: 7})
	if _, err := cqrs.Ask(ctx, queries(t), lookUp{}); !errors.Is(err, cqrs.ErrCannotWait) {
		t.Errorf("error %v", err)
	}
	if got, err := cqrs.Ask(ctx, queries(t, cqrs.AlwaysCurrent()), lookUp{Name: "ada"}); err != nil || got != "found ada" {
		t.Errorf("one that is always current: %q, %v", got, err)
	}
}

func TestACallerWhoGivesUpIsNotToldOfAStaleReadModel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(cqrs.WithToken(t.Context(), eventstore.Token{Epoch: 1, Transaction: 7}))
	show := func(ctx context.Context, _ string, _ eventstore.Token) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	_, err := cqrs.Ask(ctx, queries(t, cqrs.WaitFor("orders", time.Minute, show)), lookUp{})
	var stale *cqrs.StaleError
	if errors.As(err, &stale) || !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestAQueryWaitsForEachOfItsTokens(t *testing.T) {
	t.Parallel()
	var waited []uint64
	show := func(_ context.Context, _ string, token eventstore.Token) error {
		waited = append(waited, token.Transaction)
		return nil
	}
	ctx := cqrs.WithToken(cqrs.WithToken(t.Context(), eventstore.Token{Transaction: 1}), eventstore.Token{Transaction: 2})
	if _, err := cqrs.Ask(ctx, queries(t, cqrs.WaitFor("orders", 0, show)), lookUp{}); err != nil || len(waited) != 2 {
		t.Errorf("waited for %v, %v", waited, err)
	}
}
