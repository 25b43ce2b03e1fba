package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// The limits of the JSON of a body.
const (
	maxDepth = 32
	maxNodes = 50_000
	// nodeBytes is what a value or a name takes when it is decoded, however few bytes it has as text. An object with one entry is the worst:
	// it has three of them and takes some 400 bytes.
	nodeBytes = 160
)

// jsonError is what is wrong with JSON, and where.
type jsonError struct {
	path    []string
	message string
}

func (e *jsonError) Error() string { return e.message + " at " + e.at() }
func (e *jsonError) at() string    { return strings.Join(append([]string{"body"}, e.path...), ".") }

// checkJSON refuses what is no single JSON value, what is deeper than maxDepth or has more values and names than maxNodes, and objects
// in which a key stands twice: whoever looks at such a one sees one value, and whoever acts on it another. It builds nothing of it, and
// returns how many values and names there are.
func checkJSON(data []byte) (nodes int, _ *jsonError) {
	if len(bytes.TrimSpace(data)) == 0 {
		return 0, &jsonError{message: "there is none"}
	}
	if !utf8.Valid(data) {
		return 0, &jsonError{message: "it is not UTF-8"}
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(data)) // it is the one that refuses keys that stand twice
	for {
		t, err := d.ReadToken()
		if kind := t.Kind(); kind != '}' && kind != ']' {
			nodes++
		}
		switch {
		case err != nil:
			return nodes, inJSON(d, err)
		case d.StackDepth() > maxDepth:
			path := pathOf(d.StackPointer())
			return nodes, &jsonError{path[:min(len(path), 4)], fmt.Sprintf("it is deeper than %d levels", maxDepth)}
		case nodes > maxNodes:
			return nodes, &jsonError{message: fmt.Sprintf("it has more than %d values and names", maxNodes)}
		case d.StackDepth() > 0:
			continue
		}
		if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
			return nodes, &jsonError{message: "something follows the JSON value"}
		}
		return nodes, nil
	}
}

// inJSON says in a client's words what the decoder met.
func inJSON(d *jsontext.Decoder, err error) *jsonError {
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return &jsonError{pathOf(d.StackPointer()), "it ends in the middle"}
	}
	path := pathOf(syntax.JSONPointer)
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return &jsonError{path, "the key stands there twice"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &jsonError{path, "it ends in the middle"}
	default:
		return &jsonError{path, fmt.Sprintf("it is no JSON (byte %d)", syntax.ByteOffset)}
	}
}

// pathOf takes a pointer apart.
func pathOf(p jsontext.Pointer) (path []string) {
	for name := range p.Tokens() {
		path = append(path, shortened(name))
	}
	return path
}

// shortened is a key as a message has it.
func shortened(key string) string {
	const most = 64
	if len(key) <= most {
		return key
	}
	return strings.ToValidUTF8(key[:most], "") + "…"
}
