package simulation

import (
	"time"
)

// chance draws by hashing names. A draw depends on the seed and on what it is about, never on what was drawn before.
type chance struct{ seed uint64 }

// draw returns 64 bits for a name.
func (c chance) draw(kind, name string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a
	h := uint64(offset) ^ c.seed*0x9e3779b97f4a7c15
	for _, s := range [...]string{kind, "\x00", name} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * prime
		}
	}
	h ^= h >> 33 // the finalizer of MurmurHash3, or short names that differ in their last letter would be neighbours
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// float returns a number in [0, 1).
func (c chance) float(kind, name string) float64 { return float64(c.draw(kind, name)>>11) / (1 << 53) }

// happens reports whether something of probability p happens.
func (c chance) happens(kind, name string, p float64) bool { return c.float(kind, name) < p }

// below returns a number in [0, n).
func (c chance) below(kind, name string, n int) int { return int(c.draw(kind, name) % uint64(n)) }

// between returns a time in [low, high), in whole milliseconds.
func (c chance) between(kind, name string, low, high time.Duration) time.Duration {
	return low + time.Duration(c.float(kind, name)*float64(high-low)).Truncate(time.Millisecond)
}

// pick returns one of the alternatives.
func pick[T any](c chance, kind, name string, of ...T) T { return of[c.below(kind, name, len(of))] }
