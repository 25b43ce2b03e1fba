package idempotency_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// fixture is a store under test, with a clock of its own.
type fixture struct {
	idempotency.Store
	t     *testing.T
	clock *clock
}

// stores are the implementations that the behaviours are held to.
var stores = map[string]func(*testing.T, idempotency.Options) idempotency.Store{
	"memory": func(_ *testing.T, o idempotency.Options) idempotency.Store { return idempotency.NewMemory(o) },
	"postgres": func(t *testing.T, o idempotency.Options) idempotency.Store {
		return idempotency.NewPostgres(newRig(t).pool, o)
	},
}

func TestEveryStoreConforms(t *testing.T) {
	t.Parallel()
	for name, open := range stores {
		for _, b := range behaviours {
			t.Run(name+"/"+b.name, func(t *testing.T) {
				t.Parallel()
				c := newClock()
				b.test(&fixture{open(t, idempotency.Options{Clock: c.Now}), t, c})
			})
		}
	}
}

func keyOf(s string) idempotency.Key { return idempotency.Key{Realm: "shop", Key: s} }

func printOf(s string) idempotency.Fingerprint {
	return idempotency.FingerprintOf("POST", "/orders", []byte(s))
}

// claims begins a request that must be the first.
func (f *fixture) claims(key idempotency.Key, body string) idempotency.Claim {
	f.t.Helper()
	b, err := f.Begin(f.t.Context(), key, printOf(body))
	if err != nil || b.Claim == nil || b.Response != nil {
		f.t.Fatalf("the request is not the first: %+v, %v", b, err)
	}
	return *b.Claim
}

// fails begins a request that must not be carried out.
func (f *fixture) fails(key idempotency.Key, body string, want error) {
	f.t.Helper()
	if b, err := f.Begin(f.t.Context(), key, printOf(body)); !errors.Is(err, want) || b.Claim != nil || b.Response != nil {
		f.t.Errorf("the request came to %+v, %v; want %v", b, err, want)
	}
}

// replays begins a request that must be answered as before.
func (f *fixture) replays(key idempotency.Key, body string, want idempotency.Response) {
	f.t.Helper()
	b, err := f.Begin(f.t.Context(), key, printOf(body))
	if err != nil || b.Response == nil || b.Claim != nil {
		f.t.Fatalf("there is no answer: %+v, %v", b, err)
	}
	if diff := cmp.Diff(want, *b.Response); diff != "" {
		f.t.Error(diff)
	}
}

func (f *fixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Error(err)
	}
}

func (f *fixture) fenced(err error) {
	f.t.Helper()
	if !errors.Is(err, idempotency.ErrFenced) {
		f.t.Errorf("it came to %v, want ErrFenced", err)
	}
}

var created = idempotency.Response{Status: 201, Header: http.Header{"Location": {"/orders/1"}, "X-Twice": {"a", "b"}}, Body: []byte("{\"id\":1}\x00\xff\n")}

type behaviour struct {
	name string
	test func(*fixture)
}

