package participant_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/participant"
)

// operator takes callbacks.
type operator struct {
	*httptest.Server
	mu    sync.Mutex
	calls map[string][]string // bodies by path
	says  func(path string) int
	// answers is what it does, if not nil, when it has noted a call.
	answers http.HandlerFunc
}

func newOperator(t *testing.T, says func(path string) int) *operator {
	t.Helper()
	o := &operator{calls: map[string][]string{}, says: says}
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", r.Method, r.Header.Get("Content-Type"), err)
		}
		o.mu.Lock()
		o.calls[r.URL.Path] = append(o.calls[r.URL.Path], string(body))
		o.mu.Unlock()
		if o.answers != nil {
			o.answers(w, r)
			return
		}
		status := http.StatusNoContent
		if o.says != nil {
			status = o.says(r.URL.Path)
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(o.Close)
	return o
}

func (o *operator) told(path string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls[path]
}

func (r *rig) ended(thing string) string {
	r.t.Helper()
	var ended *string
	if err := r.pool.QueryRow(r.ctx, `SELECT ended FROM saga_work WHERE effect = 'book ' || $1`, thing).Scan(&ended); err != nil {
		r.t.Fatal(err)
	}
	if ended == nil {
		return ""
	}
	return *ended
}

func TestAcceptedWorkIsDoneAndItsOutcomeTold(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, nil)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/cb")
	r.is("1", 0)
	r.run(r.work)
	r.eventually("it is told", func() bool { return r.ended("1") == "told" })
	r.is("1", 1)
	if got := o.told("/cb"); len(got) != 1 || got[0] != `{"outcome":"Succeeded","body":{"thing":"1"}}` {
		t.Errorf("it was told %v", got)
	}
}

func TestARejectionIsToldWithItsReason(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, nil)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/cb")
	r.run(func(context.Context, pgx.Tx, participant.Work) (participant.Outcome, error) {
		return participant.Outcome{Rejected: true, Reason: "Declined", Message: "card declined"}, nil
	})
	r.eventually("it is told", func() bool { return r.ended("1") == "told" })
	if got := o.told("/cb"); len(got) != 1 || got[0] != `{"outcome":"Rejected","reason":"Declined","message":"card declined"}` {
		t.Errorf("it was told %v", got)
	}
}

func TestWithoutACallbackNothingIsAccepted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.answers(400, "POST", "/later/1", "a", `{}`)
}

func TestACallbackIsRepeatedUntilItIsTaken(t *testing.T) {
	t.Parallel()
	// What somebody before the operator says says nothing of the callback: an ingress that is being rolled out, a proxy that wants a login.
	says := []reply{{status: 503}, {status: 429}, {status: 408}, {status: 302}, {status: 400}, {status: 403}, {status: 404}, {status: 404, body: "text/html"}, {status: 404, body: "application/json"}}
	var n atomic.Int32
	o := newOperator(t, nil)
	o.answers = func(w http.ResponseWriter, _ *http.Request) {
		i := int(n.Add(1)) - 1
		if i >= len(says) {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", says[i].body)
		w.WriteHeader(says[i].status)
	}
	r := newRig(t)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/cb")
	r.run(r.work)
	r.eventually("it is told", func() bool {
		r.exec(`UPDATE saga_work SET due_at = now() WHERE attempts > 0 AND ended IS NULL`) // nobody waits for a pause here
		return r.ended("1") != ""
	})
	if got := o.told("/cb"); r.ended("1") != "told" || len(got) <= len(says) {
		t.Errorf("it is %s, and was told %v", r.ended("1"), got)
	}
}

func TestACallbackThatIsOverIsNotRepeated(t *testing.T) {
	t.Parallel()
	o := newOperator(t, nil)
	o.answers = func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/problem+json; charset=utf-8")
		w.WriteHeader(status)
	}
	r := newRig(t)
	r.run(r.work)
	for _, status := range []string{"409", "410", "404"} {
		r.answers(202, "POST", "/later/"+status, "k"+status, `{}`, "Saga-Callback", o.URL+"/"+status)
		r.eventually("it is refused", func() bool { return r.ended(status) == "refused" })
		if got := o.told("/" + status); len(got) != 1 {
			t.Errorf("it was told %v", got)
		}
		r.is(status, 1) // the saga compensates what it no longer waits for
	}
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", ":no URL")
	r.eventually("what is no URL is given up", func() bool { return r.ended("1") == "refused" })
}

