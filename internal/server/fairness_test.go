package server

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	authenticationv1 "k8s.io/api/authentication/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/operations"
)

// gate blocks calls until it is released.
type gate struct {
	entered, released chan struct{}
	release           func()
}

func newGate() *gate {
	h := &gate{entered: make(chan struct{}), released: make(chan struct{})}
	h.release = sync.OnceFunc(func() { close(h.released) })
	return h
}

func (h *gate) hold() {
	select {
	case h.entered <- struct{}{}:
		<-h.released
	case <-h.released:
	}
}

// holdAll sends requests until one is rejected, and returns the number of those that are held and
// the response that rejects the last one.
func (h *gate) holdAll(t *testing.T, send func(n int) answer) (held int, rejection answer) {
	t.Helper()
	const enough = 200
	for held < enough {
		n := held
		responses := make(chan answer, 1)
		go func() { responses <- send(n) }()
		select {
		case <-h.entered:
			held++
		case a := <-responses:
			return held, a
		}
	}
	t.Fatalf("%d requests are held and none was rejected", held)
	return held, answer{}
}

// heldLists is a client whose lists of some namespaces are held after they have been read.
type heldLists struct {
	client.Client
	*gate
	namespaces map[string]bool
}

func (h *heldLists) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	err := h.Client.List(ctx, list, opts...)
	if o := new(client.ListOptions).ApplyOptions(opts); h.namespaces[o.Namespace] {
		h.hold()
	}
	return err
}

// tenant makes a namespace with a saga. It returns the path of the namespace's sagas and the token
// of an editor.
func (r *rig) tenant() (path, token, namespace string) {
	r.Helper()
	namespace = r.namespace()
	token = r.token(r.account("editor", namespace, "saga-viewer", "saga-editor"), audience)
	path = "/v1/namespaces/" + namespace + "/sagas"
	a := r.do(call{method: "POST", path: path, token: token, body: manifest("first"), header: key(namespace)})
	if a.status != http.StatusCreated {
		r.Fatalf("creating a saga of %s: %d %s", namespace, a.status, a.body)
	}
	return path, token, namespace
}

// TestServerServesNewcomerBesideLists has three tenants hold all the lists that they can get. A
// tenant that has none still lists and creates sagas.
func TestServerServesNewcomerBesideLists(t *testing.T) {
	t.Parallel()
	for limit, limits := range map[string]Limits{"concurrency": {Concurrent: 16}, "memory": {Memory: 1 << 20}} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel()
			lists := &heldLists{gate: newGate(), namespaces: map[string]bool{}}
			r := newRig(t, func(o *operations.Options, s *Options) {
				lists.Client, o.Client = o.Client, lists
				s.Limits.Concurrent, s.Limits.Memory = limits.Concurrent, limits.Memory
			})
			defer lists.release()
			type tenant struct{ path, token string }
			var greedy []tenant
			for range 3 {
				path, token, namespace := r.tenant()
				lists.namespaces[namespace] = true
				greedy = append(greedy, tenant{path, token})
			}
			path, token, _ := r.tenant()
			for i, g := range greedy {
				held, a := lists.holdAll(t, func(int) answer { return r.do(call{method: "GET", path: g.path, token: g.token}) })
				if a.status != http.StatusServiceUnavailable || a.problem(t).Reason != "Busy" || held == 0 {
					t.Errorf("tenant %d holds %d lists, and the next gets %d %.300s", i, held, a.status, a.body)
				}
			}
			if n := testutil.ToFloat64(r.server.metrics.limited.WithLabelValues(limit)); n != float64(len(greedy)) {
				t.Errorf("saga_api_limited_total{limit=%s} = %v, want %d", limit, n, len(greedy))
			}
			if a := r.do(call{method: "GET", path: path, token: token}); a.status != http.StatusOK {
				t.Errorf("the newcomer's list: %d %.300s", a.status, a.body)
			}
			if a := r.do(call{method: "POST", path: path, token: token, body: manifest("second"), header: key("second")}); a.status != http.StatusCreated {
				t.Errorf("the newcomer's saga: %d %.300s", a.status, a.body)
			}
		})
	}
}

// heldAnswers holds the answers of the callbacks of some namespaces. The namespace of a callback is
// the first part of its token.
type heldAnswers struct {
	operations.Callbacks
	*gate
	prefix string
}

func (h *heldAnswers) Answer(ctx context.Context, token string, a engine.CallbackAnswer) error {
	if strings.HasPrefix(token, h.prefix) {
		h.hold()
	}
	return h.Callbacks.Answer(ctx, token, a)
}

