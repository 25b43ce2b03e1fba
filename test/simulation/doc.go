// Package simulation runs the operator in a world that knows the truth. One process, one seed, virtual time (testing/synctest): two
// operators whose clocks differ, each with the real engine, reconciler, HTTP and message participants and reply handling, share one event
// store in memory; around them stand a small API server whose caches lag, a broker, users, and participants that keep ledgers.
//
// Every call that leaves an operator (to the store, to the API server, to a participant, to the broker) is parked on one bus. When
// everything is parked, the driver picks the next thing that happens, and its fate: done, failed before, failed after it was done, hung,
// repeated, delivered late, answered by a gateway. Operators crash, stop gracefully and start again. Nothing is drawn from a sequence of
// random numbers: each choice is a hash of the seed and of the name of what it is about, so a world with one saga or one fault less is
// otherwise the same world. That is what makes a failing seed repeatable and lets it be shrunk to the happenings that matter.
//
// A checker then reads the participants' ledgers, the recorded history and the objects, and nothing else, and says which promises were
// broken. Start reading at World.Run; the promises are in checker.go, the faults that are known and not closed yet in known.go.
//
// The relay is not part of it yet: it reads its outbox from PostgreSQL, so the broker here stands behind the publisher of a sink.
package simulation
