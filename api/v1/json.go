package v1

import (
	"bytes"
	"encoding/json"
)

// JSON is any JSON value.
type JSON struct {
	// Raw is the text of the value. Empty means null.
	Raw []byte `json:"-"`
}

// MarshalJSON implements json.Marshaler.
func (j JSON) MarshalJSON() ([]byte, error) {
	if len(j.Raw) == 0 {
		return []byte("null"), nil
	}
	return j.Raw, nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (j *JSON) UnmarshalJSON(data []byte) error {
	j.Raw = bytes.Clone(data)
	return nil
}

var (
	_ json.Marshaler   = JSON{}
	_ json.Unmarshaler = (*JSON)(nil)
)
