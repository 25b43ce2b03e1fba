package server

import (
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"regexp"
	"strings"
)

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
