package simulation

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// Shrink leaves happenings out of a failing world for as long as it still breaks the same promise: sagas and acts of users first, then
// faults. It returns the smallest world that it found, with its trace.
func Shrink(t *testing.T, cfg Config, failing *Report, broken func(*Report) bool) (Config, *Report) {
	best := failing
	try := func(out []string) bool {
		next := cfg
		next.Without = maps.Clone(cfg.Without)
		if next.Without == nil {
			next.Without = map[string]bool{}
		}
		for _, name := range out {
			next.Without[name] = true
		}
		r := Run(t, next)
		if !broken(r) {
			return false
		}
		cfg, best = next, r
		return true
	}
	for _, faults := range []bool{false, true} {
		var left []string
		for _, h := range best.Happenings {
			if strings.HasPrefix(h, "fault ") == faults && !cfg.Without[h] {
				left = append(left, h)
			}
		}
		for size := max(len(left)/2, 1); len(left) > 0; size /= 2 { // as in delta debugging (Zeller and Hildebrandt, 2002), in its simplest form
			size = max(size, 1)
			for at := 0; at < len(left); {
				part := left[at:min(at+size, len(left))]
				if try(part) {
					left = slices.Delete(slices.Clone(left), at, min(at+size, len(left)))
					continue
				}
				at += size
			}
			if size == 1 {
				break
			}
		}
	}
	cfg.Trace = true
	return cfg, Run(t, cfg)
}
