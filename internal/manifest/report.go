package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vextrus/saga-operator/internal/saga"
)

// maxErrors bounds how many errors one manifest is told. Whoever has mended so many looks again.
const maxErrors = 20

// Report returns the errors of a manifest for people: in the order of their fields, each once, with paths
// that begin at spec, and at most maxErrors of them and then how many more there are at least: the compiler stops after many.
func Report(all ...[]saga.FieldError) []saga.FieldError {
	errs := slices.Concat(all...)
	if len(errs) == 0 {
		return nil
	}
	slices.SortFunc(errs, func(a, b saga.FieldError) int {
		return cmp.Or(compareFields(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	errs = slices.Compact(errs)
	more := len(errs) - maxErrors
	errs = errs[:min(len(errs), maxErrors)]
	for i := range errs {
		errs[i].Field = join("spec", errs[i].Field)
	}
	if more > 0 {
		errs = append(errs, saga.FieldError{Field: "spec", Message: fmt.Sprintf("and at least %d more errors", more)})
	}
	return errs
}

// compareFields orders paths as people do: steps[2] before steps[10].
func compareFields(a, b string) int {
	for a != "" && b != "" {
		n, m := digits(a), digits(b)
		if n > 0 && m > 0 {
			x, y := strings.TrimLeft(a[:n], "0"), strings.TrimLeft(b[:m], "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
				return c
			}
			a, b = a[n:], b[m:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits returns how many digits a text begins with.
func digits(s string) int {
	return len(s) - len(strings.TrimLeft(s, "0123456789"))
}

// join puts a path behind another; either may be empty.
func join(path, field string) string {
	switch {
	case path == "" || field == "":
		return path + field
	case field[0] == '[':
		return path + field
	}
	return path + "." + field
}

// encode is json.Marshal without the escapes for HTML: what is measured should be as long as what was written.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
