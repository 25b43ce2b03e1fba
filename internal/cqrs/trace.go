package cqrs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/vextrus/saga-operator/internal/tracecontext"
)

type traceKey struct{}

// WithTraceParent returns a context that carries a W3C trace context, as it comes in the header traceparent. What is not one is left out.
func WithTraceParent(ctx context.Context, traceParent string) context.Context {
	if _, ok := tracecontext.Parse(traceParent); !ok {
		return ctx
	}
	return context.WithValue(ctx, traceKey{}, traceParent)
}

// TraceParent is the trace context of what is being done, to be passed on: in the metadata of events, in the header of requests. Empty when there is none.
func TraceParent(ctx context.Context) string {
	s, _ := ctx.Value(traceKey{}).(string)
	return s
}

// Span is one command or query in a trace.
type Span struct {
	Kind Kind
	Name string
	// TraceID and ID are lower-case hexadecimal digits, 32 and 16; Parent is the ID of the span that led to this one, empty at the beginning of a trace.
	TraceID, ID, Parent string
	Began               time.Time
	Took                time.Duration
	// Err is nil for what succeeded.
	Err error
}

// Trace makes a span of every message: a child of the context's, or the first of a new trace. The handler's context carries it on. Finished spans go to done, which must not block; nil for
// nowhere.
func Trace(done func(context.Context, Span)) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (any, error) {
			s := Span{Kind: m.Kind, Name: m.Name, ID: randomHex(8), Began: time.Now()}
			own := tracecontext.Parent{Span: s.ID, Flags: "01"}
			if parent, ok := tracecontext.Parse(TraceParent(ctx)); ok {
				s.Parent, own.Trace, own.Flags = parent.Span, parent.Trace, parent.Flags
			} else {
				own.Trace = randomHex(16)
			}
			s.TraceID = own.Trace
			ctx = context.WithValue(ctx, traceKey{}, own.String())
			answer, err := next(ctx, m)
			if done != nil {
				s.Took, s.Err = time.Since(s.Began), err
				done(ctx, s)
			}
			return answer, err
		}
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}
