package v1_test

import (
	"reflect"
	"strings"
	"testing"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// fieldsOf calls visit with every field that users write in a type, and with its path in the manifest.
func fieldsOf(typ reflect.Type, path string, visit func(path string)) {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		fieldsOf(typ.Elem(), path, visit)
	case reflect.Struct:
		if !strings.HasPrefix(typ.PkgPath(), "github.com/vextrus/") {
			visitForeign(typ, path, visit)
			return
		}
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			below := path + "." + name
			if f.Anonymous {
				below = path
			}
			visit(below)
			fieldsOf(f.Type, below, visit)
		}
	}
}

// visitForeign visits the fields of a type of Kubernetes, such as an ObjectReference, but not what is
// below them: a schema of JSON holds itself.
func visitForeign(typ reflect.Type, path string, visit func(path string)) {
	for f := range typ.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		visit(path + "." + name)
	}
}

// TestNoReferenceNamesNamespace looks at what users write in all kinds of objects. The operator has more
// rights than they have: it would read for one namespace what belongs to another.
func TestNoReferenceNamesNamespace(t *testing.T) {
	t.Parallel()
	references := 0
	for kind, spec := range map[string]any{"Saga": v1.SagaSpec{}, "Sink": v1.SinkSpec{}, "ClusterSink": v1.ClusterSinkSpec{}} {
		fields := 0
		fieldsOf(reflect.TypeOf(spec), kind+".spec", func(path string) {
			fields++
			if strings.HasSuffix(path, "Ref") {
				references++
			}
			last := strings.ToLower(path[strings.LastIndexByte(path, '.')+1:])
			if last == "namespaces" || strings.HasSuffix(last, "namespace") {
				t.Errorf("%s lets one namespace borrow from another", path)
			}
		})
		if fields < 20 {
			t.Errorf("only %d fields of a %s were looked at", fields, kind)
		}
	}
	if references < 4 { // two each of a Sink and a ClusterSink
		t.Errorf("only %d references were found", references)
	}
}
