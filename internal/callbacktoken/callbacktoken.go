// Package callbacktoken makes the tokens of callbacks, and redacts them in what participants send.
//
// A participant often repeats the request that it got, headers included, in its response. A callback
// token is a credential, so it must not get from there into an event, a status, a message or a log.
// All tokens begin alike, and are found by that: also the token of another step or another saga. The
// idea is taken from GitHub's token formats.
package callbacktoken

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// prefix begins every token. It is long enough to stand in no other text by chance. It has only
// characters that URLs, headers and JSON leave as they are.
const prefix = "sagacallback_"

// Redacted takes the place of a token.
const Redacted = "[redacted]"

// randomBytes is the number of random bytes in a token.
const randomBytes = 32

// pattern also matches the beginning of a token: a text may have been cut to a maximum length.
var pattern = regexp.MustCompile(prefix + `[A-Za-z0-9_-]+`)

// New returns a token that cannot be guessed.
func New() string {
	raw := make([]byte, randomBytes)
	_, _ = rand.Read(raw) // it never fails
	return prefix + base64.RawURLEncoding.EncodeToString(raw)
}

// Redact replaces all tokens in s.
func Redact(s string) string {
	if !strings.Contains(s, prefix) {
		return s
	}
	return pattern.ReplaceAllLiteralString(s, Redacted)
}

// RedactError returns an error whose text has no token, and which wraps err; err itself if its text has
// none.
func RedactError(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if clean := Redact(text); clean != text {
		return &redactedError{clean, err}
	}
	return err
}

// redactedError is an error with another text.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }

// Unwrap is for errors.Is and errors.As.
func (e *redactedError) Unwrap() error { return e.err }

// RedactJSON returns raw with all tokens in strings and names replaced, also tokens that are written
// with escapes. raw must be valid JSON, and is not changed; the result is raw itself if it has no token.
func RedactJSON(raw json.RawMessage) json.RawMessage {
	if !bytes.Contains(raw, []byte(prefix)) && !bytes.Contains(raw, []byte(`\u00`)) {
		return raw
	}
	var out []byte
	last := 0
	for _, at := range escaped.FindAllIndex(raw, -1) {
		if isEscaped(raw, at[0]) {
			continue // the text has a backslash there, and no token
		}
		out = append(append(out, raw[last:at[0]]...), Redacted...)
		last = at[1]
	}
	if last == 0 {
		return raw
	}
	return append(out, raw[last:]...)
}

// escaped is [pattern] in JSON, where each character can be an escape.
var escaped = func() *regexp.Regexp {
	var b strings.Builder
	for _, c := range prefix {
		fmt.Fprintf(&b, `(?:%c|\\u00(?i:%02x))`, c, c)
	}
	return regexp.MustCompile(b.String() + `(?:[A-Za-z0-9_-]|\\u00(?i:2d|3[0-9]|4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9a]))+`)
}()

// isEscaped reports whether an odd number of backslashes precedes raw[at].
func isEscaped(raw []byte, at int) bool {
	before := bytes.TrimRight(raw[:at], `\`)
	return (at-len(before))%2 == 1
}

// RedactMap returns a copy of v with all tokens replaced, in names, too. v is made of what decoding
// JSON results in: maps, slices, strings, numbers, booleans, nil and json.RawMessage.
func RedactMap(v map[string]any) map[string]any {
	if v == nil {
		return nil
	}
	out := make(map[string]any, len(v))
	for name, value := range v {
		out[Redact(name)] = redactValue(value)
	}
	return out
}

func redactValue(v any) any {
	switch v := v.(type) {
	case string:
		return Redact(v)
	case json.RawMessage:
		return RedactJSON(v)
	case map[string]any:
		return RedactMap(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = redactValue(v[i])
		}
		return out
	}
	return v
}
