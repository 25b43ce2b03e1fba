package saga

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// eventTypes returns the types that implement Event, as the package's source declares them.
func eventTypes(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), entry.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Name.Name == "EventType" && f.Recv != nil {
				if name, ok := f.Recv.List[0].Type.(*ast.Ident); ok {
					names = append(names, name.Name)
					continue
				}
				t.Errorf("%s: an event implements Event by value", entry.Name())
			}
		}
	}
	slices.Sort(names)
	return names
}

// panicOf returns what a function panics with; nil if it returns.
func panicOf(do func()) (p any) {
	defer func() { p = recover() }()
	do()
	return nil
}

// TestEventTypesAreKnownEverywhere finds the events in the source: a new one that the codec, the
// fold or the notices have forgotten fails here. The read models are compared with EventTypes by
// TestTheReadModelsKnowEveryTypeOfEvent of internal/projection/sagas.
func TestEventTypesAreKnownEverywhere(t *testing.T) {
	t.Parallel()
	types := eventTypes(t)
	if len(types) < 13 {
		t.Fatalf("the source declares only %v", types)
	}
	if known := EventTypes(); !slices.Equal(types, known) {
		t.Errorf("the source declares %v, but the codec decodes %v", types, known)
	}
	data := json.RawMessage(`{"direction": "action", "next": "Retry", "outcome": "Unknown", "verdict": "Skip"}`)
	for name, d := range decoders {
		e, err := d.strict(data)
		if err != nil {
			t.Errorf("%s is not decoded: %v", name, err)
			continue
		}
		if typ := reflect.TypeOf(e).Name(); typ != name || e.EventType() != name {
			t.Errorf("%s is decoded as a %s of the type %s", name, typ, e.EventType())
		}
		if p := panicOf(func() { NoticeOf(e) }); p != nil {
			t.Errorf("NoticeOf: %v", p)
		}
		if p := panicOf(func() { Evolve(State{}, e) }); p != nil {
			t.Errorf("apply: %v", p)
		}
	}
}

type strangeEvent struct{ At }

func (strangeEvent) EventType() string { return "Strange" }

// TestEvolvePanicsAtAnUnknownEvent: no caller can have one, because Unmarshal refuses it.
func TestEvolvePanicsAtAnUnknownEvent(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(){
		"NoticeOf": func() { NoticeOf(strangeEvent{}) },
		"Evolve":   func() { Evolve(State{}, strangeEvent{}) },
	} {
		if p := panicOf(do); !strings.Contains(fmt.Sprint(p), "strangeEvent") {
			t.Errorf("%s panics with %v", name, p)
		}
	}
}