// TestServerServesNewcomerBesideCallbacks has the participants of two namespaces hold all the
// callbacks that they can get, with a token each.
func TestServerServesNewcomerBesideCallbacks(t *testing.T) {
	t.Parallel()
	answers := &heldAnswers{gate: newGate(), prefix: "greedy"}
	r := newRig(t, func(o *operations.Options, s *Options) {
		answers.Callbacks, o.Callbacks, s.Limits.Callbacks = o.Callbacks, answers, 8
	})
	defer answers.release()
	post := func(token string) answer {
		return r.do(call{method: "POST", path: "/v1/callbacks/" + token, body: `{"outcome":"Succeeded"}`})
	}
	for namespace, want := range []int{4, 2} {
		held, a := answers.holdAll(t, func(n int) answer { return post(fmt.Sprintf("greedy-%d.%d", namespace, n)) })
		if a.status != http.StatusServiceUnavailable || held != want {
			t.Errorf("namespace %d holds %d callbacks, want %d; the next gets %d %.300s", namespace, held, want, a.status, a.body)
		}
	}
	if a := post("modest.1"); a.status != http.StatusNoContent {
		t.Errorf("the newcomer's callback: %d %.300s", a.status, a.body)
	}
}

// TestServerChecksCredentialsOfNewcomer has two addresses hold all the checks of tokens that they
// can get.
func TestServerChecksCredentialsOfNewcomer(t *testing.T) {
	t.Parallel()
	checks := newGate()
	reviews := &reviewer{say: func(token string) (authenticationv1.TokenReviewStatus, error) {
		if strings.HasPrefix(token, "greedy") {
			checks.hold()
		}
		return authenticationv1.TokenReviewStatus{}, nil
	}}
	r := newRig(t, func(_ *operations.Options, s *Options) {
		s.Authenticator, s.Limits.CredentialChecks = NewAuthenticator(reviews, []string{audience}, nil), 8
	})
	defer checks.release()
	get := func(address, token string) answer {
		req, w := httptest.NewRequest(http.MethodGet, "/v1/namespaces/shop/sagas", nil), httptest.NewRecorder()
		req.RemoteAddr = address + ":1"
		req.Header.Set("Authorization", "Bearer "+token)
		r.server.ServeHTTP(w, req)
		return answer{w.Code, w.Header(), w.Body.Bytes()}
	}
	for i, want := range []int{4, 2} {
		address := fmt.Sprintf("192.0.2.%d", i)
		held, a := checks.holdAll(t, func(n int) answer { return get(address, fmt.Sprintf("greedy-%d-%d", i, n)) })
		if a.status != http.StatusServiceUnavailable || held != want {
			t.Errorf("address %s holds %d checks, want %d; the next gets %d %.300s", address, held, want, a.status, a.body)
		}
	}
	if a := get("198.51.100.1", "modest"); a.status != http.StatusUnauthorized {
		t.Errorf("the newcomer's token: %d %.300s", a.status, a.body)
	}
}

// TestServerSharesStreamsBetweenTenants has a namespace with many ServiceAccounts follow as much as
// it can. A user of another namespace still follows.
func TestServerSharesStreamsBetweenTenants(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) {
		o.Limits.Followers, o.Limits.UserFollowers, o.Limits.Concurrent = 4, 1, 2
	})
	ada, grace, alan := r.editor(), r.editor(), r.editor()
	newcomer := r.account("newcomer", r.namespace())
	r.bind(newcomer, r.ns, "saga-viewer")
	r.create(ada, "order-1")
	follow := func(token string, want int) *follower {
		t.Helper()
		r.until("no request is served, so that one can be", func() bool {
			r.server.served.mu.Lock()
			defer r.server.served.mu.Unlock()
			return r.server.served.taken == 0
		})
		f := r.follow(token, "order-1", "")
		if f.status != want {
			t.Fatalf("status %d, want %d", f.status, want)
		}
		return f
	}
	first := follow(ada, http.StatusOK)
	follow(ada, http.StatusTooManyRequests) // of this user
	second := follow(grace, http.StatusOK)
	follow(alan, http.StatusServiceUnavailable)
	follow(r.token(newcomer, audience), http.StatusOK)
	closeAll := func(all ...*follower) {
		for _, f := range all {
			f.close()
		}
		r.until("only the newcomer follows", func() bool {
			r.server.followed.mu.Lock()
			defer r.server.followed.mu.Unlock()
			return r.server.followed.taken == 1
		})
	}
	closeAll(first, second)
	closeAll(follow(alan, http.StatusOK)) // the rejected stream has left nothing behind
	follow(ada, http.StatusOK)            // nor has the closed one
}
