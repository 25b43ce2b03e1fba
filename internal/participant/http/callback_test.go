package http

import (
	"context"
	"errors"
	nethttp "net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// desk gives out callbacks, or not.
type desk struct {
	err    error
	within time.Duration
	calls  []participant.Call
}

func (d *desk) Issue(_ context.Context, call participant.Call, within time.Duration) (string, error) {
	d.calls, d.within = append(d.calls, call), within
	return "https://operator.example/v1/callbacks/token", d.err
}

func TestAStepThatAsksForACallbackIsAcceptedBy202Only(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]participant.Result{
		202: {Accepted: true, AnswerWithin: time.Hour},
		200: {Kind: saga.Succeeded},
		201: {Kind: saga.Succeeded},
		402: {Kind: saga.Rejected},
		503: {Kind: saga.Unknown},
		500: {Kind: saga.Unknown},
	} {
		var header string
		s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
			header = r.Header.Get("Saga-Callback")
			w.WriteHeader(status)
		})
		d := &desk{}
		got := do(t, newParticipant(t, Options{Callbacks: d}), post(s.URL, "completion", "Callback", "callbackTimeout", "1h"))
		if got.Accepted != want.Accepted || got.AnswerWithin != want.AnswerWithin || got.Kind != want.Kind {
			t.Errorf("%d: %+v", status, got)
		}
		if header != "https://operator.example/v1/callbacks/token" || len(d.calls) != 1 || d.calls[0].Attempt.Step != "charge" {
			t.Errorf("%d: the header was %q, for %+v", status, header, d.calls)
		}
		if d.within < time.Hour || d.within > time.Hour+patience {
			t.Errorf("%d: the callback was good for %s", status, d.within)
		}
	}
}

func TestAStepThatAsksForNoCallbackGetsNoneAnd202IsItsSuccess(t *testing.T) {
	t.Parallel()
	for _, more := range [][]any{nil, {"completion", "Response"}} {
		s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
			if _, there := r.Header["Saga-Callback"]; there {
				t.Error("there is a callback")
			}
			w.WriteHeader(nethttp.StatusAccepted)
		})
		if got := do(t, newParticipant(t, Options{Callbacks: &desk{}}), post(s.URL, more...)); got.Accepted || got.Kind != saga.Succeeded {
			t.Errorf("%v: %+v", more, got)
		}
	}
}

func TestNothingIsSentWhereNoCallbackCanBeGivenOut(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(nethttp.ResponseWriter, *nethttp.Request) { t.Error("it was sent") })
	p := newParticipant(t, Options{Callbacks: &desk{err: errors.New("the database is away")}})
	got := do(t, p, post(s.URL, "completion", "Callback", "callbackTimeout", "1h"))
	if got.Kind != saga.Retryable || !strings.Contains(got.Message, "the database is away") {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsWrongWithACallbackIsSaidBeforeTheSagaStarts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		more  []any
		field string
	}{
		"an unknown completion": {[]any{"completion", "Later"}, "completion"},
		"no timeout":            {[]any{"completion", "Callback"}, "callbackTimeout"},
		"a timeout of nothing":  {[]any{"completion", "Callback", "callbackTimeout", "0s"}, "callbackTimeout"},
		"a timeout of months":   {[]any{"completion", "Callback", "callbackTimeout", "7200h"}, "callbackTimeout"},
		"a timeout alone":       {[]any{"callbackTimeout", "1h"}, "callbackTimeout"},
		"a header of ours":      {[]any{"headers", map[string]any{"saga-callback": "https://elsewhere"}}, "headers.saga-callback"},
	} {
		errs := newParticipant(t, Options{Callbacks: &desk{}}).Check(post("http://x", c.more...).With)
		var fields []string
		for _, e := range errs {
			fields = append(fields, e.Field)
		}
		if diff := cmp.Diff([]string{c.field}, fields); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	errs := newParticipant(t, Options{}).Check(post("http://x", "completion", "Callback", "callbackTimeout", "1h").With)
	if len(errs) != 1 || !strings.Contains(errs[0].Message, "--callback-url") {
		t.Errorf("without an address for callbacks: %v", errs)
	}
}
