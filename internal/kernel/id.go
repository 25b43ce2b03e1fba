package kernel

import (
	"database/sql/driver"
	"fmt"

	"github.com/google/uuid"
)

// ID is the id of a T. The ids of different things are different types, so that one is never taken for another. It can be compared with == and be a map's key.
type ID[T any] struct{ uuid uuid.UUID }

// NewID makes an id that is new in the world: a UUIDv7 (RFC 9562), so that those made later sort later.
func NewID[T any]() (ID[T], error) {
	u, err := uuid.NewV7()
	if err != nil {
		return ID[T]{}, fmt.Errorf("making an id: %w", err)
	}
	return ID[T]{u}, nil
}

// ParseID reads an id: any UUID but the nil one, in its usual form of 36 characters. Ids that were made elsewhere may be of other versions.
func ParseID[T any](s string) (ID[T], error) {
	u, err := uuid.Parse(s)
	if err != nil || len(s) != 36 || u == uuid.Nil || u == uuid.Max || u.Variant() != uuid.RFC4122 {
		return ID[T]{}, invalid("id", s, "a UUID such as 01941f29-7c00-7000-8000-000000000000 is needed")
	}
	return ID[T]{u}, nil
}

// UUID is the id as a UUID.
func (i ID[T]) UUID() uuid.UUID { return i.uuid }

// String is the usual form in lower case; empty for none.
func (i ID[T]) String() string {
	if i.IsNone() {
		return ""
	}
	return i.uuid.String()
}

// IsNone reports whether this is the zero value.
func (i ID[T]) IsNone() bool { return i.uuid == uuid.Nil }

// MarshalText implements encoding.TextMarshaler, and with it JSON.
func (i ID[T]) MarshalText() ([]byte, error) {
	if i.IsNone() {
		return nil, none("id")
	}
	return []byte(i.uuid.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *ID[T]) UnmarshalText(b []byte) error {
	v, err := ParseID[T](string(b))
	if err == nil {
		*i = v
	}
	return err
}

// Value implements driver.Valuer.
func (i ID[T]) Value() (driver.Value, error) { return sqlValue(i) }

// Scan implements sql.Scanner.
func (i *ID[T]) Scan(src any) error {
	return scanText("id", src, func(s string) error { return i.UnmarshalText([]byte(s)) })
}
