package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxDepth is how deep the JSON of a body may be.
const maxDepth = 32

// elsewhere finds the places in a request that are not in its body.
var elsewhere = regexp.MustCompile(`^(path|query|header)\.`)

// takeBody reads the body of a request and refuses what could be understood in two ways. An operation without a body is limited to 0.
func takeBody(r *http.Request, limit int64) ([]byte, *Problem) {
	if limit == 0 {
		// One byte tells: a chunked body says nothing of its length.
		if n, _ := io.ReadFull(r.Body, make([]byte, 1)); n > 0 {
			return nil, newProblem(http.StatusBadRequest, "Malformed", "this operation takes no body")
		}
		return nil, nil
	}
	if p := checkMedia(r.Header); p != nil {
		return nil, p
	}
	tooLarge := newProblem(http.StatusRequestEntityTooLarge, "TooLarge", "the body has more than %d bytes", limit)
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	timeout := net.Error(nil)
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, newProblem(http.StatusRequestTimeout, "Timeout", "the body did not come in time")
	case err != nil:
		return nil, newProblem(http.StatusBadRequest, "Malformed", "the body cannot be read to its end")
	case int64(len(body)) > limit:
		return nil, tooLarge
	}
	if err := checkJSON(body); err != nil {
		p := newProblem(http.StatusBadRequest, "Malformed", "the body is not valid: %v", err)
		p.Errors = []ProblemField{{Location: err.at(), Message: err.message}}
		return nil, p
	}
	return body, nil
}

// checkMedia takes JSON in UTF-8, and nothing that is packed.
func checkMedia(h http.Header) *Problem {
	media, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	if err != nil || media != "application/json" || charset != "" && charset != "utf-8" || len(h.Values("Content-Type")) > 1 {
		return newProblem(http.StatusUnsupportedMediaType, "UnsupportedMediaType", "the body has to be JSON: send it with Content-Type: application/json").with("Accept-Post", "application/json")
	}
	if coding := h.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return newProblem(http.StatusUnsupportedMediaType, "UnsupportedMediaType", "the body must not be compressed").with("Accept-Encoding", "identity")
	}
	return nil
}

// jsonError is what is wrong with JSON, and where.
type jsonError struct {
	path    []string
	message string
}

func (e *jsonError) Error() string { return e.message + " at " + e.at() }
func (e *jsonError) at() string    { return strings.Join(append([]string{"body"}, e.path...), ".") }

// checkJSON refuses what is no single JSON value, what is deeper than maxDepth, and objects in which a key stands twice: whoever looks at such a one sees one value, and whoever acts on it another.
func checkJSON(data []byte) *jsonError {
	if len(bytes.TrimSpace(data)) == 0 {
		return &jsonError{message: "there is none"}
	}
	if !utf8.Valid(data) {
		return &jsonError{message: "it is not UTF-8"}
	}
	c := jsonChecker{decoder: json.NewDecoder(bytes.NewReader(data))}
	c.decoder.UseNumber()
	if err := c.value(nil, 0); err != nil {
		return err
	}
	if _, err := c.decoder.Token(); !errors.Is(err, io.EOF) {
		return &jsonError{message: "something follows the JSON value"}
	}
	return nil
}

type jsonChecker struct{ decoder *json.Decoder }

func (c jsonChecker) token(path []string) (json.Token, *jsonError) {
	t, err := c.decoder.Token()
	if err != nil {
		message := "it ends in the middle"
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			message = fmt.Sprintf("it is no JSON (byte %d)", syntax.Offset)
		}
		return nil, &jsonError{path, message}
	}
	return t, nil
}

func (c jsonChecker) value(path []string, depth int) *jsonError {
	t, err := c.token(path)
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth++; depth > maxDepth {
		return &jsonError{path[:min(len(path), 4)], fmt.Sprintf("it is deeper than %d levels", maxDepth)}
	}
	seen := map[string]bool{}
	for i := 0; c.decoder.More(); i++ {
		name := fmt.Sprintf("%d", i)
		if open == '{' {
			t, err := c.token(path)
			if err != nil {
				return err
			}
			name, _ = t.(string)
			if seen[name] {
				return &jsonError{append(path, shortened(name)), "the key stands there twice"}
			}
			seen[name] = true
		}
		if err := c.value(append(path[:len(path):len(path)], shortened(name)), depth); err != nil {
			return err
		}
	}
	_, err = c.token(path)
	return err
}

// shortened is a key as a message has it.
func shortened(key string) string {
	const most = 64
	if len(key) <= most {
		return key
	}
	return strings.ToValidUTF8(key[:most], "") + "…"
}
