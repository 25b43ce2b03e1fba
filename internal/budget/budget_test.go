package budget_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/vextrus/saga-operator/internal/budget"
)

func takes(t *testing.T, a *budget.Account, amount int64, want error) {
	t.Helper()
	if err := a.Take(amount); !errors.Is(err, want) {
		t.Errorf("taking %d: %v, want %v", amount, err, want)
	}
}

func TestATenantHasHalfOfWhatTheOthersLeave(t *testing.T) {
	t.Parallel()
	b := budget.New(1000)
	ada, hers, grace := b.Open("ada"), b.Open("ada"), b.Open("")
	grace.Belong("grace")
	takes(t, ada, 400, nil)
	takes(t, hers, 101, budget.ErrNone) // two jobs of hers are one tenant
	takes(t, hers, 100, nil)
	takes(t, grace, 251, budget.ErrNone)
	takes(t, grace, 250, nil)
	takes(t, ada, 1, budget.ErrNone)
	ada.Close()
	ada.Close()
	takes(t, grace, 200, nil)
	grace.Keep(50)
	takes(t, hers, 375, nil)
	hers.Close()
	grace.Close()
	if used := b.Used(); used != 0 {
		t.Errorf("%d is taken when nobody has anything", used)
	}
}

func TestWhoWaitsIsServedInOrderAndHoldsUpNoOtherTenant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(1000)
		holder := b.Open("ada")
		takes(t, holder, 450, nil)
		served := make(chan string, 3)
		wait := func(tenant, name string, amount int64) {
			go func() {
				a := b.Open(tenant)
				if err := a.Wait(t.Context(), amount); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				served <- name
				a.Close()
			}()
			synctest.Wait()
		}
		wait("ada", "large", 300)
		wait("ada", "small", 10) // it would fit, and is not before the large one
		wait("grace", "other", 100)
		if first := <-served; first != "other" || len(served) > 0 {
			t.Fatalf("served are %s and %d more, want other alone", first, len(served))
		}
		holder.Close()
		synctest.Wait()
		if len(served) != 2 || b.Used() != 0 {
			t.Errorf("%d are served when nobody holds anything, and %d is left taken", len(served), b.Used())
		}
	})
}

func TestWhoGivesUpHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(1000)
		holder := b.Open("ada")
		takes(t, holder, 450, nil)
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error, 1)
		go func() { gaveUp <- b.Open("ada").Wait(ctx, 300) }()
		synctest.Wait()
		served := make(chan error, 1)
		go func() { served <- b.Open("ada").Wait(t.Context(), 10) }()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up got %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("who waited behind got %v", err)
		}
	})
}

func TestWhatCanNeverBeHadIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	if err := budget.New(1000).Open("ada").Wait(t.Context(), 501); !errors.Is(err, budget.ErrNever) {
		t.Errorf("got %v", err)
	}
}
