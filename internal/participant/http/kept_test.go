package http

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptrace"
	"sync/atomic"
	"testing"

	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// doKept carries a call out and reports whether a kept connection was tried. A transport that is held up for some milliseconds keeps none.
func doKept(t testing.TB, p *Participant, call participant.Call) (r participant.Result, kept bool) {
	t.Helper()
	trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { kept = kept || c.Reused }}
	r = doIn(httptrace.WithClientTrace(t.Context(), trace), t, p, call)
	return r, kept
}

// untilKept repeats a test until its connection was kept.
func untilKept(t *testing.T, try func() (kept bool)) {
	t.Helper()
	for range 100 {
		if try() {
			return
		}
	}
	t.Error("no connection is ever kept")
}

func TestADeadKeptConnectionIsReplacedUnderTheSameKey(t *testing.T) {
	t.Parallel()
	untilKept(t, func() bool {
		var requests atomic.Int32
		url := raw(t, func(n int, c net.Conn) {
			requests.Add(1)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
			// Takes the next request and closes instead of answering, as a server does that gave the connection up at that moment.
			if n == 0 && readRequest(bufio.NewReader(c)) {
				requests.Add(1)
			}
		})
		p := newParticipant(t, Options{})
		first := do(t, p, post(url))
		second, kept := doKept(t, p, post(url))
		if !kept {
			return false
		}
		if first.Kind != saga.Succeeded || second.Kind != saga.Succeeded {
			t.Errorf("the calls came to %+v and %+v", first, second)
		}
		if n := requests.Load(); n != 3 {
			t.Errorf("%d requests, want 3", n)
		}
		return true
	})
}

func TestADeadKeptConnectionAndThenNoneIsUnknown(t *testing.T) {
	t.Parallel()
	untilKept(t, func() bool {
		url := raw(t, func(_ int, c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
			readRequest(bufio.NewReader(c))
		})
		p := newParticipant(t, Options{})
		want(t, do(t, p, post(url)), saga.Succeeded, "", "")
		dial := p.transport.DialContext
		p.transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial(ctx, network, "127.0.0.1:1")
		} // and any other connection is refused
		// The first try was written to the kept connection, so a refused second one does not make it harmless.
		result, kept := doKept(t, p, post(url))
		if kept {
			want(t, result, saga.Unknown, "ConnectionBroken", "refused")
		}
		return kept
	})
}

// TestConnectionsAreKept allows for some that are not: the transport gives one up when it is held up for some milliseconds at the wrong moment.
func TestConnectionsAreKept(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.URL.Path == "/402" {
			w.WriteHeader(nethttp.StatusPaymentRequired)
		}
		_, _ = w.Write(bytes.Repeat([]byte("a"), 100_000))
	})
	p := newParticipant(t, Options{})
	const calls = 10
	for _, path := range []string{"", "/402"} {
		kept := 0
		for range calls {
			do(t, p, post(s.URL+path))
			if _, again := doKept(t, p, post(s.URL)); again {
				kept++
			}
		}
		if kept < calls/2 {
			t.Errorf("after %d of %d calls of %q their connection was kept", kept, calls, path)
		}
	}
}
