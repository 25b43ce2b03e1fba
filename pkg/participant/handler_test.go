package participant_test

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/pkg/participant"
)

func TestOf64DeliveriesAtOnceOneActsAndAllAreAnsweredAlike(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var mu sync.Mutex
	bodies := map[string]int{}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			got := r.answers(201, "POST", "/things/1", "a", `{"note": "x"}`)
			mu.Lock()
			defer mu.Unlock()
			bodies[got.body]++
		})
	}
	wg.Wait()
	r.is("1", 1)
	if len(bodies) != 1 {
		t.Errorf("the answers are %v", bodies)
	}
}

func TestADefiniteNoIsKeptAndLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.failing(func(*participant.Request) error {
		return participant.Refuse(http.StatusPaymentRequired, "card declined")
	})
	r.answers(402, "POST", "/things/1", "a", `{}`)
	r.failing(nil)
	if got := r.answers(402, "POST", "/things/1", "a", `{}`); got.body != "{\"message\":\"card declined\"}\n" {
		t.Error(got.body)
	}
	r.is("1", 0)
	r.answers(201, "POST", "/things/1", "another-key", `{}`)
}

func TestARefusedCompensationIsCarriedOutWhenItComesAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	r.failing(func(*participant.Request) error {
		return participant.Refuse(http.StatusConflict, "the books are closed")
	})
	for range 2 {
		if got := r.answers(http.StatusConflict, "DELETE", "/things/1", "c", ""); got.body != "{\"message\":\"the books are closed\"}\n" {
			t.Error(got.body)
		}
		r.is("1", 1)
	}
	r.failing(nil) // somebody has opened them, and decided to try again: under the same key
	r.answers(201, "DELETE", "/things/1", "c", "")
	r.answers(201, "DELETE", "/things/1", "c", "")
	r.is("1", 0)
}

// TestServiceVouchesForStoredRefusals has an action refused, which is stored, and a compensation, which is not.
func TestServiceVouchesForStoredRefusals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.failing(func(*participant.Request) error {
		return participant.Refuse(http.StatusPaymentRequired, "card declined")
	})
	for range 2 {
		if got := r.answers(402, "POST", "/things/1", "a", `{}`); got.header.Get("Saga-Outcome") != "Rejected" {
			t.Errorf("a stored no is not vouched for: %v", got.header)
		}
	}
	r.failing(nil)
	r.answers(201, "POST", "/things/2", "b", `{}`)
	r.failing(func(*participant.Request) error {
		return participant.Refuse(http.StatusConflict, "the books are closed")
	})
	if got := r.answers(409, "DELETE", "/things/2", "c", ""); got.header.Get("Saga-Outcome") != "" {
		t.Error("a no that comes to something else the next time is vouched for")
	}
}

func TestNotNowIsNotKept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.failing(func(*participant.Request) error {
		return participant.NotNow(1500*time.Millisecond, "the warehouse is closed")
	})
	if got := r.answers(429, "POST", "/things/1", "a", `{}`); got.header.Get("Retry-After") != "2" {
		t.Errorf("Retry-After is %q", got.header.Get("Retry-After"))
	}
	r.failing(nil)
	r.is("1", 0)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	r.is("1", 1)
}

func TestAnErrorIsUnknownAndTellsNothingOfItself(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.failing(func(*participant.Request) error { return errors.New("password is 1234") })
	if got := r.answers(500, "POST", "/things/1", "a", `{}`); strings.Contains(got.body, "1234") {
		t.Error(got.body)
	}
	r.failing(nil)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	r.is("1", 1)
}

func TestARequestThatIsNotValidUsesNoKeyUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, participant.Options{MaxBody: 20, Realm: func(r *http.Request) (string, error) {
		if r.Header.Get("Who") == "nobody" {
			return "", errors.New("who are you?")
		}
		return r.Header.Get("Who"), nil
	}})
	r.answers(400, "POST", "/things/1", "", `{}`)
	r.answers(400, "POST", "/things/1", `"a`, `{}`)
	r.answers(400, "POST", "/things/1", "a", `{"other": 1}`)
	r.answers(400, "POST", "/things/1", "a", `{} x`)
	r.answers(413, "POST", "/things/1", "a", `{"note": "`+strings.Repeat("x", 20)+`"}`)
	r.answers(401, "POST", "/things/1", "a", `{}`, "Who", "nobody")
	r.answers(201, "POST", "/things/1", "a", `{}`)
	r.answers(422, "POST", "/things/1", "a", `{"note": "x"}`)
	r.answers(422, "POST", "/things/2", "a", `{}`)
	r.answers(201, "POST", "/things/1", "a", `{}`, "Who", "bob")
	r.is("1", 2)
}

func TestWhatTheOperatorSaysReachesTheService(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var seen participant.Request
	r.failing(func(req *participant.Request) error { seen = *req; return nil })
	r.answers(201, "POST", "/things/1", "u-1/book/action", `{}`, "Saga-Id", "u-1", "Saga-Step", "book", "Traceparent", "00-x", "Saga-Callback", "https://x")
	if seen.Key != "u-1/book/action" || seen.SagaID != "u-1" || seen.Step != "book" || seen.TraceParent != "00-x" || seen.Callback != "https://x" || string(seen.Body) != "{}" || seen.HTTP() == nil {
		t.Errorf("%+v", seen)
	}
}

func TestTheSchemaCanBeRunAgainAndItsLackIsSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(participant.Schema)
	r.exec(`DROP TABLE saga_barriers`)
	if _, err := participant.Act(r.ctx, r.pool, participant.Effect{Name: "x"}); err == nil || !strings.Contains(err.Error(), "participant.Schema") {
		t.Error(err)
	}
	if _, err := participant.Undo(r.ctx, r.pool, participant.Effect{Name: "x"}); err == nil || !strings.Contains(err.Error(), "participant.Schema") {
		t.Error(err)
	}
}
