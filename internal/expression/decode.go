package expression

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// Decode turns one JSON value into JSON-like Go values: integers that fit become int64, other numbers float64. Of a name
// that an object has twice the last value counts. Nesting is limited to MaxDepth. Empty input is null.
func Decode(raw json.RawMessage) (any, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, nil
	}
	d := decoders.Get().(*jsontext.Decoder)
	defer func() {
		d.Reset(nothing{}) // it is not to hold on to the input
		decoders.Put(d)
	}()
	// It accepts what encoding/json accepts.
	d.Reset(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	v, err := decodeValue(d, 0)
	if err != nil {
		return nil, fmt.Errorf("decode JSON: %w", err)
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode JSON: more follows after the value")
	}
	return v, nil
}

// Check fails as Decode would, and builds nothing.
func Check(raw json.RawMessage) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for {
		t, err := d.ReadToken()
		if err == nil && t.Kind() == '0' {
			_, err = number(t.String())
		}
		switch {
		case err != nil:
			return fmt.Errorf("decode JSON: %w", err)
		case d.StackDepth() > MaxDepth:
			return fmt.Errorf("decode JSON: nested deeper than %d levels", MaxDepth)
		case d.StackDepth() > 0:
			continue
		}
		if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
			return errors.New("decode JSON: more follows after the value")
		}
		return nil
	}
}

// decoders are used again: making one costs more than a small value does.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// nothing is an empty reader.
type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }

func decodeValue(d *jsontext.Decoder, depth int) (any, error) {
	t, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch kind := t.Kind(); kind {
	case '{', '[':
		if depth++; depth > MaxDepth {
			return nil, fmt.Errorf("nested deeper than %d levels", MaxDepth)
		}
		if kind == '{' {
			return decodeObject(d, depth)
		}
		return decodeArray(d, depth)
	case '"':
		return t.String(), nil
	case '0':
		return number(t.String())
	case 't', 'f':
		return kind == 't', nil
	default:
		return nil, nil
	}
}

func decodeObject(d *jsontext.Decoder, depth int) (any, error) {
	object := map[string]any{}
	for d.PeekKind() != '}' {
		t, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		name := t.String() // the token is good until the next one is read
		if object[name], err = decodeValue(d, depth); err != nil {
			return nil, err
		}
	}
	_, err := d.ReadToken()
	return object, err
}

func decodeArray(d *jsontext.Decoder, depth int) (any, error) {
	array := []any{}
	for d.PeekKind() != ']' {
		v, err := decodeValue(d, depth)
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
	_, err := d.ReadToken()
	return array, err
}

func number(n string) (any, error) {
	if i, err := strconv.ParseInt(n, 10, 64); err == nil {
		return i, nil
	}
	f, err := strconv.ParseFloat(n, 64)
	if err != nil {
		return nil, fmt.Errorf("the number %.40s is out of range", n)
	}
	return f, nil
}
