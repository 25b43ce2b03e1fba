package expression

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// maxSamples limits the URLs that [SampleURLs] returns.
const maxSamples = 64

var (
	errBase = errors.New("begins with an expression, so a value could choose the host: write scheme and host as text, " +
		"or choose between texts, as in ${input.eu ? 'http://eu' : 'http://us'}")
	errPort    = errors.New("has an expression in its port: write the port as text")
	errSamples = fmt.Errorf("chooses between more than %d hosts: put the choice behind one host", maxSamples)
)

// place is a part of a URL.
type place int

const (
	// base is the beginning, before anything is known about the URL.
	base place = iota
	host
	port
	path
	query
)

// placeAfter returns the place of a value behind the part of a URL that is already rendered.
func placeAfter(before string) place {
	_, rest, absolute := strings.Cut(before, "://")
	switch {
	case before == "":
		return base
	case strings.Contains(before, "?"):
		return query
	case absolute && strings.Contains(rest, "/"):
		return path
	case strings.Contains(rest[strings.LastIndexByte(rest, ']')+1:], ":") && !openBracket(rest):
		return port
	}
	return host
}

// openBracket reports whether an IPv6 address in a host has begun and not ended.
func openBracket(host string) bool {
	return strings.LastIndexByte(host, '[') > strings.LastIndexByte(host, ']')
}

// escapeURL escapes a value for its place behind the part of a URL that is already rendered. A value
// can change neither the host, nor the path around it, nor the query. In the host it can only be a
// DNS label or a part of one, unless it is a text that the template itself has: fixed says so. A
// value at the very beginning is left as it is; SampleURLs refuses it if it is not fixed.
func escapeURL(before, value string, fixed bool) (string, error) {
	switch placeAfter(before) {
	case base:
		return value, nil
	case query:
		return url.QueryEscape(value), nil
	case host, port:
		if !isLabel(value) && (!fixed || !isHost(value)) {
			return "", fmt.Errorf("%q cannot stand in the host of a URL: only letters, digits and - can, because dots and colons choose another host; "+
				"write those as text, or put the value into the path", clip(value))
		}
		return value, nil
	case path:
		// DELETE /reservations/ with nothing behind it means another thing than the user wrote.
		if value == "" {
			return "", errors.New("the value is empty and cannot stand in the path of a URL")
		}
	}
	return url.PathEscape(value), nil
}

func isHost(s string) bool {
	return s != "" && strings.Trim(s, hostCharacters) == ""
}

// isLabel reports whether a text is a DNS label or a part of one.
func isLabel(s string) bool {
	return s != "" && strings.Trim(s, labelCharacters) == ""
}

const (
	labelCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
	hostCharacters  = labelCharacters + ".:[]"
)

// SampleURLs returns URLs that a template can become, for a check before any value is known. They
// have 1 in the place of each value. An expression that only chooses between texts of its own
// stands for each of them. The error names an expression by which values could choose the host.
func SampleURLs(template string) ([]string, error) {
	parts, err := scan(template)
	if err != nil {
		return nil, err
	}
	samples := []string{""}
	for _, p := range parts {
		var next []string
		for _, before := range samples {
			values := []string{p.text}
			if p.expr {
				if values, err = sampleValues(p.text, before); err != nil {
					return nil, err
				}
			}
			for _, value := range values {
				next = append(next, before+value)
			}
		}
		if samples = next; len(samples) > maxSamples {
			return nil, errSamples
		}
	}
	return samples, nil
}

// sampleValues returns what an expression can become behind a part of a URL.
func sampleValues(source, before string) ([]string, error) {
	at := placeAfter(before)
	if at == path || at == query {
		return []string{"1"}, nil
	}
	prog, _ := programs.get(source, WithoutResponse, nil) // Compile reports the error
	switch {
	case prog == nil:
		return []string{"1"}, nil
	case prog.choices == nil && at == base:
		return nil, errBase
	case prog.choices == nil && at == port:
		return nil, errPort
	case prog.choices == nil:
		return []string{"1"}, nil
	}
	for _, text := range prog.choices {
		if _, err := escapeURL(before, text, true); err != nil {
			return nil, err
		}
	}
	return prog.choices, nil
}

// choices returns the texts between which an expression chooses: all its values are written in it. It
// returns nil for any other expression.
func choices(e ast.Expr) []string {
	switch e.Kind() {
	case ast.LiteralKind:
		if s, ok := e.AsLiteral().(types.String); ok {
			return []string{string(s)}
		}
	case ast.CallKind:
		c := e.AsCall()
		if c.FunctionName() != operators.Conditional {
			return nil
		}
		yes, no := choices(c.Args()[1]), choices(c.Args()[2])
		if yes != nil && no != nil && len(yes)+len(no) <= maxSamples {
			return append(yes, no...)
		}
	}
	return nil
}
