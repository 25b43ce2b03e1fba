package idempotency

import (
	"fmt"
	"net/http"
	"strings"
)

// The headers of the protocol.
const (
	// HeaderKey brings the key: draft-ietf-httpapi-idempotency-key-header.
	HeaderKey = "Idempotency-Key"
	// HeaderOutcome vouches, with the value [OutcomeRejected], for a definite no: the response is stored under the key, so nothing has
	// happened under the key and nothing will. The saga operator believes such a no whatever earlier attempts have left open.
	HeaderOutcome = "Saga-Outcome"
	// OutcomeRejected is the one value of HeaderOutcome.
	OutcomeRejected = "Rejected"
	// HeaderReplayed says, with the value true, that an answer was given before.
	HeaderReplayed = "Idempotency-Replayed"
	// HeaderBodyOmitted says, with the value true, that an answer that was given before had a body, which was too large to be kept.
	HeaderBodyOmitted = "Idempotency-Body-Omitted"
)

// KeyOf returns the key of a request; empty where it has none. The header is the draft's structured string, "8e03978e", or the same text without quotes, as most clients send it: both are one
// key. Without quotes it has no spaces, commas, semicolons, quotes or backslashes. It fails with ErrInvalidKey, also for more than one key.
func KeyOf(h http.Header) (string, error) {
	values := h.Values(HeaderKey)
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return ParseKey(values[0])
	default:
		return "", fmt.Errorf("%w: there are %d headers %s, and one is needed", ErrInvalidKey, len(values), HeaderKey)
	}
}

// ParseKey reads the value of the header, as KeyOf says.
func ParseKey(value string) (string, error) {
	value = strings.Trim(value, " \t")
	key := value
	if strings.HasPrefix(value, `"`) {
		var err error
		if key, err = unquote(value); err != nil {
			return "", err
		}
	} else if i := strings.IndexFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`",;\`, r) }); i >= 0 {
		return "", fmt.Errorf(`%w: %q stands in it; put it into quotes: "…"`, ErrInvalidKey, value[i:i+1])
	}
	if err := (Key{Key: key}).Check(); err != nil {
		return "", err
	}
	return key, nil
}

// unquote reads a string of RFC 9651, section 4.2.5.
func unquote(s string) (string, error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			if i != len(s)-1 {
				return "", fmt.Errorf("%w: there is something behind the closing quote", ErrInvalidKey)
			}
			return b.String(), nil
		case c == '\\':
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", fmt.Errorf(`%w: a backslash stands before neither " nor \`, ErrInvalidKey)
			}
			b.WriteByte(s[i])
		case c < ' ' || c > '~':
			return "", fmt.Errorf("%w: it holds the byte 0x%02x; only printable ASCII is allowed", ErrInvalidKey, c)
		default:
			b.WriteByte(c)
		}
	}
	return "", fmt.Errorf("%w: the closing quote is missing", ErrInvalidKey)
}
