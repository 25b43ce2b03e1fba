package aggregate

import (
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// DecodeSnapshot is how a repository reads a snapshot.
func DecodeSnapshot[S State[S]](snap eventstore.Snapshot) (uuid.UUID, S, error) {
	return decodeSnapshot[S](snap)
}
