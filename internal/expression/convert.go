package expression

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// sizer bounds what is rendered.
type sizer struct{ bytes, nodes int }

func (s *sizer) add(n int) error {
	s.bytes += n
	s.nodes++
	if s.bytes > MaxRenderedBytes {
		return errTooLarge
	}
	if s.nodes > maxNodes {
		return errTooMany
	}
	return nil
}

// convert copies a CEL value, or a JSON-like one, into a JSON-like one.
func (s *sizer) convert(value any, depth int) (any, error) {
	if depth > MaxDepth {
		return nil, errTooDeep
	}
	switch v := value.(type) {
	case traits.Mapper:
		return s.mapper(v, depth)
	case traits.Lister:
		return s.lister(v, depth)
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			c, err := s.convert(e, depth+1)
			if err == nil {
				err = s.add(len(k) + 4)
			}
			if err != nil {
				return nil, err
			}
			m[k] = c
		}
		return m, s.add(2)
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			c, err := s.convert(e, depth+1)
			if err != nil {
				return nil, err
			}
			list[i] = c
		}
		return list, s.add(2)
	}
	scalar, err := scalar(value)
	if err != nil {
		return nil, err
	}
	if text, ok := scalar.(string); ok {
		return scalar, s.add(len(text) + 2)
	}
	return scalar, s.add(8)
}

func scalar(value any) (any, error) {
	switch v := value.(type) {
	case nil, bool, int64, string:
		return v, nil
	case float64:
		return finite(v)
	case types.Null:
		return nil, nil
	case types.Bool:
		return bool(v), nil
	case types.Int:
		return int64(v), nil
	case types.Uint:
		// As Decode reads such a number.
		if v > math.MaxInt64 {
			return float64(v), nil
		}
		return int64(v), nil
	case types.Double:
		return finite(float64(v))
	case types.String:
		return string(v), nil
	case types.Bytes:
		return base64.StdEncoding.EncodeToString(v), nil
	case types.Timestamp:
		return v.UTC().Format(time.RFC3339Nano), nil
	case types.Duration:
		return strconv.FormatFloat(v.Seconds(), 'f', -1, 64) + "s", nil
	case ref.Val:
		return nil, fmt.Errorf("a value of type %s is not a JSON value", v.Type().TypeName())
	}
	return nil, fmt.Errorf("a %T is not a JSON value", value)
}

func finite(f float64) (any, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, errors.New("the number is not finite, and JSON has no such number")
	}
	return f, nil
}

func (s *sizer) mapper(v traits.Mapper, depth int) (any, error) {
	m := map[string]any{}
	for it := v.Iterator(); it.HasNext() == types.True; {
		key := it.Next()
		name, err := keyName(key)
		if err != nil {
			return nil, err
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("two keys of a map are both written %q in JSON", clip(name))
		}
		c, err := s.convert(v.Get(key), depth+1)
		if err == nil {
			err = s.add(len(name) + 4)
		}
		if err != nil {
			return nil, err
		}
		m[name] = c
	}
	return m, s.add(2)
}

func keyName(key ref.Val) (string, error) {
	switch k := key.(type) {
	case types.String:
		return string(k), nil
	case types.Int:
		return strconv.FormatInt(int64(k), 10), nil
	case types.Uint:
		return strconv.FormatUint(uint64(k), 10), nil
	case types.Bool:
		return strconv.FormatBool(bool(k)), nil
	}
	return "", fmt.Errorf("a %s cannot be a key in JSON", key.Type().TypeName())
}

func (s *sizer) lister(v traits.Lister, depth int) (any, error) {
	n := v.Size().(types.Int)
	if n > maxNodes {
		return nil, errTooMany
	}
	list := make([]any, n)
	for i := range n {
		c, err := s.convert(v.Get(i), depth+1)
		if err != nil {
			return nil, err
		}
		list[i] = c
	}
	return list, s.add(2)
}

// textOf renders a value inside a longer string.
func textOf(value any) (string, error) {
	var s sizer
	v, err := s.convert(value, 0)
	if err != nil {
		return "", err
	}
	switch v := v.(type) {
	case nil:
		return "", errNull
	case string:
		return v, nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// adapter makes CEL walk maps in the order of their keys. Go's order is random, and a body must be the same at every attempt.
type adapter struct{ types.Adapter }

// NativeToValue implements types.Adapter.
func (a adapter) NativeToValue(value any) ref.Val {
	switch v := value.(type) {
	case map[string]any:
		return orderedMap{types.NewMap(a, v)}
	case map[ref.Val]ref.Val:
		return orderedMap{types.NewMap(a, v)}
	case []any:
		return types.NewDynamicList(a, v)
	}
	v := a.Adapter.NativeToValue(value)
	if m, ok := v.(traits.Mapper); ok {
		return ordered(m)
	}
	return v
}

type orderedMap struct{ traits.Mapper }

func ordered(m traits.Mapper) traits.Mapper {
	if _, already := m.(orderedMap); already {
		return m
	}
	return orderedMap{m}
}

// Iterator implements traits.Iterable.
func (m orderedMap) Iterator() traits.Iterator {
	keys := make([]ref.Val, 0, int(m.Size().(types.Int)))
	for it := m.Mapper.Iterator(); it.HasNext() == types.True; {
		keys = append(keys, it.Next())
	}
	slices.SortFunc(keys, compareKeys)
	return types.NewRefValList(types.DefaultTypeAdapter, keys).Iterator()
}

func compareKeys(a, b ref.Val) int {
	if a, ok := a.(types.String); ok {
		if b, ok := b.(types.String); ok {
			return cmp.Compare(a, b)
		}
	}
	if a.Type() != b.Type() {
		return cmp.Compare(a.Type().TypeName(), b.Type().TypeName())
	}
	if c, ok := a.(traits.Comparer); ok {
		if order, ok := c.Compare(b).(types.Int); ok {
			return int(order)
		}
	}
	return 0
}
