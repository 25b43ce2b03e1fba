package engine

import (
	"context"
	"sync"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/saga"
)

// plansInUse counts who uses plans. Many use the same plan, which takes memory once, from the namespace
// that needed it first.
type plansInUse struct {
	memory *budget.Budget

	mu    sync.Mutex
	plans map[saga.Fingerprint]*planInUse
}

type planInUse struct {
	users   int
	account *budget.Account
	plan    *saga.Plan // nil until it has been compiled
}

func newPlansInUse(memory *budget.Budget) *plansInUse {
	return &plansInUse{memory: memory, plans: map[saga.Fingerprint]*planInUse{}}
}

// tryAcquire is acquire for a caller that does not wait; false if there is no memory.
func (u *plansInUse) tryAcquire(namespace string, key saga.Fingerprint, bytes int64) bool {
	if u.join(key) {
		return true
	}
	account := u.memory.Open(namespace)
	if account.Take(bytes) != nil {
		return false
	}
	if !u.add(key, account) { // another was faster
		account.Close()
		return u.tryAcquire(namespace, key, bytes)
	}
	return true
}

// acquire waits for the memory of a plan, unless it is in use. The caller calls release when it does not
// use the plan any more.
func (u *plansInUse) acquire(ctx context.Context, namespace string, key saga.Fingerprint, bytes int64) error {
	for !u.join(key) {
		account := u.memory.Open(namespace)
		if err := account.Wait(ctx, min(bytes, u.memory.Share())); err != nil {
			return err
		}
		if u.add(key, account) {
			return nil
		}
		account.Close() // another attempt was faster
	}
	return nil
}

// join counts one more user of a plan; false if the plan is not in use.
func (u *plansInUse) join(key saga.Fingerprint) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.plans[key]
	if p != nil {
		p.users++
	}
	return p != nil
}

// add adds a plan with one user; false if the plan is in use.
func (u *plansInUse) add(key saga.Fingerprint, account *budget.Account) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.plans[key] != nil {
		return false
	}
	u.plans[key] = &planInUse{users: 1, account: account}
	return true
}

func (u *plansInUse) release(key saga.Fingerprint) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.plans[key]
	if p.users--; p.users == 0 {
		delete(u.plans, key)
		p.account.Close()
	}
}

// get returns a plan in use; nil if it has not been compiled.
func (u *plansInUse) get(key saga.Fingerprint) *saga.Plan {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.plans[key].plan
}

func (u *plansInUse) set(key saga.Fingerprint, plan *saga.Plan) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.plans[key].plan = plan
}

// planHold is a use of a plan that a saga or an attempt has until it releases it.
type planHold struct {
	plans *plansInUse
	key   saga.Fingerprint
	once  sync.Once
}

// release ends the use. Releasing again, or a nil hold, does nothing.
func (h *planHold) release() {
	if h != nil {
		h.once.Do(func() { h.plans.release(h.key) })
	}
}

// again returns one more hold of the plan; nil if there is none any more.
func (h *planHold) again() *planHold {
	if h == nil || !h.plans.join(h.key) {
		return nil
	}
	return &planHold{plans: h.plans, key: h.key}
}