var behaviours = []behaviour{
	{"an answer is given again, byte for byte", func(f *fixture) {
		f.ok(f.Complete(f.t.Context(), f.claims(keyOf("1"), "a"), created))
		f.replays(keyOf("1"), "a", created)
		f.replays(keyOf("1"), "a", created)
	}},
	{"a definite no is given again", func(f *fixture) {
		no := idempotency.Response{Status: 402, Body: []byte("declined")}
		f.ok(f.Fail(f.t.Context(), f.claims(keyOf("1"), "a"), no))
		f.replays(keyOf("1"), "a", no)
	}},
	{"while the first request is at work the next one waits, and is told how long", func(f *fixture) {
		f.claims(keyOf("1"), "a")
		f.clock.forward(45 * time.Second)
		_, err := f.Begin(f.t.Context(), keyOf("1"), printOf("a"))
		busy := (*idempotency.InProgressError)(nil)
		if !errors.As(err, &busy) || busy.RetryAfter != 15*time.Second {
			f.t.Errorf("%v", err)
		}
	}},
	{"the same key for another request is a mistake, at whatever time", func(f *fixture) {
		c := f.claims(keyOf("1"), "a")
		f.fails(keyOf("1"), "b", idempotency.ErrMismatch)
		f.clock.forward(2 * idempotency.DefaultLease)
		f.fails(keyOf("1"), "b", idempotency.ErrMismatch)
		f.ok(f.Complete(f.t.Context(), c, created))
		f.fails(keyOf("1"), "b", idempotency.ErrMismatch)
		f.replays(keyOf("1"), "a", created)
	}},
	{"the same key in another realm is another key", func(f *fixture) {
		f.ok(f.Complete(f.t.Context(), f.claims(keyOf("1"), "a"), created))
		other := idempotency.Key{Realm: "bank", Key: "1"}
		c := f.claims(other, "b")
		f.fails(other, "b", idempotency.ErrInProgress)
		f.ok(f.Release(f.t.Context(), c))
		f.replays(keyOf("1"), "a", created)
	}},
	{"when the lease is over a retry takes over, and the first one's completion is refused", func(f *fixture) {
		first := f.claims(keyOf("1"), "a")
		f.clock.forward(idempotency.DefaultLease - time.Microsecond)
		f.fails(keyOf("1"), "a", idempotency.ErrInProgress)
		f.clock.forward(time.Microsecond)
		second := f.claims(keyOf("1"), "a")
		if second.Fence <= first.Fence {
			f.t.Errorf("the fencing number went from %d to %d", first.Fence, second.Fence)
		}
		ctx := f.t.Context()
		f.fenced(f.Complete(ctx, first, created))
		f.fenced(f.Fail(ctx, first, created))
		f.fenced(f.Release(ctx, first))
		answer := idempotency.Response{Status: 200, Body: []byte("second")}
		f.ok(f.Complete(ctx, second, answer))
		f.fenced(f.Complete(ctx, first, created))
		f.fenced(f.Complete(ctx, second, created))
		f.replays(keyOf("1"), "a", answer)
	}},
	{"a completion after the lease counts as long as nobody has taken over", func(f *fixture) {
		c := f.claims(keyOf("1"), "a")
		f.clock.forward(time.Hour)
		f.ok(f.Complete(f.t.Context(), c, created))
		f.replays(keyOf("1"), "a", created)
	}},
	{"a fencing number is never used again, whatever becomes of the key", func(f *fixture) {
		first := f.claims(keyOf("1"), "a")
		f.clock.forward(idempotency.DefaultLease)
		second := f.claims(keyOf("1"), "a")
		f.ok(f.Release(f.t.Context(), second))
		third := f.claims(keyOf("1"), "a")
		if third.Fence <= second.Fence {
			f.t.Errorf("fencing numbers are %d, %d, %d", first.Fence, second.Fence, third.Fence)
		}
		f.fenced(f.Complete(f.t.Context(), first, created))
		f.fenced(f.Release(f.t.Context(), second))
		f.fails(keyOf("1"), "a", idempotency.ErrInProgress)
	}},
	{"a key that was given back is free, for another request too", func(f *fixture) {
		f.ok(f.Release(f.t.Context(), f.claims(keyOf("1"), "a")))
		f.claims(keyOf("1"), "b")
	}},
	{"the first request with a key knows that it is the first", func(f *fixture) {
		ctx := f.t.Context()
		is := func(c idempotency.Claim, first bool) idempotency.Claim {
			f.t.Helper()
			if c.First != first {
				f.t.Errorf("the request with fence %d is the first: %t", c.Fence, c.First)
			}
			return c
		}
		f.ok(f.Release(ctx, is(f.claims(keyOf("1"), "a"), true))) // which had no effect
		is(f.claims(keyOf("1"), "b"), true)
		f.clock.forward(idempotency.DefaultLease)
		is(f.claims(keyOf("1"), "b"), false)
	}},
	{"a key that was abandoned is taken over at once, by the same request, which is not the first", func(f *fixture) {
		ctx := f.t.Context()
		first := f.claims(keyOf("1"), "a")
		f.ok(f.Abandon(ctx, first))
		f.fails(keyOf("1"), "b", idempotency.ErrMismatch)
		second := f.claims(keyOf("1"), "a")
		if second.First || second.Fence <= first.Fence {
			f.t.Errorf("the claims are %+v and %+v", first, second)
		}
		f.fenced(f.Abandon(ctx, first))
		f.fenced(f.Complete(ctx, first, created))
		f.ok(f.Complete(ctx, second, created))
		f.fenced(f.Abandon(ctx, second))
		f.replays(keyOf("1"), "a", created)
	}},
	{"a key whose answer is kept cannot be given back", func(f *fixture) {
		no := idempotency.Response{Status: 402, Body: []byte("declined")}
		yes, refused := f.claims(keyOf("1"), "a"), f.claims(keyOf("2"), "a")
		f.ok(f.Complete(f.t.Context(), yes, created))
		f.ok(f.Fail(f.t.Context(), refused, no))
		f.fenced(f.Release(f.t.Context(), yes))
		f.fenced(f.Release(f.t.Context(), refused))
		f.replays(keyOf("1"), "a", created)
		f.replays(keyOf("2"), "a", no)
	}},
	{"an answer is kept for 24 hours to the second", func(f *fixture) {
		f.ok(f.Complete(f.t.Context(), f.claims(keyOf("1"), "a"), created))
		f.clock.forward(24*time.Hour - time.Second)
		f.replays(keyOf("1"), "a", created)
		f.clock.forward(time.Second)
		c := f.claims(keyOf("1"), "b")
		f.ok(f.Complete(f.t.Context(), c, created))
		f.replays(keyOf("1"), "b", created)
	}},
	{"sweeping removes what has expired and nothing else, in pieces", func(f *fixture) {
		ctx := f.t.Context()
		for _, k := range []string{"1", "2", "3"} {
			f.ok(f.Complete(ctx, f.claims(keyOf(k), "a"), created))
		}
		f.clock.forward(time.Hour)
		f.ok(f.Complete(ctx, f.claims(keyOf("4"), "a"), created))
		f.claims(keyOf("5"), "a")
		f.clock.forward(23 * time.Hour)
		for _, want := range []int{2, 1, 0} {
			if n, err := f.Sweep(ctx, 2); err != nil || n != want {
				f.t.Errorf("%d were swept, %v; want %d", n, err, want)
			}
		}
		f.replays(keyOf("4"), "a", created)
	}},
	{"of many requests at once one is the first", func(f *fixture) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		first, busy := 0, 0
		for range 64 {
			wg.Go(func() {
				b, err := f.Begin(f.t.Context(), keyOf("1"), printOf("a"))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && b.Claim != nil:
					first++
				case errors.Is(err, idempotency.ErrInProgress):
					busy++
				default:
					f.t.Errorf("%+v, %v", b, err)
				}
			})
		}
		wg.Wait()
		if first != 1 || busy != 63 {
			f.t.Errorf("%d were the first, %d have to wait", first, busy)
		}
	}},
	{"of many that take over at once one does", func(f *fixture) {
		f.claims(keyOf("1"), "a")
		f.clock.forward(idempotency.DefaultLease)
		var mu sync.Mutex
		var wg sync.WaitGroup
		took := 0
		for range 32 {
			wg.Go(func() {
				b, err := f.Begin(f.t.Context(), keyOf("1"), printOf("a"))
				mu.Lock()
				defer mu.Unlock()
				if err == nil && b.Claim != nil {
					took++
				} else if !errors.Is(err, idempotency.ErrInProgress) {
					f.t.Errorf("%+v, %v", b, err)
				}
			})
		}
		wg.Wait()
		if took != 1 {
			f.t.Errorf("%d took over", took)
		}
	}},
	{"what is no key is refused", func(f *fixture) {
		for name, k := range map[string]idempotency.Key{
			"empty": {}, "long": {Key: strings.Repeat("x", idempotency.MaxKey+1)}, "a long realm": {Realm: strings.Repeat("x", idempotency.MaxRealm+1), Key: "1"},
			"no UTF-8": {Key: "\xff"}, "a zero byte": {Key: "a\x00b"}, "a zero byte in the realm": {Realm: "\x00", Key: "1"},
		} {
			if _, err := f.Begin(f.t.Context(), k, printOf("a")); !errors.Is(err, idempotency.ErrInvalidKey) {
				f.t.Errorf("%s: %v", name, err)
			}
		}
		long := idempotency.Key{Realm: strings.Repeat("ä", idempotency.MaxRealm/2), Key: strings.Repeat("x", idempotency.MaxKey)}
		f.ok(f.Complete(f.t.Context(), f.claims(long, "a"), created))
		f.replays(long, "a", created)
	}},
	{"what is no answer is refused, and the claim stays", func(f *fixture) {
		c := f.claims(keyOf("1"), "a")
		for _, r := range []idempotency.Response{{}, {Status: 200, Body: make([]byte, idempotency.MaxResponse+1)}} {
			if err := f.Complete(f.t.Context(), c, r); err == nil {
				f.t.Error("it was kept")
			}
		}
		f.ok(f.Complete(f.t.Context(), c, created))
	}},
	{"a context that is done changes nothing", func(f *fixture) {
		ctx, cancel := context.WithCancel(f.t.Context())
		cancel()
		if _, err := f.Begin(ctx, keyOf("1"), printOf("a")); !errors.Is(err, context.Canceled) {
			f.t.Error(err)
		}
		c := f.claims(keyOf("1"), "a")
		for _, err := range []error{f.Complete(ctx, c, created), f.Fail(ctx, c, created), f.Release(ctx, c), f.Abandon(ctx, c)} {
			if !errors.Is(err, context.Canceled) {
				f.t.Error(err)
			}
		}
		f.fails(keyOf("1"), "a", idempotency.ErrInProgress)
	}},
}

func TestWithoutAClockTheDatabasesCounts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := idempotency.NewPostgres(r.pool, idempotency.Options{})
	b, err := s.Begin(r.ctx, keyOf("1"), printOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	if n := r.count(`SELECT count(*) FROM idempotency_keys WHERE lease_until - created_at = interval '1 minute' AND expires_at - created_at = interval '24 hours' AND created_at > now() - interval '1 hour'`); n != 1 {
		t.Error("lease and expiry are not a minute and a day from now")
	}
	if err := s.Complete(r.ctx, *b.Claim, created); err != nil {
		t.Fatal(err)
	}
	if n := r.count(`SELECT count(*) FROM idempotency_keys WHERE state = 'completed' AND expires_at BETWEEN now() + interval '23:00' AND now() + interval '24:01'`); n != 1 {
		t.Error("it does not expire in a day")
	}
}
