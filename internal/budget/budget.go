// Package budget shares a limited amount, such as bytes of memory, between tenants. A tenant holds
// at most half of what the other tenants leave. A new tenant therefore always finds some of the
// budget free, and a single tenant can use up to half of it.
package budget

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// Errors; test with errors.Is.
var (
	// ErrExhausted says that the tenant cannot have the amount at the moment.
	ErrExhausted = errors.New("the tenant's share of the memory budget is exhausted")
	// ErrTooLarge says that the amount exceeds half of the budget, so that no tenant ever gets it.
	ErrTooLarge = errors.New("the amount is larger than a tenant's share of the memory budget")
)

// Budget is an amount that tenants share. It is safe for concurrent use.
type Budget struct {
	total int64

	mu       sync.Mutex
	used     int64
	byTenant map[string]int64
	waiting  list.List // of *waiter; the one that has waited longest is at the front
}

// New returns a budget of total units, for example bytes.
func New(total int64) *Budget { return &Budget{total: total, byTenant: map[string]int64{}} }

// Share returns the largest amount that one tenant can hold.
func (b *Budget) Share() int64 { return b.total / 2 }

// Used returns the amount that all accounts hold together.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Waiting returns the number of calls of [Account.Wait] that have not been granted their amount yet.
func (b *Budget) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting.Len()
}

// Account is the amount that one job of a tenant holds. It is safe for concurrent use.
type Account struct {
	budget *Budget
	tenant string // guarded by budget.mu, as are all fields below
	taken  int64
}

// waiter is a call of [Account.Wait] that has not been granted its amount yet.
type waiter struct {
	account *Account
	amount  int64
	granted chan struct{}
}

// Open returns an empty account of a tenant.
func (b *Budget) Open(tenant string) *Account { return &Account{budget: b, tenant: tenant} }

// SetTenant assigns the account to a tenant that was not known when the account was opened. The
// account must be empty.
func (a *Account) SetTenant(tenant string) {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	a.tenant = tenant
}

// Take adds amount to the account. It never waits: if the amount does not fit, it takes nothing and
// fails with [ErrExhausted].
//
// Take does not queue behind calls of [Account.Wait]. Where both are used, Take is only for a job
// that Wait has admitted and that needs more than expected: if it failed because other calls wait,
// the job would be repeated for nothing. The waiting calls are still served, because no further job
// of their tenant is admitted before them.
func (a *Account) Take(amount int64) error {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	if !a.budget.fits(a.tenant, amount) {
		return ErrExhausted
	}
	a.budget.add(a, amount)
	return nil
}

// Wait adds amount to the account as soon as it fits. Calls of one tenant are served in order; they
// do not delay other tenants. Wait fails with [ErrTooLarge] immediately if amount exceeds half of
// the budget, and with the error of ctx if ctx ends first.
//
// Two jobs that each hold a part of a budget while they wait for more of it can deadlock. A job
// takes everything that it needs of a budget in one call, and from several budgets in an order that
// is the same everywhere.
func (a *Account) Wait(ctx context.Context, amount int64) error {
	b := a.budget
	b.mu.Lock()
	if amount > b.total/2 {
		b.mu.Unlock()
		return ErrTooLarge
	}
	if b.fits(a.tenant, amount) && !b.hasWaiter(a.tenant) {
		b.add(a, amount)
		b.mu.Unlock()
		return nil
	}
	w := &waiter{account: a, amount: amount, granted: make(chan struct{})}
	place := b.waiting.PushBack(w)
	b.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.granted: // ctx ended at the same moment
		return nil
	default:
		b.waiting.Remove(place)
		b.grant() // a later call of the tenant may fit now
		return ctx.Err()
	}
}

// ShrinkTo gives back everything that the account holds above amount.
func (a *Account) ShrinkTo(amount int64) {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	if amount < a.taken {
		a.budget.add(a, amount-a.taken)
		a.budget.grant()
	}
}

// Close gives back everything that the account holds. The account can be used again.
func (a *Account) Close() { a.ShrinkTo(0) }

// fits reports whether a tenant may take amount more. b.mu is held, as in all methods below.
func (b *Budget) fits(tenant string, amount int64) bool {
	own := b.byTenant[tenant]
	return own+amount <= (b.total-(b.used-own))/2
}

// hasWaiter reports whether a call of the tenant is waiting.
func (b *Budget) hasWaiter(tenant string) bool {
	for e := b.waiting.Front(); e != nil; e = e.Next() {
		if e.Value.(*waiter).account.tenant == tenant {
			return true
		}
	}
	return false
}

// grant serves all waiters whose amount fits, the oldest first. A waiter that does not fit blocks
// the later waiters of its tenant only.
func (b *Budget) grant() {
	blocked := map[string]bool{}
	for e := b.waiting.Front(); e != nil; {
		next, w := e.Next(), e.Value.(*waiter)
		switch tenant := w.account.tenant; {
		case blocked[tenant]:
		case b.fits(tenant, w.amount):
			b.add(w.account, w.amount)
			b.waiting.Remove(e)
			close(w.granted)
		default:
			blocked[tenant] = true
		}
		e = next
	}
}

// add changes what an account holds by amount, which may be negative.
func (b *Budget) add(a *Account, amount int64) {
	a.taken += amount
	b.used += amount
	if b.byTenant[a.tenant] += amount; b.byTenant[a.tenant] == 0 {
		delete(b.byTenant, a.tenant)
	}
}
