package cqrs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"
)

type traceKey struct{}

// WithTraceParent returns a context that carries a W3C trace context, as it comes in the header traceparent. What is not one is left out.
func WithTraceParent(ctx context.Context, traceParent string) context.Context {
	if _, _, ok := parseTraceParent(traceParent); !ok {
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
			flags := "01"
			var ok bool
			if s.TraceID, s.Parent, ok = parseTraceParent(TraceParent(ctx)); ok {
				flags = TraceParent(ctx)[53:55]
			} else {
				s.TraceID = randomHex(16)
			}
			ctx = context.WithValue(ctx, traceKey{}, "00-"+s.TraceID+"-"+s.ID+"-"+flags)
			answer, err := next(ctx, m)
			if done != nil {
				s.Took, s.Err = time.Since(s.Began), err
				done(ctx, s)
			}
			return answer, err
		}
	}
}

// parseTraceParent reads version 00, and of later versions what they have in common with it.
func parseTraceParent(s string) (trace, span string, ok bool) {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || len(s) > 55 && (s[:2] == "00" || s[55] != '-') {
		return "", "", false
	}
	version, trace, span, flags := s[:2], s[3:35], s[36:52], s[53:55]
	for _, part := range []string{version, trace, span, flags} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return "", "", false
		}
	}
	if version == "ff" || strings.Trim(trace, "0") == "" || strings.Trim(span, "0") == "" {
		return "", "", false
	}
	return trace, span, true
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}
