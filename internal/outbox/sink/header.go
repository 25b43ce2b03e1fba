package sink

import (
	"strings"
	"unicode/utf8"
)

// EscapeHeader writes the value of an attribute as the CloudEvents bindings for HTTP and NATS have it in a header: printable ASCII stays, except for spaces, quotes and
// percent signs; everything else is percent-encoded UTF-8. So a value cannot leave its line either.
func EscapeHeader(value string) string {
	const hex = "0123456789ABCDEF"
	first := 0
	for first < len(value) && plain(value[first]) {
		first++
	}
	if first == len(value) {
		return value // as nearly all are
	}
	var b strings.Builder
	b.Grow(3 * len(value))
	b.WriteString(value[:first])
	for i := first; i < len(value); i++ {
		if c := value[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&0xf]})
		}
	}
	return b.String()
}

func plain(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }

// UnescapeHeader reads what EscapeHeader wrote, also where another sender escaped more. What is no escape, or would be no UTF-8, stays as it is.
func UnescapeHeader(value string) string {
	if !strings.Contains(value, "%") {
		return value
	}
	out := make([]byte, 0, len(value))
	for i := 0; i < len(value); i++ {
		if value[i] == '%' && i+2 < len(value) {
			high, ok := nibble(value[i+1])
			low, also := nibble(value[i+2])
			if ok && also {
				out = append(out, high<<4|low)
				i += 2
				continue
			}
		}
		out = append(out, value[i])
	}
	if !utf8.Valid(out) {
		return value
	}
	return string(out)
}

func nibble(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
