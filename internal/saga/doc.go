// Package saga is the pure core: it decides what happens next in a saga, and does nothing itself. It has no I/O, no clock, no
// randomness, no Kubernetes and no SQL; time and chance come in as arguments.
//
// A saga is the fold of its events (Evolve, Fold). Plan.Decide looks at the fold and at what has come in from outside and returns the
// events that are to be appended. Plan.InFlight says which attempts should be under way; it is a function of the state alone, so
// that starting work and recovering after a crash are the same code: whoever drives the saga compares this list with the attempts
// that really are under way, and starts or stops the difference.
//
// Start reading at decide.go, the pipeline. What its stages share has one home each:
//
//   - effect.go: the id and the state of an effect, every predicate on it, and what settles a doubt
//   - policy.go: what follows an attempt that failed
//   - lifecycle.go: the start, suspension, the ways into rollback, the ends
//   - forward.go, backward.go: which effect is next in each direction
//   - reply.go: which replies count
//   - decision.go: a person's verdicts
//   - codec.go, needs.go: the stored forms, and what their readers have to understand
//
// Each of these files also has the fold of the events that its stages record; evolve.go calls it.
package saga
