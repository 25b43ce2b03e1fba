package kernel

import (
	"database/sql/driver"
	"net/mail"
	"strings"
)

// maxEmail is the longest address that mail can be sent to (RFC 5321, 4.5.3.1.3, less the angle brackets).
const maxEmail = 254

// Email is a mail address without a name. Its domain is in lower case; what stands before the "@" is kept as it is, since only its host knows what it means.
type Email struct{ address string }

// ParseEmail reads an address such as ada@example.com.
func ParseEmail(s string) (Email, error) {
	if len(s) > maxEmail {
		return Email{}, invalid("email", s, "an address has at most 254 bytes")
	}
	a, err := mail.ParseAddress(s)
	if err != nil || a.Name != "" || a.Address != s || strings.ContainsFunc(s, notPlain) {
		return Email{}, invalid("email", s, "a plain address such as ada@example.com is needed")
	}
	at := strings.LastIndexByte(s, '@')
	return Email{s[:at] + strings.ToLower(s[at:])}, nil
}

// notPlain reports what has no place in an address: quoting, spaces and control characters.
func notPlain(r rune) bool {
	return r <= ' ' || r == 0x7f || r == '"' || r == '(' || r == ')' || r == '\\'
}

func (e Email) String() string { return e.address }

// Domain is what stands behind the "@".
func (e Email) Domain() string {
	_, domain, _ := strings.Cut(e.address, "@")
	return domain
}

// IsNone reports whether this is the zero value.
func (e Email) IsNone() bool { return e.address == "" }

// MarshalText implements encoding.TextMarshaler, and with it JSON.
func (e Email) MarshalText() ([]byte, error) {
	if e.IsNone() {
		return nil, none("email")
	}
	return []byte(e.address), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *Email) UnmarshalText(b []byte) error {
	v, err := ParseEmail(string(b))
	if err == nil {
		*e = v
	}
	return err
}

// Value implements driver.Valuer.
func (e Email) Value() (driver.Value, error) { return sqlValue(e) }

// Scan implements sql.Scanner.
func (e *Email) Scan(src any) error {
	return scanText("email", src, func(s string) error { return e.UnmarshalText([]byte(s)) })
}
