package budget_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/vextrus/saga-operator/internal/budget"
)

func checkTake(t *testing.T, a *budget.Account, amount int64, want error) {
	t.Helper()
	if err := a.Take(amount); !errors.Is(err, want) {
		t.Errorf("Take(%d) = %v, want %v", amount, err, want)
	}
}

func TestTakeLimitsTenantToHalfOfTheRest(t *testing.T) {
	t.Parallel()
	b := budget.New(1000)
	ada, ada2, grace := b.Open("ada"), b.Open("ada"), b.Open("")
	grace.SetTenant("grace")
	checkTake(t, ada, 400, nil)
	checkTake(t, ada2, 101, budget.ErrExhausted) // both accounts of ada count as one tenant
	checkTake(t, ada2, 100, nil)
	checkTake(t, grace, 251, budget.ErrExhausted)
	checkTake(t, grace, 250, nil)
	checkTake(t, ada, 1, budget.ErrExhausted)
	ada.Close()
	ada.Close()
	checkTake(t, grace, 200, nil)
	grace.ShrinkTo(50)
	checkTake(t, ada2, 375, nil)
	ada2.Close()
	grace.Close()
	if used := b.Used(); used != 0 {
		t.Errorf("used = %d after all accounts were closed, want 0", used)
	}
}

func TestWaitKeepsOrderWithinTenant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(1000)
		holder := b.Open("ada")
		checkTake(t, holder, 450, nil)
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
		wait("ada", "small", 10) // fits, but must not overtake large
		wait("grace", "other", 100)
		if first := <-served; first != "other" || len(served) > 0 {
			t.Errorf("served %s and %d more, want other only", first, len(served))
		}
		holder.Close()
		synctest.Wait()
		if len(served) != 2 || b.Used() != 0 {
			t.Errorf("served %d after the holder was closed, want 2; used = %d, want 0", len(served), b.Used())
		}
	})
}

func TestWaitCancelledUnblocksNextWaiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(1000)
		holder := b.Open("ada")
		checkTake(t, holder, 450, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan error, 1)
		go func() { cancelled <- b.Open("ada").Wait(ctx, 300) }()
		synctest.Wait()
		served := make(chan error, 1)
		go func() { served <- b.Open("ada").Wait(t.Context(), 10) }()
		synctest.Wait()
		cancel()
		if err := <-cancelled; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled wait: %v, want %v", err, context.Canceled)
		}
		if err := <-served; err != nil {
			t.Errorf("next wait: %v", err)
		}
	})
}

// TestTakeByAdmittedJobsDoesNotStarveWaiter has jobs take more while a large call waits.
func TestTakeByAdmittedJobsDoesNotStarveWaiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(1000)
		jobs := []*budget.Account{b.Open("ada"), b.Open("ada")}
		for _, job := range jobs {
			if err := job.Wait(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
		}
		served := make(chan int64, 2)
		for _, amount := range []int64{500, 10} {
			go func() {
				a := b.Open("ada")
				if err := a.Wait(t.Context(), amount); err != nil {
					t.Errorf("Wait(%d): %v", amount, err)
				}
				served <- amount
				a.Close()
			}()
			synctest.Wait()
		}
		for _, job := range jobs {
			checkTake(t, job, 50, nil)
			if len(served) > 0 {
				t.Errorf("the call for %d was served while a job held memory", <-served)
			}
			job.Close()
			synctest.Wait()
		}
		if first, second := <-served, <-served; first != 500 || second != 10 {
			t.Errorf("served %d and then %d, want 500 and then 10", first, second)
		}
	})
}

func TestWaitFailsAtOnceIfTooLarge(t *testing.T) {
	t.Parallel()
	if err := budget.New(1000).Open("ada").Wait(t.Context(), 501); !errors.Is(err, budget.ErrTooLarge) {
		t.Errorf("Wait = %v, want %v", err, budget.ErrTooLarge)
	}
}
