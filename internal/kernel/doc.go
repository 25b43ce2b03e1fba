// Package kernel has the value objects that services share: money, quantities, addresses, ids. A value is checked when it is made and never changes, so whoever has one
// need not check it again. Each has a text form, which is also its form in JSON and in a database, and comes back from there as it was. Zero values are not values: they
// stand for "none", and encoding one is an error, so that no nothing is ever stored as something.
package kernel

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrInvalid is every error of this package that says that something is not a value; test with errors.Is.
var ErrInvalid = errors.New("not valid")

// maxEchoed bounds what an error repeats of its input.
const maxEchoed = 64

// invalid makes an error that names the kind of value, what was given, and what would be right.
func invalid(kind, given, right string) error {
	if len(given) > maxEchoed {
		cut := maxEchoed
		for !utf8.RuneStart(given[cut]) {
			cut--
		}
		given = given[:cut] + "…"
	}
	return fmt.Errorf("%s: %q is %w: %s", kind, given, ErrInvalid, right)
}

// none is the error of encoding a zero value.
func none(kind string) error { return fmt.Errorf("%s: there is none to encode: %w", kind, ErrInvalid) }

// text is a value with a text form.
type text interface{ MarshalText() ([]byte, error) }

// sqlValue is what a database is given.
func sqlValue(t text) (driver.Value, error) {
	b, err := t.MarshalText()
	if err != nil {
		return nil, err
	}
	return string(b), nil
}

// scanText reads what a database gives.
func scanText(kind string, src any, parse func(string) error) error {
	switch s := src.(type) {
	case string:
		return parse(s)
	case []byte:
		return parse(string(s))
	case nil:
		return fmt.Errorf("%s: NULL is %w; scan a column that may be NULL into a pointer to a pointer", kind, ErrInvalid)
	default:
		return fmt.Errorf("%s: a %T is %w: text is needed", kind, src, ErrInvalid)
	}
}
