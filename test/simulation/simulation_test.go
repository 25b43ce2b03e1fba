package simulation

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

var (
	seeds  = flag.Int("seeds", defaultSeeds, "how many worlds are made, each of them twice")
	first  = flag.Uint64("seed", 1, "the seed of the first world")
	shards = flag.Int("shards", 1, "how many processes share the seeds")
	shard  = flag.Int("shard", 0, "which of the shards this process is, counted from 0")
	sagas  = flag.Int("sagas", 20, "how many sagas there are in a world")
)

// enoughSeeds is how many worlds it takes until every fate has met every class of call.
const enoughSeeds = 200

func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(400) // a world is small, and there are thousands of them
	os.Exit(m.Run())
}

// TestWorldsKeepTheirPromises makes worlds by their seeds. Each is made twice and has to go the same way both times. A world that breaks a promise is shrunk and shown; run it alone with
// -seeds 1 -seed N.
func TestWorldsKeepTheirPromises(t *testing.T) {
	plans, all := engine.NewPlans(), &tally{met: map[class]map[fate]int{}, phases: map[saga.Phase]int{}, open: map[rule]int{}}
	for i := range *seeds {
		if i%*shards != *shard {
			continue
		}
		cfg := Config{Seed: *first + uint64(i), Sagas: *sagas, Plans: plans}
		r := Run(t, cfg)
		if again := Run(t, cfg); again.Digest != r.Digest {
			t.Fatalf("seed %d: two runs of one world went different ways", cfg.Seed)
		}
		all.add(r)
		for _, v := range r.Violations {
			if !excused(v) {
				showSmallest(t, cfg, r, v.rule)
				return
			}
		}
	}
	t.Log(all)
	if *seeds >= enoughSeeds {
		all.check(t)
	}
}

// showSmallest fails the test with the smallest world that breaks the same promise.
func showSmallest(t *testing.T, cfg Config, failing *Report, broken rule) {
	t.Helper()
	_, small := Shrink(t, cfg, failing, func(r *Report) bool {
		return slices.ContainsFunc(r.Violations, func(v violation) bool { return v.rule == broken && !excused(v) })
	})
	var text strings.Builder
	for _, v := range small.Violations {
		fmt.Fprintf(&text, "%s\n", v)
	}
	t.Errorf("seed %d breaks a promise; of its happenings these matter:\n%s\n\n%s\n%s", cfg.Seed, strings.Join(small.Happenings, "\n"), &text, strings.Join(small.Trace, "\n"))
}

// tally is what has happened in all worlds.
type tally struct {
	worlds, steps int
	met           map[class]map[fate]int
	phases        map[saga.Phase]int
	open          map[rule]int // broken promises whose fault is known and open
}

func (a *tally) add(r *Report) {
	a.worlds++
	a.steps += r.Steps
	for c, fates := range r.Met {
		if a.met[c] == nil {
			a.met[c] = map[fate]int{}
		}
		for f, n := range fates {
			a.met[c][f] += n
		}
	}
	for p, n := range r.Phases {
		a.phases[p] += n
	}
	for _, v := range r.Violations {
		a.open[v.rule]++
	}
}

func (a *tally) String() string {
	s := fmt.Sprintf("%d worlds, %d steps, sagas %v", a.worlds, a.steps, a.phases)
	for _, r := range slices.Sorted(maps.Keys(a.open)) {
		s += fmt.Sprintf("\nknown and open: %d times not: %s", a.open[r], r)
	}
	return s
}

// check fails a test in whose worlds too little happened: a fate that no call met proves nothing.
func (a *tally) check(t *testing.T) {
	t.Helper()
	for c, possible := range fates {
		for _, f := range append([]fate{done}, possible...) {
			if a.met[c][f] == 0 {
				t.Errorf("no call of the class %q was ever %q", c, f)
			}
		}
	}
	for _, p := range []saga.Phase{saga.Completed, saga.Compensated, saga.CompensationFailed} {
		if a.phases[p] == 0 {
			t.Errorf("no saga ended %s", p)
		}
	}
}
