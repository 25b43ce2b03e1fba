package engine

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// hold submits jobs that end when release is closed, and returns a channel that gets each one's name when it begins.
func hold(p *pool, name string, n int, release <-chan struct{}) <-chan string {
	began := make(chan string, n)
	for range n {
		p.submit(name, func() { began <- name; <-release })
	}
	return began
}

func TestPoolNamespaceHasHalfOfWhatOthersLeave(t *testing.T) {
	t.Parallel()
	p, release := newPool(32), make(chan struct{}) // 28 for all, 4 for namespaces that have none
	began := map[string]<-chan string{}
	for _, ns := range []struct {
		name   string
		places int
	}{{"first", 14}, {"second", 7}, {"third", 4}, {"fourth", 2}, {"fifth", 1}} {
		began[ns.name] = hold(p, ns.name, 100, release)
		for range ns.places {
			<-began[ns.name]
		}
	}
	for _, name := range []string{"sixth", "seventh", "eighth", "ninth"} { // one each, with everything else taken
		began[name] = hold(p, name, 100, release)
		<-began[name]
	}
	p.mu.Lock()
	if p.active != 32 {
		t.Errorf("%d run, want 32", p.active)
	}
	p.mu.Unlock()
	for name, more := range began {
		if len(more) != 0 {
			t.Errorf("%s has more than its share", name)
		}
	}
	close(release)
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(p.places) != 0 || p.waiting.Len() != 0 {
		t.Errorf("places are held by %v, and %d jobs wait", p.places, p.waiting.Len())
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
		if err := p.drain(t.Context()); err != nil || p.active != 0 || p.waiting.Len() != 0 {
			t.Errorf("limit %d: %v, %d run and %d wait", limit, err, p.active, p.waiting.Len())
		}
	}
}

func TestPoolGivesPlaceBackAfterPanic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, ran := newPool(1), 0
		p.submit("shop", func() { panic("no") })
		p.submit("shop", func() { ran++ })
		synctest.Wait()
		if ran != 1 || p.active != 0 {
			t.Errorf("%d jobs ran after the one that panicked, and %d are at work", ran, p.active)
		}
	})
}
