package idempotency_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// front is a server behind the middleware, over each store.
type front struct {
	t      *testing.T
	url    string
	path   string // "/orders?x=1" where it is empty
	clock  *clock
	acts   atomic.Int32
	handle func(http.ResponseWriter, *http.Request)
}

// onEveryStore runs a test with a server over each store.
func onEveryStore(t *testing.T, o idempotency.MiddlewareOptions, test func(*front)) {
	t.Helper()
	t.Parallel()
	o.Timeout = patience
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &front{t: t, clock: newClock()}
			store := open(t, idempotency.Options{Clock: f.clock.Now})
			s := httptest.NewServer(idempotency.Middleware(unhurried{store}, o)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				f.acts.Add(1)
				f.handle(w, r)
			})))
			t.Cleanup(s.Close)
			s.Config.ErrorLog = nil
			f.url = s.URL
			test(f)
		})
	}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (f *front) send(method, key, body string, header ...string) answer {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+cmp.Or(f.path, "/orders?x=1"), strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

// is checks a status, and that an error is problem+json.
func (f *front) is(a answer, status int) {
	f.t.Helper()
	if a.status != status {
		f.t.Errorf("it was answered with %d %s, want %d", a.status, a.body, status)
	}
	if a.header.Get("Content-Type") != "application/problem+json" {
		return
	}
	var p struct {
		Status        int
		Title, Detail string
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || p.Status != a.status || p.Title == "" || p.Detail == "" {
		f.t.Errorf("the problem is %s", a.body)
	}
}

func (f *front) acted(want int32) {
	f.t.Helper()
	if got := f.acts.Load(); got != want {
		f.t.Errorf("the handler acted %d times, want %d", got, want)
	}
}

func places(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", "/orders/1")
	w.Header().Set("Set-Cookie", "a=b")
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(append([]byte("{\"of\":\""), append(bytes.ToUpper(body), "\"}\n\x00"...)...))
}

func TestARepetitionIsAnsweredAsBeforeByteForByte(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		f.handle = places
		first := f.send("POST", "k-1", "a")
		again := f.send("POST", `"k-1"`, "a")
		if again.status != 201 || again.body != first.body || first.body != "{\"of\":\"A\"}\n\x00" || again.header.Get("Location") != "/orders/1" {
			f.t.Errorf("first %+v, again %+v", first, again)
		}
		if again.header.Get("Idempotency-Replayed") != "true" || first.header.Get("Idempotency-Replayed") != "" {
			f.t.Error("which was the first is not said")
		}
		if first.header.Get("Set-Cookie") == "" || again.header.Get("Set-Cookie") != "" {
			f.t.Error("a header was kept that is not the answer's")
		}
		f.acted(1)
	})
}

func TestOf64RequestsAtOnceOneActsAndTheOthersGet409OrTheAnswer(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		f.handle = places
		var mu sync.Mutex
		bodies, busy := map[string]int{}, 0
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				a := f.send("POST", "k-1", "a")
				mu.Lock()
				defer mu.Unlock()
				if a.status == http.StatusConflict {
					busy++
					if a.header.Get("Retry-After") != "1" {
						f.t.Errorf("Retry-After is %q", a.header.Get("Retry-After"))
					}
					return
				}
				f.is(a, 201)
				bodies[a.body]++
			})
		}
		wg.Wait()
		f.acted(1)
		if len(bodies) != 1 {
			f.t.Errorf("the answers are %v", bodies)
		}
		f.is(f.send("POST", "k-1", "a"), 201)
		f.acted(1)
	})
}

func TestAKeyIsAskedForWhereOneIsNeeded(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		f.handle = places
		f.is(f.send("POST", "", "a"), 400)
		f.is(f.send("PATCH", "", "a"), 400)
		f.is(f.send("POST", `"k`, "a"), 400)
		f.is(f.send("POST", strings.Repeat("k", 256), "a"), 400)
		f.acted(0)
		for _, method := range []string{"GET", "DELETE", "PUT"} {
			f.is(f.send(method, "", ""), 201)
		}
		f.is(f.send("GET", "k-1", ""), 201)
		f.is(f.send("GET", "k-1", ""), 201)
		f.acted(5)
		f.is(f.send("DELETE", "k-1", ""), 201)
		f.is(f.send("DELETE", "k-1", ""), 201)
		f.acted(6)
	})
}