func TestTheNewestCallbackIsTold(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, func(path string) int {
		if path == "/first" {
			return http.StatusGone
		}
		return http.StatusNoContent
	})
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/first")
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/second") // the answer was lost
	stop := r.run(r.work)
	r.eventually("it is told", func() bool { return r.ended("1") == "told" })
	if len(o.told("/first")) != 0 || len(o.told("/second")) != 1 {
		t.Errorf("%v and %v were told", o.told("/first"), o.told("/second"))
	}
	stop()

	r.answers(202, "POST", "/later/2", "b", `{}`, "Saga-Callback", o.URL+"/first")
	r.run(r.work)
	r.eventually("it is refused", func() bool { return r.ended("2") == "refused" })
	r.answers(202, "POST", "/later/2", "b", `{}`, "Saga-Callback", o.URL+"/third") // it came too late, and the operator asks again
	r.eventually("it is told after all", func() bool { return r.ended("2") == "told" })
	if len(o.told("/third")) != 1 {
		t.Errorf("%v was told", o.told("/third"))
	}
	r.is("2", 1)
}

func TestWorkThatFailsIsDoneAgainAndCommittedOnce(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, nil)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/cb")
	var n atomic.Int32
	r.run(func(ctx context.Context, tx pgx.Tx, w participant.Work) (participant.Outcome, error) {
		out, err := r.work(ctx, tx, w)
		if n.Add(1) < 3 {
			err = errors.New("not yet")
		}
		return out, err
	})
	r.eventually("it is told", func() bool { return r.ended("1") == "told" })
	r.is("1", 1)
}

func TestSeveralProcessesDoEachPieceOfWorkOnce(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, nil)
	for range 4 {
		r.run(r.work)
	}
	things := []string{"1", "2", "3", "4", "5", "6", "7", "8"}
	for _, thing := range things {
		r.answers(202, "POST", "/later/"+thing, "k"+thing, `{}`, "Saga-Callback", o.URL+"/"+thing)
	}
	for _, thing := range things {
		r.eventually("it is told", func() bool { return r.ended(thing) == "told" })
		r.is(thing, 1)
	}
}

func TestACompensationWithdrawsWorkThatIsNotDone(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, nil)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/cb")
	r.answers(200, "DELETE", "/later/1", "c", "")
	r.run(r.work)
	r.answers(202, "POST", "/later/2", "b", `{}`, "Saga-Callback", o.URL+"/cb2")
	r.eventually("what came after it is told", func() bool { return r.ended("2") == "told" })
	r.is("1", 0)
	if got := o.told("/cb"); len(got) != 0 {
		t.Errorf("it was told %v", got)
	}
	r.answers(201, "DELETE", "/later/2", "c2", "") // this one was done, and is undone
	r.is("2", 0)
}

func TestNobodyButTheOperatorIsCalledBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, participant.Options{Operators: []string{"https://operator.example:8443/base/"}})
	for i, callback := range []string{
		"http://169.254.169.254/latest", "https://operator.example/base/x", "http://operator.example:8443/base/x", "https://operator.example:8443.evil.example/base/x",
		"https://operator.example:8443@evil.example/base/x", "https://operator.example:8443/other/x", "https://operator.example:8443/base", "://", "//operator.example:8443/base/x",
	} {
		r.answers(400, "POST", fmt.Sprint("/later/", i), "a", `{}`, "Saga-Callback", callback)
	}
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", "https://operator.example:8443/base/v1/callbacks/x")
}

// held has those who come wait until it is opened.
type held struct {
	mu        sync.Mutex
	now, most int
	opened    chan struct{}
	open      func()
}

