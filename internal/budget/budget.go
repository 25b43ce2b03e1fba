// Package budget shares memory, or whatever else there is a limited amount of, between tenants. A tenant has at most half of what the
// others leave: so there is always some for one who has none yet, and one who is alone can still do much.
package budget

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// Errors; test with errors.Is.
var (
	// ErrNone says that there is not so much left at the moment.
	ErrNone = errors.New("there is no memory left for it at the moment")
	// ErrNever says that somebody has asked for more than they could ever have.
	ErrNever = errors.New("it takes more memory than one may have")
)

// Budget is an amount that tenants share. It is safe for concurrent use.
type Budget struct {
	total int64

	mu      sync.Mutex
	used    int64
	by      map[string]int64
	waiting list.List // of *waiter, who has waited for longest first
}

// New returns a budget of so much, in bytes if it is memory.
func New(total int64) *Budget { return &Budget{total: total, by: map[string]int64{}} }

// Used is how much of it has been taken.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Account is what one job has taken. It is safe for concurrent use.
type Account struct {
	of     *Budget
	tenant string // guarded by of.mu, as all of it
	taken  int64
}

// waiter is somebody who waits for their turn.
type waiter struct {
	account *Account
	amount  int64
	granted chan struct{}
}

// Open returns an account of a tenant, on which nothing is taken.
func (b *Budget) Open(tenant string) *Account { return &Account{of: b, tenant: tenant} }

// Belong says whose the account is, where that was not known when it was opened. Nothing may have been taken yet.
func (a *Account) Belong(tenant string) {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.tenant = tenant
}

// Take takes so much more, or fails with ErrNone and takes nothing.
func (a *Account) Take(amount int64) error {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	if !a.of.fits(a.tenant, amount) {
		return ErrNone
	}
	a.of.add(a, amount)
	return nil
}

// Wait takes so much more as soon as it can be had, and fails when ctx has ended before. Who waits for as much as nobody can have gets
// ErrNever at once. Who holds something of one budget while they wait for more of the same can wait for each other: take everything that
// a job needs in one go, or from several budgets in an order that is the same everywhere.
func (a *Account) Wait(ctx context.Context, amount int64) error {
	b := a.of
	b.mu.Lock()
	if amount > b.total/2 {
		b.mu.Unlock()
		return ErrNever
	}
	if b.fits(a.tenant, amount) && !b.before(a.tenant) {
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
	case <-w.granted: // at the same moment
		return nil
	default:
		b.waiting.Remove(place)
		b.grant() // somebody may have waited behind
		return ctx.Err()
	}
}

// Keep gives back what is taken beyond an amount.
func (a *Account) Keep(amount int64) {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	if amount < a.taken {
		a.of.add(a, amount-a.taken)
		a.of.grant()
	}
}

// Close gives everything back. The account can be used again.
func (a *Account) Close() { a.Keep(0) }

// fits is called with the lock held, as all that follow are.
func (b *Budget) fits(tenant string, amount int64) bool {
	own := b.by[tenant]
	return own+amount <= (b.total-(b.used-own))/2
}

// before reports whether somebody of the same tenant waits already.
func (b *Budget) before(tenant string) bool {
	for e := b.waiting.Front(); e != nil; e = e.Next() {
		if e.Value.(*waiter).account.tenant == tenant {
			return true
		}
	}
	return false
}

// grant lets those go on who have waited for longest, each tenant's in their order.
func (b *Budget) grant() {
	stuck := map[string]bool{}
	for e := b.waiting.Front(); e != nil; {
		next, w := e.Next(), e.Value.(*waiter)
		switch tenant := w.account.tenant; {
		case stuck[tenant]:
		case b.fits(tenant, w.amount):
			b.add(w.account, w.amount)
			b.waiting.Remove(e)
			close(w.granted)
		default:
			stuck[tenant] = true
		}
		e = next
	}
}

func (b *Budget) add(a *Account, amount int64) {
	a.taken += amount
	b.used += amount
	if b.by[a.tenant] += amount; b.by[a.tenant] == 0 {
		delete(b.by, a.tenant)
	}
}
