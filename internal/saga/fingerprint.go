package saga

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

// Fingerprint is the same for two definitions that are the same, and for no others. It costs a tenth of encoding them.
type Fingerprint [sha256.Size]byte

// Fingerprint returns that of a definition. JSON that is spaced differently counts as different.
func (d *Definition) Fingerprint() Fingerprint {
	h := make(hashed, 0, 2<<10)
	h.number(int64(d.Deadline))
	h.number(int64(len(d.Steps)))
	for i := range d.Steps {
		h.step(&d.Steps[i])
	}
	return sha256.Sum256(h)
}

// hashed is what a fingerprint is made of. Every part begins with its length, so that no two definitions make the same.
type hashed []byte

func (h *hashed) number(n int64) { *h = binary.AppendVarint(*h, n) }

func (h *hashed) text(s string) {
	h.number(int64(len(s)))
	*h = append(*h, s...)
}

func (h *hashed) step(s *Step) {
	h.text(s.Name)
	h.number(int64(len(s.DependsOn)))
	for _, name := range s.DependsOn {
		h.text(name)
	}
	h.effect(&s.Do)
	h.number(int64(len(s.Output)))
	for _, name := range slices.Sorted(maps.Keys(s.Output)) {
		h.text(name)
		h.text(s.Output[name])
	}
	if s.Compensation == nil {
		h.number(0)
		return
	}
	h.number(1)
	h.effect(s.Compensation)
}

func (h *hashed) effect(e *Effect) {
	h.text(e.Kind)
	h.number(int64(len(e.With)))
	*h = append(*h, e.With...)
	h.number(int64(e.Retry.MaxAttempts))
	h.number(int64(e.Retry.InitialBackoff))
	h.number(int64(e.Retry.MaxBackoff))
	h.number(int64(e.AttemptTimeout))
}
