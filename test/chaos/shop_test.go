package chaos

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// shop is a participant over real HTTP that is idempotent by key: the first request of a key has an effect, the others get the same answer.
type shop struct {
	t   *testing.T
	url string

	mu         sync.Mutex
	deliveries map[string]int            // by key
	effects    map[string]int            // by "METHOD /saga/step"
	keys       map[string]map[string]int // by "METHOD /saga/step": the keys it came under
	bodies     map[string]string         // by key
	net        map[string]int            // what is left: by "saga/step"
	// before is called before an effect and after after it, both before the answer; request is "METHOD /saga/step". One that returns false ends the connection.
	before, after func(ctx context.Context, request string) bool
	// refuse says which requests are refused for good.
	refuse func(request string) bool
	// busy says which requests are told to come again.
	busy func(request string) bool
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{t: t, deliveries: map[string]int{}, effects: map[string]int{}, keys: map[string]map[string]int{}, bodies: map[string]string{}, net: map[string]int{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	s.url = "http://" + l.Addr().String()
	return s
}

// on sets what happens before and after effects.
func (s *shop) on(before, after func(context.Context, string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

func (s *shop) hooks() (before, after func(context.Context, string) bool, refuse func(string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before, s.after, s.refuse
}

func (s *shop) isBusy(request string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy != nil && s.busy(request)
}

// onBusy sets which requests are told to come again.
func (s *shop) onBusy(busy func(request string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = busy
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	request, key := r.Method+" "+r.URL.Path, r.Header.Get("Idempotency-Key")
	before, after, refuse := s.hooks()
	if before != nil && !before(r.Context(), request) {
		panic(http.ErrAbortHandler)
	}
	if refuse != nil && refuse(request) {
		w.Header().Set("Saga-Outcome", "Rejected") // it is this service's own no, whatever has been sent before
		http.Error(w, "no", http.StatusConflict)
		return
	}
	if s.isBusy(request) {
		http.Error(w, "busy", http.StatusTooManyRequests)
		return
	}
	s.carryOut(request, key, string(body))
	if after != nil && !after(r.Context(), request) {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"ok":true}`)
}

func (s *shop) carryOut(request, key, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[request] == nil {
		s.keys[request] = map[string]int{}
	}
	s.keys[request][key]++
	if was, seen := s.bodies[key]; seen && was != body {
		s.t.Errorf("key %s came with the body %q, and before with %q", key, body, was)
	}
	s.bodies[key] = body
	if s.deliveries[key]++; s.deliveries[key] > 1 {
		return
	}
	s.effects[request]++
	method, path, _ := strings.Cut(request, " ")
	if method == http.MethodDelete {
		s.net[path] = 0
	} else {
		s.net[path]++
	}
}

// verify checks that each effect came under one key, and each key had one effect.
func (s *shop) verify() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for request, keys := range s.keys {
		if len(keys) != 1 || s.effects[request] != 1 {
			s.t.Errorf("%s came under the keys %v and had %d effects, want one of each", request, keys, s.effects[request])
		}
	}
}

// left returns how many effects are not undone.
func (s *shop) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, v := range s.net {
		n += v
	}
	return n
}

// sent returns how many requests there have been.
func (s *shop) sent() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, d := range s.deliveries {
		n += d
	}
	return n
}

// gate holds requests until it is opened.
type gate struct {
	arrived chan string
	open    chan struct{}
	once    sync.Once
}

func newGate() *gate { return &gate{arrived: make(chan string, 1000), open: make(chan struct{})} }

// hold returns a hook that holds requests which end in a suffix. They go on when the gate opens, or end with their connection.
func (g *gate) hold(suffix string, goOn bool) func(context.Context, string) bool {
	return func(ctx context.Context, request string) bool {
		select {
		case <-g.open:
			return true
		default:
		}
		if !strings.HasSuffix(request, suffix) {
			return true
		}
		g.arrived <- request
		select {
		case <-g.open:
			return goOn
		case <-ctx.Done():
			return false
		}
	}
}

// await waits until so many requests are held.
func (g *gate) await(t *testing.T, n int) {
	t.Helper()
	deadline := time.After(patience)
	for i := range n {
		select {
		case <-g.arrived:
		case <-deadline:
			t.Fatalf("%d of %d requests have arrived", i, n)
		}
	}
}

func (g *gate) release() { g.once.Do(func() { close(g.open) }) }
