package http

import (
	"errors"
	"fmt"
	nethttp "net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/vextrus/saga-operator/internal/saga"
)

// TestJudgeSaysWhoseWordANoIs has every status that anybody gives, as JSON, as a web page, and vouched for.
func TestJudgeSaysWhoseWordANoIs(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		var status int
		fmt.Sscanf(r.URL.Path, "/%d", &status)
		if v := r.URL.Query().Get("outcome"); v != "" {
			w.Header().Set("Saga-Outcome", v)
		}
		body := `{"message":"no"}`
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Has("html") {
			body = "<!DOCTYPE html><html>"
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
		}
		w.WriteHeader(status)
		if status != 204 && status != 304 {
			_, _ = w.Write([]byte(body))
		}
	})
	p := newParticipant(t, Options{})
	check := func(path string, kind saga.OutcomeKind, author saga.Author) {
		t.Helper()
		r := do(t, p, post(s.URL+path))
		if r.Kind != kind || r.Author != author {
			t.Errorf("%s: %s by %q, want %s by %q", path, r.Kind, r.Author, kind, author)
		}
		if says := strings.Contains(r.Message, "gateways answer so"); says != (author == saga.AuthorGateway) {
			t.Errorf("%s: the message is %q", path, r.Message)
		}
	}
	for _, status := range []int{301, 302, 304, 307, 308, 401, 403, 404, 405, 407, 409, 413, 414, 421, 431, 451} {
		check(fmt.Sprintf("/%d", status), saga.Rejected, saga.AuthorGateway)
	}
	for _, status := range []int{400, 402, 406, 410, 411, 412, 415, 416, 417, 418, 422, 423, 424, 426, 428, 499} {
		check(fmt.Sprintf("/%d", status), saga.Rejected, saga.AuthorUnknown)
		check(fmt.Sprintf("/%d?html", status), saga.Rejected, saga.AuthorGateway)
	}
	for _, status := range []int{200, 400, 401, 404, 409, 422} {
		check(fmt.Sprintf("/%d?outcome=Rejected", status), saga.Rejected, saga.AuthorParticipant)
		check(fmt.Sprintf("/%d?outcome=rejected&html", status), saga.Rejected, saga.AuthorParticipant)
	}
	for _, status := range []int{303, 408, 425, 500, 502, 503, 504} {
		check(fmt.Sprintf("/%d", status), saga.Unknown, saga.AuthorUnknown)
		check(fmt.Sprintf("/%d?outcome=Rejected", status), saga.Unknown, saga.AuthorUnknown)
	}
	check("/404?outcome=Perhaps", saga.Rejected, saga.AuthorGateway)
	check("/429?outcome=Rejected", saga.Retryable, saga.AuthorUnknown)
	check("/429?html", saga.Retryable, saga.AuthorUnknown)
}

func TestWebPageIsASuccessOnlyWhereItIsAskedFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		typ, body, accept string
		want              saga.OutcomeKind
	}{
		"a login page":                     {"text/html", "<html>", "", saga.Unknown},
		"one without a type":               {"-", "  <!doctype HTML>", "", saga.Unknown},
		"XHTML":                            {"application/xhtml+xml; charset=utf-8", "<html/>", "", saga.Unknown},
		"a page that the step asks for":    {"text/html", "<html>", "text/html", saga.Succeeded},
		"text":                             {"text/plain", "<html>", "", saga.Succeeded},
		"JSON":                             {"application/json", `"<html>"`, "", saga.Succeeded},
		"an empty response without a type": {"-", "", "", saga.Succeeded},
	} {
		s := newServer(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header()["Content-Type"] = []string{c.typ}
			if c.typ == "-" {
				w.Header()["Content-Type"] = nil // and none is guessed
			}
			_, _ = w.Write([]byte(c.body))
		})
		call := post(s.URL)
		if c.accept != "" {
			call = post(s.URL, "headers", map[string]any{"Accept": c.accept})
		}
		if r := do(t, newParticipant(t, Options{}), call); r.Kind != c.want {
			t.Errorf("%s: %s %s", name, r.Kind, r.Message)
		}
	}
}

// TestRefusedStreamDidNotHappen has an HTTP/2 server refuse a stream, which says that it has not looked at it.
func TestRefusedStreamDidNotHappen(t *testing.T) {
	t.Parallel()
	for code, kind := range map[http2.ErrCode]saga.OutcomeKind{http2.ErrCodeRefusedStream: saga.Retryable, http2.ErrCodeInternal: saga.Unknown} {
		err := fmt.Errorf("sending: %w", http2.StreamError{StreamID: 1, Code: code})
		if r := failed(t.Context(), err, true); r.Kind != kind {
			t.Errorf("%s: %s", code, r.Kind)
		}
	}
	if r := failed(t.Context(), errors.New("broken"), true); r.Kind != saga.Unknown {
		t.Errorf("another error: %s", r.Kind)
	}
}
