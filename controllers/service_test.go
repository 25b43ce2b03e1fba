package controllers

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// service is a participant over real HTTP that is idempotent by key and remembers what it was asked. It says yes unless told otherwise.
type service struct {
	url string

	mu      sync.Mutex
	answers map[string]http.HandlerFunc // by "METHOD /path"
	calls   []string                    // "METHOD /path", in order
	effects map[string]int              // by idempotency key
	keys    map[string]string           // idempotency key by "METHOD /path"
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{answers: map[string]http.HandlerFunc{}, effects: map[string]int{}, keys: map[string]string{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

// on sets the answer to "METHOD /path".
func (s *service) on(request string, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[request] = h
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	request, key := r.Method+" "+r.URL.Path, r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	s.calls = append(s.calls, request)
	s.keys[request] = key
	answer := s.answers[request]
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if answer != nil {
		answer(w, r)
		return
	}
	s.mu.Lock()
	if _, seen := s.effects[key]; !seen {
		s.effects[key]++
	}
	s.mu.Unlock()
	_, _ = io.WriteString(w, `{"id":"r-1"}`)
}

// called returns the requests so far, in order.
func (s *service) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// count returns how often a request was made.
func (s *service) count(request string) int {
	n := 0
	for _, c := range s.called() {
		if c == request {
			n++
		}
	}
	return n
}

func answer(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// gate holds requests until it is opened.
type gate struct {
	once sync.Once
	ch   chan struct{}
}

func newGate(t *testing.T) *gate {
	g := &gate{ch: make(chan struct{})}
	t.Cleanup(g.open)
	return g
}

func (g *gate) open() { g.once.Do(func() { close(g.ch) }) }

// then answers like h once the gate is open.
func (g *gate) then(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-g.ch:
			h(w, r)
		case <-r.Context().Done():
		}
	}
}

// steps fills the service's URL into a list of steps.
func (s *service) steps(yaml string) string { return strings.ReplaceAll(yaml, "SERVICE", s.url) }
