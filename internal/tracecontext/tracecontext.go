// Package tracecontext reads W3C Trace Context, the header traceparent that leads through a request from service to service (https://www.w3.org/TR/trace-context/).
package tracecontext

import "strings"

// Parent is a trace context taken apart: who called, in which trace.
type Parent struct {
	// Trace has 32, Span 16, Flags 2 lower-case hexadecimal digits.
	Trace, Span, Flags string
}

// String is the header's form, of version 00.
func (p Parent) String() string { return "00-" + p.Trace + "-" + p.Span + "-" + p.Flags }

// Parse reads version 00, and of later versions what they have in common with it; false for what is none.
func Parse(s string) (Parent, bool) {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || len(s) > 55 && (s[:2] == "00" || s[55] != '-') {
		return Parent{}, false
	}
	p := Parent{Trace: s[3:35], Span: s[36:52], Flags: s[53:55]}
	for _, part := range []string{s[:2], p.Trace, p.Span, p.Flags} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return Parent{}, false
		}
	}
	if s[:2] == "ff" || strings.Trim(p.Trace, "0") == "" || strings.Trim(p.Span, "0") == "" {
		return Parent{}, false
	}
	return p, true
}
