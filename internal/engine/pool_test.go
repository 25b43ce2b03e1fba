package engine

import (
	"slices"
	"strings"
	"sync"
	"testing"
)

// hold submits jobs that end when release is closed, and returns a channel that gets each one's name when it begins.
func hold(p *pool, name string, n int, release <-chan struct{}) <-chan string {
	began := make(chan string, n)
	for range n {
		p.submit(name, func() { began <- name; <-release })
	}
	return began
}

func TestOneNamespaceDoesNotTakeAllPlaces(t *testing.T) {
	t.Parallel()
	p, release := newPool(32), make(chan struct{})
	hog := hold(p, "hog", 100, release)
	for range 24 { // three quarters
		<-hog
	}
	other, third := hold(p, "other", 10, release), hold(p, "third", 1, release)
	for range 4 { // an eighth
		<-other
	}
	<-third // what is left is still for those who have little
	p.mu.Lock()
	if p.active != 29 || len(hog) != 0 || len(other) != 0 {
		t.Errorf("%d run; the others are %d and %d", p.active, len(hog), len(other))
	}
	p.mu.Unlock()
	close(release)
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(hog) != 76 || len(other) != 6 || len(p.groups) != 0 {
		t.Errorf("%d and %d more have run, %d groups are left", len(hog), len(other), len(p.groups))
	}
}

func TestNamespacesTakeTurns(t *testing.T) {
	t.Parallel()
	p, release := newPool(1), make(chan struct{})
	var mu sync.Mutex
	var order []string
	<-hold(p, "first", 1, release)
	for _, name := range []string{"a", "a", "a", "b", "c", "b"} {
		p.submit(name, func() {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
		})
	}
	close(release)
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, " "); got != "a b c a b a" {
		t.Errorf("the order was %s", got)
	}
}

func TestAPoolOfAnySizeRunsEverything(t *testing.T) {
	t.Parallel()
	for limit := 1; limit < 20; limit++ {
		p := newPool(limit)
		var wg sync.WaitGroup
		for range 50 {
			for _, name := range slices.Repeat([]string{"a", "b"}, 2) {
				wg.Add(1)
				p.submit(name, wg.Done)
			}
		}
		wg.Wait()
		if err := p.drain(t.Context()); err != nil || p.active != 0 || len(p.waiting) != 0 {
			t.Errorf("limit %d: %v, %d run and %d groups wait", limit, err, p.active, len(p.waiting))
		}
	}
}
