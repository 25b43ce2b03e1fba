package engine

import (
	"encoding/hex"
	"hash/fnv"
	"strconv"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/tracecontext"
)

// traceParent derives a W3C trace context: the trace is the one that the saga was started in, or has the saga's uid, and the span is the attempt's. Deriving it keeps an attempt that is sent
// again after a crash in the same span.
func traceParent(s saga.State, a saga.Attempt) string {
	parent, ok := tracecontext.Parse(s.TraceParent)
	if !ok {
		uid, err := uuid.Parse(s.UID)
		if err != nil {
			return ""
		}
		parent.Trace, parent.Flags = hex.EncodeToString(uid[:]), "01"
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(a.Key(s.UID) + "/" + strconv.Itoa(a.Number))) // a hash never fails
	var span [8]byte
	parent.Span = hex.EncodeToString(h.Sum(span[:0]))
	return parent.String()
}
