package postgres

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/eventstore"
)

// waits returns a store for which appends wait, each given as namespace/stream=bytes.
func waits(appends ...string) *Gathering {
	g := &Gathering{busy: map[string]bool{}, room: budget.New(maxWaitingBytes)}
	for _, a := range appends {
		p := &pending{done: make(chan struct{})}
		name, _, _ := strings.Cut(a, "=")
		_, _ = fmt.Sscanf(a[len(name):], "=%d", &p.bytes)
		p.namespace, _, _ = strings.Cut(name, "/")
		p.append, p.room = &eventstore.Append{Stream: name, Expected: eventstore.AnyVersion}, g.room.Open(p.namespace)
		g.queue = append(g.queue, p)
	}
	return g
}

// flushes returns the streams that each flush is about.
func flushes(g *Gathering) (all []string) {
	for batch := g.take(nil); len(batch) > 0; batch = g.take(batch) {
		var streams []string
		for _, p := range batch {
			streams = append(streams, p.append.Stream)
		}
		all = append(all, strings.Join(streams, " "))
	}
	return all
}

func TestFlushLargeAppendsDoNotHoldUpNamespace(t *testing.T) {
	t.Parallel()
	large := fmt.Sprint(maxFlushBytes * 2 / 3)
	got := flushes(waits("hog/1="+large, "hog/2="+large, "hog/3="+large, "honest/1=2000", "honest/2=2000"))
	if want := []string{"hog/1 honest/1 honest/2", "hog/2", "hog/3"}; !slices.Equal(got, want) {
		t.Errorf("the flushes are %q, want %q", got, want)
	}
}

func TestFlushManyAppendsDoNotHoldUpNamespace(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 3 * maxFlush {
		all = append(all, fmt.Sprintf("hog/%d=2000", i))
	}
	first := waits(append(all, "honest/1=2000")...).take(nil)
	if !slices.ContainsFunc(first, func(p *pending) bool { return p.namespace == "honest" }) || len(first) != maxFlush {
		t.Errorf("the first of %d appends does not include that of the other namespace", len(first))
	}
}

func TestFlushKeepsOrderWithinNamespace(t *testing.T) {
	t.Parallel()
	large := fmt.Sprint(maxFlushBytes)
	got := flushes(waits("a/1="+large, "b/1="+large, "a/1=10", "a/2="+large, "b/2=10", "a/1=20"))
	if want := []string{"a/1", "b/1", "a/1 b/2", "a/2", "a/1"}; !slices.Equal(got, want) {
		t.Errorf("the flushes are %q, want %q", got, want)
	}
}
