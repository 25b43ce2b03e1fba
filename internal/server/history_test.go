package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/saga"
)

func (r *rig) history(token, name, query string) (page HistoryPage) {
	r.Helper()
	a := r.do(call{method: "GET", path: sagas + "/" + name + "/history?" + query, token: token})
	if a.status != http.StatusOK {
		r.Fatalf("%d %s", a.status, a.body)
	}
	r.ok(json.Unmarshal(a.body, &page))
	return page
}

func versions(p HistoryPage) (all []int64) {
	for _, e := range p.Events {
		all = append(all, e.Version)
	}
	return all
}

func TestTheHistoryIsReadPageByPage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	s := r.create(token, "order-1")
	if p := r.history(token, "order-1", ""); len(p.Events) != 0 || p.Finished || p.UID != string(s.UID) {
		t.Errorf("before anything has happened: %+v", p)
	}
	uid := string(s.UID)
	failed := saga.AttemptFailed{At: at(2), Attempt: saga.Attempt{EffectID: saga.EffectID{Step: "reserve", Direction: saga.Action}, Number: 1}, Outcome: saga.Retryable, Reason: "busy", Message: "503", Next: saga.NextRetry, RetryAt: at(3).At}
	r.shown(r.happened(uid, r.sagaStarted(uid, r.ns, "order-1"), attempted(1), failed, attempted(2), saga.SagaCompleted{At: at(5)}))
	first := r.history(token, "order-1", "limit=3")
	if !cmp.Equal(versions(first), []int64{1, 2, 3}) || first.Next != 3 || !first.Finished {
		t.Errorf("the first page: %+v", first)
	}
	retryAt := at(3).At
	want := HistoryEvent{Version: 3, At: at(2).At, Type: "AttemptFailed", Step: "reserve", Direction: "action", Attempt: 1, Outcome: "Retryable", Reason: "busy", Message: "503", RetryAt: &retryAt}
	if diff := cmp.Diff(want, first.Events[2]); diff != "" {
		t.Errorf("an event:\n%s", diff)
	}
	if first.Events[0].Actor != "ada" {
		t.Errorf("started by %q", first.Events[0].Actor)
	}
	rest := r.history(token, "order-1", fmt.Sprintf("limit=3&after=%d", first.Next))
	if !cmp.Equal(versions(rest), []int64{4, 5}) || rest.Next != 0 || !rest.Finished {
		t.Errorf("the rest: %+v", rest)
	}
}

func TestTheHistoryOfASagaThatIsGoneCanBeRead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	first, second := uuid.NewString(), uuid.NewString()
	r.shown(r.happened(first, r.sagaStarted(first, r.ns, "order-1"), saga.SagaCompleted{At: at(1)}))
	later := r.sagaStarted(second, r.ns, "order-1").(saga.SagaStarted)
	later.At = at(100)
	r.shown(r.happened(second, later))
	if p := r.history(token, "order-1", ""); p.UID != second || p.Finished {
		t.Errorf("by its name: %+v", p)
	}
	if p := r.history(token, "order-1", "uid="+first); p.UID != first || !p.Finished || len(p.Events) != 2 {
		t.Errorf("by its uid: %+v", p)
	}
	s := r.create(token, "order-1") // a third one, of which nothing has been recorded
	if p := r.history(token, "order-1", ""); p.UID != string(s.UID) || len(p.Events) != 0 {
		t.Errorf("when another one is there: %+v", p)
	}
	if p := r.history(token, "order-1", "uid="+second); p.UID != second {
		t.Errorf("by its uid, when another one is there: %+v", p)
	}
	r.remove("order-1")
	if p := r.history(token, "order-1", ""); p.UID != second {
		t.Errorf("when the other one is gone: %+v", p)
	}
	for _, path := range []string{"order-2/history", "order-1/history?uid=" + uuid.NewString(), "order-2/history?uid=" + first} {
		if a := r.do(call{method: "GET", path: sagas + "/" + path, token: token}); a.status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

// follower reads a stream.
type follower struct {
	*rig
	status int
	lines  *bufio.Scanner
	close  func()
	body   io.ReadCloser
}

func (r *rig) follow(token, name, last string) *follower {
	r.Helper()
	f, err := r.tryToFollow(token, name, last)
	r.ok(err)
	return f
}

func (r *rig) tryToFollow(token, name, last string) (*follower, error) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	c := call{method: "GET", path: sagas + "/" + name + "/history", token: token, header: http.Header{"Accept": {eventStream}}}
	if last != "" {
		c.header.Set("Last-Event-Id", last)
	}
	req := r.request(c)
	res, err := r.http.Do(req.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	if res.StatusCode == http.StatusOK && res.Header.Get("Content-Type") != eventStream {
		r.Fatalf("it is a %s", res.Header.Get("Content-Type"))
	}
	f := &follower{rig: r, status: res.StatusCode, lines: bufio.NewScanner(res.Body), body: res.Body}
	f.close = func() { cancel(); _ = res.Body.Close() }
	r.Cleanup(f.close)
	if res.StatusCode >= http.StatusBadRequest {
		return f, nil
	}
	r.check(req, &http.Response{StatusCode: res.StatusCode, Header: http.Header{
		"Content-Type": {res.Header.Get("Content-Type")}, "X-Request-Id": {"x"}, "X-Content-Type-Options": {"nosniff"}, "Cache-Control": {"no-store"}}, Body: http.NoBody, Request: req})
	return f, nil
}

// sent is one event of a stream.
type sent struct{ id, event, data string }

// next is the next event, and false at the end. Comments count as events of their own.
func (f *follower) next() (sent, bool) {
	var s sent
	for f.lines.Scan() {
		field, value, _ := strings.Cut(f.lines.Text(), ": ")
		switch field {
		case "id":
			s.id = value
		case "event":
			s.event = value
		case "data":
			s.data = value
		case "": // the end of an event, or a comment
			if value != "" {
				s.event = "comment"
			} else if s != (sent{}) {
				return s, true
			}
		}
	}
	return s, false
}

func TestWhoFollowsGetsEachEventOnceAcrossReconnects(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.Heartbeat = 50 * time.Millisecond })
	token := r.editor()
	s := r.create(token, "order-1")
	uid := string(s.UID)
	const events = 60
	go func() {
		r.happened(uid, r.sagaStarted(uid, r.ns, "order-1"))
		for i := range events - 2 {
			r.happened(uid, attempted(i+1))
		}
		r.happened(uid, saga.SagaCompleted{At: at(events)})
	}()
	var got []string
	last, ended := "", false
	for reconnects := 0; !ended; reconnects++ {
		f := r.follow(token, "order-1", last)
		if f.status == http.StatusNoContent {
			break
		}
		for n := 0; n < 3+reconnects; { // the connection is lost again and again
			e, ok := f.next()
			if !ok {
				ended = true
				break
			}
			if e.id == "" {
				continue
			}
			var event HistoryEvent
			r.ok(json.Unmarshal([]byte(e.data), &event))
			if fmt.Sprint(event.Version) != e.id || event.Type != e.event {
				t.Errorf("event %+v", e)
			}
			got, last, n = append(got, e.id), e.id, n+1
		}
		f.close()
	}
	var want []string
	for i := range events {
		want = append(want, fmt.Sprint(i+1))
	}
	if !slices.Equal(got, want) {
		t.Errorf("received %v", got)
	}
	if f := r.follow(token, "order-1", last); f.status != http.StatusNoContent {
		t.Errorf("who comes back after the end is answered with %d", f.status)
	}
	r.until("nobody follows any more", func() bool {
		r.server.followed.mu.Lock()
		defer r.server.followed.mu.Unlock()
		return r.server.followed.taken == 0
	})
}

