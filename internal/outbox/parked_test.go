package outbox

import "testing"

func TestAKeyIsNotFreeWhereAnotherMessageWasParkedWhileItWasLookedUp(t *testing.T) {
	t.Parallel()
	p := parking{keys: map[string]*parkedKey{}}
	p.park("a")
	p.settled([]string{"a"})
	p.look([]string{"a"}) // its messages have all gone through, which the look finds
	if !p.holds("a") {    // and meanwhile a page parks another one
		t.Fatal("the key is not parked")
	}
	p.settled([]string{"a"})
	p.found([]string{"a"}, nil)
	if !p.holds("a") {
		t.Fatal("the key is free, and there is a message parked that nobody would look for")
	}
	p.settled([]string{"a"})
	p.look([]string{"a"})
	p.found([]string{"a"}, nil)
	if p.holds("a") {
		t.Error("the key is not free, and nothing is parked")
	}
}

func TestAParkedKeyThatIsGoneMayBeNamedTwice(t *testing.T) {
	t.Parallel()
	p := parking{keys: map[string]*parkedKey{}}
	keys := []string{"a", "b", "a"}
	p.look(keys)
	p.found(keys, map[string]head{"b": {sequence: 1}})
	if len(p.keys) != 1 || !p.keys["b"].known {
		t.Errorf("parked are %v", p.keys)
	}
}
