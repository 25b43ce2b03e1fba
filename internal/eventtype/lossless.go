package eventtype

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

var (
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// Lossless reports what of a type would not come back from JSON: encoding/json passes over unexported fields in silence, and the fold of what was read
// would then not be the fold of what was written. A type with its own JSON or text form, on the value and not on the pointer, answers for itself.
func Lossless(t reflect.Type) error { return lossless(t, t.String(), map[reflect.Type]bool{}) }

func lossless(t reflect.Type, path string, seen map[reflect.Type]bool) error {
	if seen[t] || ownForm(t) {
		return nil
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return lossless(t.Elem(), path, seen)
	case reflect.Map:
		return lossless(t.Elem(), path+"[…]", seen)
	case reflect.Struct:
		if err := distinct(t, path, map[string]string{}, map[reflect.Type]bool{}); err != nil {
			return err
		}
		for i := range t.NumField() {
			if err := field(t.Field(i), path, seen); err != nil {
				return err
			}
		}
		return nil
	case reflect.Interface:
		return fmt.Errorf("%s is an interface (%s): JSON does not say what was in it, and whole numbers above 2^53 come back as others; give it a type, or json.RawMessage", path, t)
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
		return fmt.Errorf("%s is a %s, which has no JSON form", path, t)
	default:
		return nil
	}
}

func field(f reflect.StructField, path string, seen map[reflect.Type]bool) error {
	path += "." + f.Name
	switch {
	case f.Name == "_":
		return nil
	case f.Anonymous && f.Type.Kind() == reflect.Struct && f.Tag.Get("json") != "-": // its exported fields are encoded even where its own name is unexported
		return lossless(f.Type, path, seen)
	case !f.IsExported():
		return fmt.Errorf("%s is unexported, and JSON would lose it; export it or give its struct MarshalJSON and UnmarshalJSON", path)
	case f.Tag.Get("json") == "-":
		return fmt.Errorf(`%s has the tag json:"-", and would be lost`, path)
	default:
		return lossless(f.Type, path, seen)
	}
}

// distinct reports fields of a struct, those of embedded structs included, that have the same name in JSON: encoding/json passes over one of them, or over both.
func distinct(t reflect.Type, path string, names map[string]string, seen map[reflect.Type]bool) error {
	if seen[t] {
		return nil
	}
	seen[t] = true
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		embedded := f.Type
		if embedded.Kind() == reflect.Pointer {
			embedded = embedded.Elem()
		}
		switch {
		case f.Tag.Get("json") == "-", !f.IsExported() && !f.Anonymous:
			continue
		case f.Anonymous && name == "" && embedded.Kind() == reflect.Struct:
			if err := distinct(embedded, path+"."+f.Name, names, seen); err != nil {
				return err
			}
			continue
		case name == "":
			name = f.Name
		}
		if other, twice := names[name]; twice {
			return fmt.Errorf("%s.%s has the name %q in JSON, as %s has, and one would be lost", path, f.Name, name, other)
		}
		names[name] = path + "." + f.Name
	}
	return nil
}

// ownForm reports whether a type writes and reads itself. A value in an interface has no address, so methods of the pointer would not be called to write it.
func ownForm(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	writes := t.Implements(jsonMarshaler) || t.Implements(textMarshaler)
	reads := p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler) || t.Implements(jsonUnmarshaler) || t.Implements(textUnmarshaler)
	return writes && reads
}
