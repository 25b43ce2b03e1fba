package idempotency

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"
)

// problem is an error for the client: RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

const problemJSON = "application/problem+json"

// newProblem makes an answer of an error.
func newProblem(status int, detail string) Response {
	body, err := json.Marshal(problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail})
	if err != nil {
		panic(err) // there is nothing in it that could not be encoded
	}
	return Response{Status: status, Header: http.Header{"Content-Type": {problemJSON}}, Body: append(body, '\n')}
}

// retryAfter adds how long to wait, in whole seconds.
func (r Response) retryAfter(d time.Duration) Response {
	r.Header = r.Header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(d.Seconds())))))
	return r
}

// write answers a request with it.
func (r Response) write(w http.ResponseWriter) {
	for name, values := range r.Header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(r.Body)))
	w.WriteHeader(r.Status)
	_, _ = w.Write(r.Body) // whoever is gone asks again
}
