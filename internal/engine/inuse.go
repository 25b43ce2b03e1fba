package engine

import (
	"context"
	"sync"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/saga"
)

// plansInUse has the large plans that attempts use. Many attempts use the same plan, which takes memory
// once, from the namespace whose attempt needed it first.
type plansInUse struct {
	memory *budget.Budget

	mu    sync.Mutex
	plans map[saga.Fingerprint]*planInUse
}

type planInUse struct {
	attempts int
	account  *budget.Account
	plan     *saga.Plan // nil until it has been compiled
}

func newPlansInUse(memory *budget.Budget) *plansInUse {
	return &plansInUse{memory: memory, plans: map[saga.Fingerprint]*planInUse{}}
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

// join counts one more attempt that uses a plan; false if the plan is not in use.
func (u *plansInUse) join(key saga.Fingerprint) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.plans[key]
	if p != nil {
		p.attempts++
	}
	return p != nil
}

// add adds a plan that one attempt uses; false if the plan is in use.
func (u *plansInUse) add(key saga.Fingerprint, account *budget.Account) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.plans[key] != nil {
		return false
	}
	u.plans[key] = &planInUse{attempts: 1, account: account}
	return true
}

func (u *plansInUse) release(key saga.Fingerprint) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.plans[key]
	if p.attempts--; p.attempts == 0 {
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