func TestWhoFollowsHearsThatTheConnectionIsAlive(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		const slowest = time.Minute
		for limit := time.Second; !hearsForLonger(t, http2, limit); limit *= 2 { // what comes before the stream may take longer than the limit here
			if limit > slowest {
				t.Fatalf("HTTP/2 %v: who follows is cut off like any other request", http2)
			}
		}
	}
}

// hearsForLonger reports whether who follows hears something for longer than any other request may take.
func hearsForLonger(t *testing.T, http2 bool, limit time.Duration) bool {
	t.Helper()
	const words = 50
	r := newRig(t, func(_ *operations.Options, o *Options) {
		o.Limits.Heartbeat, o.Limits.ReadTimeout, o.Limits.WriteTimeout, o.Limits.Timeout = 2*limit/words, limit, limit, limit
	})
	r.speak(http2)
	token := r.editor()
	r.createAs(kubernetes(t).Config, "order-1", nil) // not through the API, which has little time here
	f, err := r.tryToFollow(token, "order-1", "")
	if err != nil || f.status != http.StatusOK {
		return false
	}
	for range words {
		e, ok := f.next()
		if !ok {
			return false
		}
		if e.event != "comment" {
			t.Fatalf("received %+v", e)
		}
	}
	return true
}

// revocable takes rights away.
type revocable struct {
	operations.Access
	taken atomic.Bool
}

func (a *revocable) Allowed(ctx context.Context, who operations.Caller, what operations.Permission) error {
	if a.taken.Load() {
		return &operations.ForbiddenError{User: who.Name, Permission: what}
	}
	return a.Access.Allowed(ctx, who, what)
}

func TestWhoLosesTheRightStopsFollowing(t *testing.T) {
	t.Parallel()
	access := &revocable{}
	r := newRig(t, func(o *operations.Options, _ *Options) {
		access.Access, o.Access, o.Reauthorize = o.Access, access, 20*time.Millisecond
	})
	token := r.editor()
	s := r.create(token, "order-1")
	r.happened(string(s.UID), r.sagaStarted(string(s.UID), r.ns, "order-1"))
	f := r.follow(token, "order-1", "")
	for e, ok := f.next(); e.event != "SagaStarted"; e, ok = f.next() {
		if !ok {
			t.Fatal("nothing was received")
		}
	}
	access.taken.Store(true)
	for {
		e, ok := f.next()
		if !ok {
			t.Fatal("it has ended without a word")
		}
		if e.event == "problem" {
			if !strings.Contains(e.data, `"status":403`) {
				t.Errorf("the problem is %s", e.data)
			}
			break
		}
	}
	if e, ok := f.next(); ok {
		t.Errorf("it goes on with %+v", e)
	}
}