func TestTheSameKeyForAnotherRequestIs422(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		f.handle = places
		f.is(f.send("POST", "k-1", "a"), 201)
		f.is(f.send("POST", "k-1", "b"), 422)
		f.is(f.send("PUT", "k-1", "a"), 422)
		f.path = "/orders?x=2"
		f.is(f.send("POST", "k-1", "a"), 422)
		f.path = "/orders/1?x=1"
		f.is(f.send("POST", "k-1", "a"), 422)
		f.acted(1)
	})
}

func TestTheKeyOfAnotherTenantIsAnother(t *testing.T) {
	realm := func(r *http.Request) (string, error) {
		if who := r.Header.Get("Who"); who != "" {
			return who, nil
		}
		return "", errors.New("say who you are")
	}
	onEveryStore(t, idempotency.MiddlewareOptions{Realm: realm}, func(f *front) {
		f.handle = places
		f.is(f.send("POST", "k-1", "a", "Who", "ann"), 201)
		f.is(f.send("POST", "k-1", "b", "Who", "bob"), 201)
		f.is(f.send("POST", "k-1", "b", "Who", "bob"), 201)
		f.acted(2)
		f.is(f.send("POST", "k-1", "a"), 401)
		f.acted(2)
	})
}

func TestWhatSaysNothingOfTheEffectIsNotKept(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		for _, status := range []int{400, 401, 403, 408, 413, 415, 422, 425, 429, 500, 502, 503, 504} {
			f.acts.Store(0)
			f.handle = func(w http.ResponseWriter, _ *http.Request) {
				if f.acts.Load() == 1 {
					w.WriteHeader(status)
				} else {
					w.WriteHeader(http.StatusCreated)
				}
			}
			key := "k-" + http.StatusText(status)
			f.is(f.send("POST", `"`+key+`"`, "a"), status)
			f.is(f.send("POST", `"`+key+`"`, "a"), 201)
			f.acted(2)
		}
		f.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPaymentRequired) }
		f.acts.Store(0)
		f.is(f.send("POST", "no", "a"), 402)
		f.is(f.send("POST", "no", "a"), 402)
		f.acted(1)
	})
}

func TestAHandlerThatOutlivesItsLeaseDoesNotContradictWhoTookOver(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		began, goOn := make(chan struct{}), make(chan struct{})
		f.handle = func(w http.ResponseWriter, _ *http.Request) {
			if f.acts.Load() == 1 {
				close(began)
				<-goOn
				_, _ = io.WriteString(w, "first")
				return
			}
			_, _ = io.WriteString(w, "second")
		}
		done := make(chan answer)
		go func() { done <- f.send("POST", "k-1", "a") }()
		<-began
		f.is(f.send("POST", "k-1", "a"), 409)
		f.clock.forward(idempotency.DefaultLease)
		if a := f.send("POST", "k-1", "a"); a.body != "second" {
			f.t.Errorf("whoever takes over is answered with %+v", a)
		}
		close(goOn)
		f.is(<-done, 409)
		if a := f.send("POST", "k-1", "a"); a.body != "second" || a.header.Get("Idempotency-Replayed") != "true" {
			f.t.Errorf("a repetition is answered with %+v", a)
		}
		f.acted(2)
	})
}

func TestAPanicGivesTheKeyBack(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		f.handle = func(w http.ResponseWriter, r *http.Request) {
			if f.acts.Load() == 1 {
				panic(http.ErrAbortHandler)
			}
			places(w, r)
		}
		req, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, f.url+"/orders?x=1", strings.NewReader("a"))
		if err != nil {
			f.t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "k-1")
		if resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			f.t.Error("the panic was swallowed")
		}
		for a := f.send("POST", "k-1", "a"); a.status != 201; a = f.send("POST", "k-1", "a") {
			f.is(a, 409) // until the key has been given back
		}
	})
}

