package kernel

import (
	"bytes"
	"database/sql/driver"
	"fmt"
	"strconv"
)

// MaxQuantity is the largest quantity.
const MaxQuantity = 1_000_000_000

// Quantity is how many: 1 to MaxQuantity. Its JSON form is a number, its SQL form an integer.
type Quantity struct{ n int64 }

// NewQuantity makes a quantity.
func NewQuantity(n int64) (Quantity, error) {
	if n < 1 || n > MaxQuantity {
		return Quantity{}, invalid("quantity", strconv.FormatInt(n, 10), fmt.Sprintf("it is from 1 to %d", MaxQuantity))
	}
	return Quantity{n}, nil
}

// Int64 is the number; 0 for none.
func (q Quantity) Int64() int64 { return q.n }

func (q Quantity) String() string { return strconv.FormatInt(q.n, 10) }

// IsNone reports whether this is the zero value.
func (q Quantity) IsNone() bool { return q.n == 0 }

// Add fails when the sum is more than MaxQuantity.
func (q Quantity) Add(o Quantity) (Quantity, error) { return NewQuantity(q.n + o.n) }

// Sub fails when nothing is left.
func (q Quantity) Sub(o Quantity) (Quantity, error) { return NewQuantity(q.n - o.n) }

// MarshalJSON implements json.Marshaler.
func (q Quantity) MarshalJSON() ([]byte, error) {
	if q.IsNone() {
		return nil, none("quantity")
	}
	return strconv.AppendInt(nil, q.n, 10), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (q *Quantity) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return invalid("quantity", string(b), "a whole number is needed")
	}
	v, err := NewQuantity(n)
	if err == nil {
		*q = v
	}
	return err
}

// Value implements driver.Valuer.
func (q Quantity) Value() (driver.Value, error) {
	if q.IsNone() {
		return nil, none("quantity")
	}
	return q.n, nil
}

// Scan implements sql.Scanner.
func (q *Quantity) Scan(src any) error {
	if n, ok := src.(int64); ok {
		v, err := NewQuantity(n)
		if err == nil {
			*q = v
		}
		return err
	}
	return scanText("quantity", src, func(s string) error { return q.UnmarshalJSON([]byte(s)) })
}
