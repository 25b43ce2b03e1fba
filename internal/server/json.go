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

// The limits of the JSON of a body: levels of nesting, and values and names together.
const (
	maxDepth = 32
	maxNodes = 50_000
	// nodeBytes is the estimated memory of one decoded value or name, in bytes, without its text.
	// An object with one entry is the worst case: it has three nodes and takes about 400 bytes.
	nodeBytes = 160
)

// jsonError is a violation in a JSON body, with the path to it.
type jsonError struct {
	path    []string
	message string
}

func (e *jsonError) Error() string { return e.message + " at " + e.at() }
func (e *jsonError) at() string    { return strings.Join(append([]string{"body"}, e.path...), ".") }

// checkJSON checks that data is a single JSON value in UTF-8, within maxDepth and maxNodes. It
// fails for a duplicate key, because two readers of the object could see different values. It
// returns the number of values and names, and does not build a tree.
func checkJSON(data []byte) (nodes int, _ *jsonError) {
	if len(bytes.TrimSpace(data)) == 0 {
		return 0, &jsonError{message: "there is none"}
	}
	if !utf8.Valid(data) {
		return 0, &jsonError{message: "it is not UTF-8"}
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(data)) // by default, it fails on duplicate keys
	for {
		t, err := d.ReadToken()
		if kind := t.Kind(); kind != '}' && kind != ']' {
			nodes++
		}
		switch {
		case err != nil:
			return nodes, asJSONError(d, err)
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

// asJSONError describes an error of the decoder for clients.
func asJSONError(d *jsontext.Decoder, err error) *jsonError {
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

// pathOf returns the elements of a pointer, each shortened.
func pathOf(p jsontext.Pointer) (path []string) {
	for name := range p.Tokens() {
		path = append(path, shortened(name))
	}
	return path
}

// shortened returns a key for use in a message, cut to 64 bytes.
func shortened(key string) string {
	const most = 64
	if len(key) <= most {
		return key
	}
	return strings.ToValidUTF8(key[:most], "") + "…"
}
