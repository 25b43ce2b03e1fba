package server

import "sync"

// places counts the places that holders, such as tenants, have taken.
type places struct {
	// admits reports whether a holder may take one place more than its own.
	admits func(own, others int) bool

	mu       sync.Mutex
	taken    int
	byHolder map[string]int
}

// sharedPlaces returns places that holders share. A place cannot be withdrawn from its holder, so a
// holder gets at most half of the places that the others leave, and an eighth of the places is
// reserved for holders that have none. A newcomer thus finds a place while others hold all that
// they can get.
func sharedPlaces(total int) *places {
	const part = 8
	reserved := min((total+part-1)/part, total-1)
	return newPlaces(func(own, others int) bool {
		if own == 0 {
			return others < total
		}
		left := total - reserved - others
		return own < (left+1)/2
	})
}

// fixedPlaces returns places with a fixed maximum for each holder.
func fixedPlaces(each int) *places {
	return newPlaces(func(own, _ int) bool { return own < each })
}

func newPlaces(admits func(own, others int) bool) *places {
	return &places{admits: admits, byHolder: map[string]int{}}
}

// take takes a place. It never waits: ok is false if the holder has its share or no place is free.
// Otherwise free gives the place back.
func (p *places) take(holder string) (free func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.byHolder[holder]
	if !p.admits(own, p.taken-own) {
		return nil, false
	}
	p.taken++
	p.byHolder[holder]++
	return sync.OnceFunc(func() { p.release(holder) }), true
}

func (p *places) release(holder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.byHolder[holder]--; p.byHolder[holder] == 0 {
		delete(p.byHolder, holder)
	}
}