func hold() *held {
	h := &held{opened: make(chan struct{})}
	h.open = sync.OnceFunc(func() { close(h.opened) })
	return h
}

func (h *held) wait() {
	h.mu.Lock()
	h.now++
	h.most = max(h.most, h.now)
	h.mu.Unlock()
	<-h.opened
	h.mu.Lock()
	h.now--
	h.mu.Unlock()
}

func (h *held) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func TestACallbackThatHangsHoldsNeitherWorkNorOtherCallbacksUp(t *testing.T) {
	t.Parallel()
	h := hold()
	o := newOperator(t, func(path string) int {
		if path == "/hangs" {
			h.wait()
		}
		return http.StatusNoContent
	})
	t.Cleanup(h.open) // before the operator is closed, which waits for its requests
	r := newRig(t)
	r.run(r.work)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/hangs")
	r.eventually("it hangs", func() bool { return h.waiting() == 1 })
	r.answers(202, "POST", "/later/2", "b", `{}`, "Saga-Callback", o.URL+"/cb")
	r.eventually("another is told", func() bool { return r.ended("2") == "told" })
	r.is("2", 1)
	h.open()
	r.eventually("it is told", func() bool { return r.ended("1") == "told" })
}

func TestFewAreToldAtOnce(t *testing.T) {
	t.Parallel()
	h := hold()
	o := newOperator(t, func(string) int {
		h.wait()
		return http.StatusNoContent
	})
	t.Cleanup(h.open) // before the operator is closed, which waits for its requests
	r := newRig(t)
	const few = 8
	var things []string
	for i := range 3 * few {
		things = append(things, fmt.Sprint(i))
		r.answers(202, "POST", "/later/"+things[i], "k"+things[i], `{}`, "Saga-Callback", o.URL+"/"+things[i])
	}
	r.run(r.work)
	r.eventually("as many as may are told, and the work is done", func() bool {
		return h.waiting() >= few && r.net(things[len(things)-1]) == 1
	})
	h.open()
	for _, thing := range things {
		r.eventually("it is told", func() bool { return r.ended(thing) == "told" })
	}
	if h.most > few {
		t.Errorf("%d were told at once", h.most)
	}
}

func TestRunEndsWithItsContextAndWaitsForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	h := hold()
	o := newOperator(t, func(string) int {
		h.wait()
		return http.StatusNoContent
	})
	t.Cleanup(h.open) // before the operator is closed, which waits for its requests
	r := newRig(t)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/cb")
	stop := r.run(r.work)
	r.eventually("it is told", func() bool { return h.waiting() == 1 })
	stop()
	var again int
	if err := r.pool.QueryRow(r.ctx, `SELECT attempts FROM saga_work`).Scan(&again); err != nil || again != 1 {
		t.Errorf("that it did not go through is noted %d times, %v", again, err)
	}
	h.open()
	r.run(nil) // which only tells
	r.eventually("it is told again", func() bool { return r.ended("1") == "told" })
}

func TestACallbackThatIsMovedWhileItIsPostedIsPostedWhereItIsNow(t *testing.T) {
	t.Parallel()
	first, second := hold(), hold()
	var seconds atomic.Int32
	o := newOperator(t, func(path string) int {
		if path == "/first" {
			first.wait()
			return http.StatusNoContent
		}
		if seconds.Add(1) == 1 {
			second.wait()
			return http.StatusServiceUnavailable
		}
		return http.StatusNoContent
	})
	t.Cleanup(first.open)
	t.Cleanup(second.open)
	r := newRig(t)
	r.run(r.work)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/first")
	r.eventually("it is posted", func() bool { return first.waiting() == 1 })
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/second")
	r.eventually("it is posted where it is now", func() bool { return second.waiting() == 1 })
	first.open() // and nobody waits for this one any more
	r.eventually("that is noted", func() bool { return r.ended("1") != "" || seconds.Load() > 1 })
	second.open()
	r.eventually("it is told", func() bool { return r.ended("1") == "told" && seconds.Load() > 1 })
}
