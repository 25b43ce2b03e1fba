package server

import "testing"

// takeAll takes all places that a holder can get, and returns how many it got.
func (p *places) takeAll(holder string) int {
	const enough = 1000
	for n := range enough {
		if _, ok := p.take(holder); !ok {
			return n
		}
	}
	return enough
}

func checkTakeAll(t *testing.T, p *places, holder string, want int) {
	t.Helper()
	if got := p.takeAll(holder); got != want {
		t.Errorf("%s gets %d places, want %d", holder, got, want)
	}
}

func TestSharedPlacesGiveHalfOfTheRest(t *testing.T) {
	t.Parallel()
	p := sharedPlaces(32) // 4 of them are for newcomers
	var free []func()
	for range 14 {
		f, ok := p.take("ada")
		if !ok {
			t.Fatalf("ada gets %d places only", len(free))
		}
		free = append(free, f)
	}
	checkTakeAll(t, p, "ada", 0)
	checkTakeAll(t, p, "grace", 7)
	checkTakeAll(t, p, "alan", 4)
	for _, f := range free[:13] {
		f()
		f() // gives back one place all the same
	}
	checkTakeAll(t, p, "grace", 5) // 28 - 5 are left, 12 are half of them
	checkTakeAll(t, p, "ada", 5)
	checkTakeAll(t, p, "alan", 1)
}

func TestSharedPlacesReserveAnEighth(t *testing.T) {
	t.Parallel()
	p := sharedPlaces(32)
	for holder, want := range []int{14, 7, 4, 2, 1} {
		checkTakeAll(t, p, string(rune('a'+holder)), want)
	}
	for _, newcomer := range []string{"v", "w", "x", "y"} {
		checkTakeAll(t, p, newcomer, 1)
	}
	checkTakeAll(t, p, "z", 0)
}

func TestSharedPlacesServeOneIfThereIsOne(t *testing.T) {
	t.Parallel()
	p := sharedPlaces(1)
	for range 2 {
		free, ok := p.take("ada")
		if !ok {
			t.Fatal("the only place is not given")
		}
		checkTakeAll(t, p, "grace", 0)
		free()
	}
	if p.taken != 0 || len(p.byHolder) != 0 {
		t.Errorf("%d places of %d holders are taken after all were given back", p.taken, len(p.byHolder))
	}
}

func TestFixedPlacesLimitEachHolder(t *testing.T) {
	t.Parallel()
	p := fixedPlaces(2)
	for _, holder := range []string{"ada", "grace", "alan"} {
		checkTakeAll(t, p, holder, 2)
	}
}
