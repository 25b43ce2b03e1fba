package storetest

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

func callback(uid uuid.UUID, token string) eventstore.Callback {
	return eventstore.Callback{
		TokenHash: sha256.Sum256([]byte(token)), UID: uid, Step: "pay", Direction: "action", Attempt: 2,
		ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 678_000, time.UTC),
	}
}

var callbacks = []behaviour{
	{"a callback is found by the hash of its token alone", func(t *testing.T, f *fixture) {
		uid := f.running()
		want := callback(uid, uid.String())
		other := callback(uid, "other "+uid.String())
		other.Attempt = 3
		for _, c := range []eventstore.Callback{want, other, want} {
			if err := f.PutCallback(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		want.Namespace = state(uid).Namespace
		got, err := f.Callback(t.Context(), want.TokenHash)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
		if _, err := f.Callback(t.Context(), sha256.Sum256([]byte("forged"))); !errors.Is(err, eventstore.ErrNotFound) {
			t.Errorf("a forged token: %v", err)
		}
	}},
	{"a callback of a saga without a state row has no namespace", func(t *testing.T, f *fixture) {
		uid := uuid.New()
		want := callback(uid, uid.String())
		if err := f.PutCallback(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		got, err := f.Callback(t.Context(), want.TokenHash)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}},
	{"a callback is not turned into another", func(t *testing.T, f *fixture) {
		uid := f.running()
		want := callback(uid, uid.String())
		stolen := want
		stolen.UID = f.running()
		for _, c := range []eventstore.Callback{want, stolen} {
			if err := f.PutCallback(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := f.Callback(t.Context(), want.TokenHash); err != nil || got.UID != uid {
			t.Errorf("it is one of saga %s now: %v", got.UID, err)
		}
	}},
	{"the callbacks of a saga go with its history", func(t *testing.T, f *fixture) {
		uid := uuid.New()
		done := state(uid)
		done.Finished = true
		f.append(eventstore.Append{Stream: stream(uid), Events: events(1), State: done})
		c := callback(uid, uid.String())
		if err := f.PutCallback(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := f.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 100)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
		if _, err := f.Callback(t.Context(), c.TokenHash); !errors.Is(err, eventstore.ErrNotFound) {
			t.Errorf("it is still there: %v", err)
		}
	}},
	{"callbacks that expired before a time are removed, so many at once", func(t *testing.T, f *fixture) {
		uid := f.running()
		long := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
		var old []eventstore.Callback
		for i := range 5 {
			c := callback(uid, uid.String()+string(rune('a'+i)))
			c.ExpiresAt = long.Add(time.Duration(i) * time.Hour)
			if err := f.PutCallback(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			old = append(old, c)
		}
		for _, want := range []int{2, 2, 0} { // the last one is exactly as old, and stays
			n, err := f.RemoveCallbacks(t.Context(), old[4].ExpiresAt, 2)
			if err != nil || n != want {
				t.Errorf("%d were removed, %v; want %d", n, err, want)
			}
		}
		for i, c := range old {
			if _, err := f.Callback(t.Context(), c.TokenHash); errors.Is(err, eventstore.ErrNotFound) == (i == 4) {
				t.Errorf("callback %d: %v", i, err)
			}
		}
	}},
	{"a callback of nothing is refused", func(t *testing.T, f *fixture) {
		uid := f.running()
		for name, spoil := range map[string]func(*eventstore.Callback){
			"no saga":      func(c *eventstore.Callback) { c.UID = uuid.Nil },
			"no step":      func(c *eventstore.Callback) { c.Step = "" },
			"no direction": func(c *eventstore.Callback) { c.Direction = "" },
			"no end":       func(c *eventstore.Callback) { c.ExpiresAt = time.Time{} },
		} {
			c := callback(uid, name)
			spoil(&c)
			if err := f.PutCallback(t.Context(), c); !errors.Is(err, eventstore.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}},
}