func TestWhatWasBegunIsFinishedWhenTheClientGoesAway(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		ctx, goAway := context.WithCancel(f.t.Context())
		left := make(chan struct{})
		f.handle = func(w http.ResponseWriter, r *http.Request) {
			goAway()
			<-left
			if r.Context().Err() != nil {
				f.t.Error("the handler's context is over")
			}
			places(w, r)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+"/orders?x=1", strings.NewReader("a"))
		if err != nil {
			f.t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "k-1")
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			f.t.Error("there was an answer")
		}
		close(left)
		for a := f.send("POST", "k-1", "a"); a.status != 201; a = f.send("POST", "k-1", "a") {
			f.is(a, 409) // until it is finished
		}
		f.acted(1)
	})
}

func TestABodyThatIsTooLargeIsRefused(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{MaxBody: 10}, func(f *front) {
		f.handle = places
		f.is(f.send("POST", "k-1", strings.Repeat("x", 11)), 413)
		f.acted(0)
		f.is(f.send("POST", "k-1", strings.Repeat("x", 10)), 201)
	})
}

func TestAnAnswerThatIsTooLargeIsSentAndARepetitionGetsItsStatusWithoutTheBody(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{MaxAnswer: 10, Busy: http.StatusTooEarly}, func(f *front) {
		for key, status := range map[string]int{"yes": http.StatusCreated, "no": http.StatusPaymentRequired} {
			f.acts.Store(0)
			f.handle = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Location", "/orders/1")
				w.WriteHeader(status)
				for range 5 {
					_, _ = io.WriteString(w, "12345")
				}
			}
			if a := f.send("POST", key, "a"); a.status != status || a.body != strings.Repeat("12345", 5) || a.header.Get("Idempotency-Body-Omitted") != "" {
				f.t.Errorf("the first is answered with %+v", a)
			}
			a := f.send("POST", key, "a")
			if a.status != status || a.body != "" || a.header.Get("Idempotency-Body-Omitted") != "true" || a.header.Get("Idempotency-Replayed") != "true" {
				f.t.Errorf("a repetition is answered with %+v", a)
			}
			if a.header.Get("Location") != "/orders/1" || a.header.Get("Content-Type") != "" {
				f.t.Errorf("its headers are %v", a.header)
			}
			f.acted(1)
		}
	})
}

// broken is a store that cannot be reached.
type broken struct {
	idempotency.Store
	begin, end error
}

func (b *broken) Begin(ctx context.Context, k idempotency.Key, of idempotency.Fingerprint) (idempotency.Begun, error) {
	if b.begin != nil {
		return idempotency.Begun{}, b.begin
	}
	return b.Store.Begin(ctx, k, of)
}

func (b *broken) Complete(ctx context.Context, c idempotency.Claim, r idempotency.Response) error {
	if err := b.end; err != nil {
		b.end = nil
		return err
	}
	return b.Store.Complete(ctx, c, r)
}

func TestNothingIsDoneWhereItCannotBeKnownWhetherItWasDone(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(idempotency.Middleware(&broken{begin: errors.New("away")}, idempotency.MiddlewareOptions{})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was") })))
	t.Cleanup(s.Close)
	f := &front{t: t, url: s.URL}
	a := f.send("POST", "k-1", "a")
	f.is(a, 503)
	if a.header.Get("Retry-After") == "" || strings.Contains(a.body, "away") {
		t.Errorf("%+v", a)
	}
}

func TestAnAnswerThatCannotBeKeptAtFirstIsKeptAtLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &broken{Store: idempotency.NewMemory(idempotency.Options{}), end: errors.New("away")}
		handler := idempotency.Middleware(store, idempotency.MiddlewareOptions{Timeout: time.Second})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done() // its time is over, and what it has done is kept all the same
			places(w, r)
		}))
		send := func() *httptest.ResponseRecorder {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/orders", strings.NewReader("a"))
			r.Header.Set("Idempotency-Key", "k-1")
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w
		}
		if first := send(); first.Code != http.StatusCreated {
			t.Errorf("it was answered with %d %s", first.Code, first.Body)
		}
		if again := send(); again.Code != http.StatusCreated || again.Header().Get("Idempotency-Replayed") != "true" {
			t.Errorf("a repetition was answered with %d %v", again.Code, again.Header())
		}
	})
}
