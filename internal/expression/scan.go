package expression

import (
	"errors"
	"fmt"
	"strings"
)

// part is a stretch of a string: literal text, or the source of an expression.
type part struct {
	text string
	expr bool
}

// scan cuts a string into literal text and expressions. Adjacent literals are one part.
func scan(s string) ([]part, error) {
	if s == "" {
		return nil, nil
	}
	if !strings.Contains(s, "${") {
		return []part{{text: s}}, nil
	}
	var parts []part
	var text strings.Builder
	for i := 0; i < len(s); {
		switch {
		case strings.HasPrefix(s[i:], "$${"):
			text.WriteString("${")
			i += 3
		case strings.HasPrefix(s[i:], "${"):
			n := end(s[i+2:])
			if n < 0 {
				return nil, fmt.Errorf("the expression that begins with %q does not end: its } is missing (write $${ for a literal ${)", clip(s[i:]))
			}
			if text.Len() > 0 {
				parts = append(parts, part{text: text.String()})
				text.Reset()
			}
			source := strings.TrimSpace(s[i+2 : i+2+n])
			if source == "" {
				return nil, errors.New("${} holds no expression (write $${ for a literal ${)")
			}
			if len(source) > MaxExpressionBytes {
				return nil, fmt.Errorf("the expression %s is %d bytes long; the limit is %d", clip(source), len(source), MaxExpressionBytes)
			}
			parts = append(parts, part{text: source, expr: true})
			i += n + 3
		default:
			text.WriteByte(s[i])
			i++
		}
	}
	if text.Len() > 0 {
		parts = append(parts, part{text: text.String()})
	}
	return parts, nil
}

// end returns the index of the } that closes an expression, or -1. Braces in CEL's string literals and comments do not count.
func end(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '{':
			depth++
		case '}':
			if depth == 0 {
				return i
			}
			depth--
		case '"', '\'':
			n := literal(s[i:], isRaw(s, i))
			if n < 0 {
				return -1
			}
			i += n - 1
		case '/':
			if strings.HasPrefix(s[i:], "//") {
				n := strings.IndexByte(s[i:], '\n')
				if n < 0 {
					return -1
				}
				i += n
			}
		}
	}
	return -1
}

// literal returns the length of the string literal at the beginning of s, both quotes included, or -1 when it does not end.
func literal(s string, raw bool) int {
	quote := s[:1]
	if triple := strings.Repeat(quote, 3); strings.HasPrefix(s, triple) {
		quote = triple
	}
	for i := len(quote); i < len(s); i++ {
		switch {
		case s[i] == '\\' && !raw:
			i++
		case strings.HasPrefix(s[i:], quote):
			return i + len(quote)
		case len(quote) == 1 && s[i] == '\n':
			return -1
		}
	}
	return -1
}

// isRaw reports whether the quote at s[i] opens a raw literal: r"…", or with b for bytes in either order.
func isRaw(s string, i int) bool {
	begin := i
	for begin > 0 && (isLetter(s[begin-1]) || s[begin-1] >= '0' && s[begin-1] <= '9') {
		begin--
	}
	switch strings.ToLower(s[begin:i]) {
	case "r", "br", "rb":
		return true
	}
	return false
}

func isLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
}

// clip shortens user-written text for messages.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
