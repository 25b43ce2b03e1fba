package engine

import (
	"encoding/hex"
	"hash/fnv"
	"io"
	"strconv"
	"strings"

	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/tracecontext"
)

// traceParent derives a W3C trace context: the trace is the one that the saga was started in, or has the saga's uid, and the span is the attempt's. Deriving it keeps an attempt that is sent
// again after a crash in the same span.
func traceParent(s saga.State, a saga.Attempt) string {
	parent, ok := tracecontext.Parse(s.TraceParent)
	if !ok {
		parent.Trace, parent.Flags = strings.ToLower(strings.ReplaceAll(s.UID, "-", "")), "01"
	}
	if len(parent.Trace) != 32 {
		return ""
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, a.Key(s.UID)+"/"+strconv.Itoa(a.Number)) // a hash never fails
	parent.Span = hex.EncodeToString(h.Sum(nil))
	return parent.String()
}
