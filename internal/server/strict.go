package server

import (
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/vextrus/saga-operator/internal/budget"
)

// elsewhere finds the places in a request that are not in its body.
var elsewhere = regexp.MustCompile(`^(path|query|header)\.`)

// takeBody reads the body of a request and refuses what could be understood in two ways. An operation without a body is limited to 0.
func (s *Server) takeBody(r *http.Request, limit int64, memory *budget.Account) ([]byte, *Problem) {
	if err := memory.Take(requestBytes); err != nil {
		return nil, s.busy()
	}
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
	body, err := readBody(r, limit, memory)
	timeout := net.Error(nil)
	switch {
	case errors.Is(err, budget.ErrExhausted):
		return nil, s.busy()
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, newProblem(http.StatusRequestTimeout, "Timeout", "the body did not come in time")
	case err != nil:
		return nil, newProblem(http.StatusBadRequest, "Malformed", "the body cannot be read to its end")
	case int64(len(body)) > limit:
		return nil, tooLarge
	}
	nodes, wrong := checkJSON(body)
	if wrong != nil {
		p := newProblem(http.StatusBadRequest, "Malformed", "the body is not valid: %v", wrong)
		p.Errors = []ProblemField{{Location: wrong.at(), Message: wrong.message}}
		return nil, p
	}
	if err := memory.Take(int64(nodes)*nodeBytes + int64(len(body))*bodyCopies); err != nil {
		return nil, s.busy()
	}
	return body, nil
}

const (
	// requestBytes is the memory of a request without its body, in bytes: its goroutine, its
	// header, and the buffers of its connection.
	requestBytes = 32 << 10
	// bodyCopies is the number of further copies of a body's text that are held at a time: decoded,
	// in the stored response, and on the way to the API server or the database.
	bodyCopies = 4
)

// readBody reads up to limit+1 bytes. It takes memory as the body arrives, so that a slow body
// takes little. It fails with budget.ErrExhausted if the memory is not available.
func readBody(r *http.Request, limit int64, memory *budget.Account) ([]byte, error) {
	const first = 4 << 10
	body := make([]byte, 0, min(limit+1, max(r.ContentLength+1, 512), first))
	if err := memory.Take(int64(cap(body))); err != nil {
		return nil, err
	}
	for {
		if len(body) == cap(body) {
			larger := min(2*int64(cap(body)), limit+1)
			if err := memory.Take(larger - int64(cap(body))); err != nil {
				return nil, err
			}
			body = append(make([]byte, 0, larger), body...)
		}
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF), int64(len(body)) > limit:
			return body, nil
		case err != nil:
			return nil, err
		}
	}
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
