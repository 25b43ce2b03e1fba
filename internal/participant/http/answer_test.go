package http

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestTheStatusSaysTheOutcome(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		var status int
		fmt.Sscanf(r.URL.Path, "/%d", &status)
		if status >= 300 && status < 400 {
			w.Header().Set("Location", "http://169.254.169.254/latest/meta-data/")
		}
		w.WriteHeader(status)
	})
	p := newParticipant(t, Options{})
	for status, w := range map[int]struct {
		kind            saga.OutcomeKind
		reason, message string
	}{
		// No body vouches for anything here; TestJudgeSaysWhoseWordANoIs has the authors.
		200: {saga.Succeeded, "", ""}, 201: {saga.Succeeded, "", ""}, 202: {saga.Succeeded, "", ""}, 204: {saga.Succeeded, "", ""}, 299: {saga.Succeeded, "", ""},
		301: {saga.Rejected, "MovedPermanently", "redirect to host 169.254.169.254 is not followed (301)"},
		302: {saga.Rejected, "Found", "not followed (302)"}, 303: {saga.Unknown, "SeeOther", "not followed (303)"}, // often said when it has been done
		304: {saga.Rejected, "NotModified", "(304)"}, 307: {saga.Rejected, "TemporaryRedirect", "not followed (307)"}, 308: {saga.Rejected, "PermanentRedirect", "not followed (308)"},
		400: {saga.Rejected, "BadRequest", "Bad Request (400)"}, 402: {saga.Rejected, "PaymentRequired", "(402)"}, 404: {saga.Rejected, "NotFound", "(404)"},
		409: {saga.Rejected, "Conflict", "(409)"}, 418: {saga.Rejected, "Imateapot", "(418)"}, 499: {saga.Rejected, "Status499", "(499)"},
		408: {saga.Unknown, "RequestTimeout", "(408)"}, 425: {saga.Unknown, "TooEarly", "(425)"},
		429: {saga.Retryable, "TooManyRequests", "(429)"}, 503: {saga.Unknown, "ServiceUnavailable", "(503)"},
		500: {saga.Unknown, "InternalServerError", "(500)"}, 502: {saga.Unknown, "BadGateway", "(502)"}, 504: {saga.Unknown, "GatewayTimeout", "(504)"},
		599: {saga.Unknown, "Status599", "(599)"},
	} {
		r := do(t, p, post(fmt.Sprint(s.URL, "/", status)))
		if r.Kind != w.kind || r.Reason != w.reason || !strings.Contains(r.Message, w.message) {
			t.Errorf("%d: got %s %s %q, want %v", status, r.Kind, r.Reason, r.Message, w)
		}
		if r.Response["status"] != int64(status) || r.Response["body"] != nil {
			t.Errorf("%d: response %v", status, r.Response)
		}
	}
}

func TestARefusalSaysWhatTheParticipantSaid(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(nethttp.StatusPaymentRequired)
		_, _ = w.Write(body)
	})
	p := newParticipant(t, Options{})
	for _, c := range []struct {
		body any
		want string
	}{
		{map[string]any{"error": "card declined"}, "card declined (402)"},
		{map[string]any{"title": "Declined", "detail": "no funds"}, "no funds (402)"},
		{map[string]any{"error": map[string]any{"message": "nested"}}, "nested (402)"},
		{map[string]any{"message": "two\nlines\x00 and\ttabs"}, "two lines\ufffd and tabs (402)"},
		{map[string]any{"message": 5}, "Payment Required (402)"},
		{map[string]any{"Detail": "no funds", "MESSAGE": "no funds"}, "Payment Required (402)"},
		{map[string]any{"error": map[string]any{"Message": "nested"}, "title": "Declined"}, "Declined (402)"},
		{[]any{"x"}, "Payment Required (402)"},
	} {
		r := do(t, p, post(s.URL, "body", c.body))
		if r.Kind != saga.Rejected || r.Message != c.want {
			t.Errorf("%v: %q, want %q", c.body, r.Message, c.want)
		}
	}
	r := do(t, p, post(s.URL, "body", map[string]any{"message": strings.Repeat("é", 5000)}))
	if len(r.Message) > maxMessageBytes || !strings.HasSuffix(r.Message, "é… (402)") {
		t.Errorf("a long message became %q", r.Message)
	}
	plain := newServer(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		nethttp.Error(w, "out of stock", nethttp.StatusConflict)
	})
	want(t, do(t, p, post(plain.URL)), saga.Rejected, "Conflict", "out of stock (409)")
}

func TestRetryAfterIsHonouredInBothFormsAndCapped(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-5": 0, "3.5": 0, "soon": 0, "7200": time.Hour,
		"99999999999999999999999":       time.Hour,
		"Sun, 01 Mar 2026 12:00:30 GMT": 30 * time.Second,
		"Sun, 01 Mar 2026 11:00:00 GMT": 0,
		"Mon, 02 Mar 2026 12:00:00 GMT": time.Hour,
	} {
		s := newServer(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Retry-After", header)
			w.WriteHeader(nethttp.StatusTooManyRequests)
		})
		p := newParticipant(t, Options{Clock: func() time.Time { return now }})
		if r := do(t, p, post(s.URL)); r.RetryAfter != want || r.Kind != saga.Retryable {
			t.Errorf("%q: %v %v, want %v", header, r.Kind, r.RetryAfter, want)
		}
	}
}

// bodyOf returns the body of a response as expressions see it.
func bodyOf(t *testing.T, r participant.Result) any {
	t.Helper()
	raw, ok := r.Response["body"].(json.RawMessage)
	if !ok {
		return r.Response["body"]
	}
	body, err := expression.Decode(raw)
	if err != nil {
		t.Errorf("decoding the body: %v", err)
	}
	return body
}

func TestAnAnswerThatIsNotJSONIsText(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	for _, c := range []struct {
		contentType, body string
		want              any
	}{
		{"text/plain", "hello", "hello"},
		{"text/plain", "123", "123"},
		{"application/json", "123", int64(123)},
		{"application/problem+json", `{"a":1}`, map[string]any{"a": int64(1)}},
		{"application/json", `{"a":`, `{"a":`},
		{"application/json", "  ", nil},
		{"application/json", `{"a":"x\u0000y","b\u0000":[1,"\u0000"]}`, map[string]any{"a": "x\ufffdy", "b\ufffd": []any{int64(1), "\ufffd"}}},
		{"application/json", deep, deep},
		{"application/octet-stream", "a\x00b\xff\xfec", "a\ufffdb\ufffdc"},
		{"text/xml", "<b>", "<b>"},
	} {
		s := newServer(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Content-Type", c.contentType)
			_, _ = io.WriteString(w, c.body)
		})
		r := do(t, newParticipant(t, Options{}), post(s.URL))
		if r.Kind != saga.Succeeded || !cmp.Equal(c.want, bodyOf(t, r)) {
			t.Errorf("%s %q: %v %v", c.contentType, c.body, r.Kind, r.Response["body"])
		}
	}
}

func TestAClearAnswerWithABrokenBodyStaysClear(t *testing.T) {
	t.Parallel()
	for status, kind := range map[int]saga.OutcomeKind{402: saga.Rejected, 429: saga.Retryable, 503: saga.Unknown, 500: saga.Unknown} {
		url := raw(t, func(_ int, c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 %d X\r\nContent-Length: 100\r\n\r\n{\"error\":", status)
		})
		if r := do(t, newParticipant(t, Options{}), post(url)); r.Kind != kind || !strings.Contains(r.Message, fmt.Sprint(status)) {
			t.Errorf("%d: %+v", status, r)
		}
	}
}

func TestAnAnswerThatIsTooLargeCostsBoundedMemory(t *testing.T) {
	// Gzip members that expand to a MiB each, 64 of them.
	var member bytes.Buffer
	z, _ := gzip.NewWriterLevel(&member, gzip.BestCompression)
	zeros := make([]byte, 1<<20)
	_, _ = z.Write(zeros)
	_ = z.Close()
	bomb := bytes.Repeat(member.Bytes(), 64)
	// Gzip members that expand to nothing: endless input, no output.
	var nothing bytes.Buffer
	z = gzip.NewWriter(&nothing)
	_ = z.Close()

	for name, handler := range map[string]nethttp.HandlerFunc{
		"1 GiB": func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			for range 1024 {
				if _, err := w.Write(zeros); err != nil {
					return
				}
			}
		},
		"1 GiB announced": func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(1<<30))
			_, _ = w.Write(zeros)
		},
		"gzip bomb": func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb)
		},
		"endless gzip of nothing": func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			for {
				if _, err := w.Write(nothing.Bytes()); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, handler)
			p := newParticipant(t, Options{})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := do(t, p, post(s.URL))
			runtime.ReadMemStats(&after)
			want(t, r, saga.Unknown, "AnswerTooLarge", "larger than 1048576 bytes")
			if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
				t.Errorf("allocated %d MiB in all", n>>20)
			}
			if r.Response != nil {
				t.Error("an answer that cannot be used was passed on")
			}
		})
	}
	s := newServer(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		w.WriteHeader(nethttp.StatusConflict)
		_, _ = w.Write(zeros)
		_, _ = w.Write(zeros)
	})
	want(t, do(t, newParticipant(t, Options{}), post(s.URL)), saga.Rejected, "Conflict", "Conflict (409)")
}

// TestAnswerIsLimitedBeforeDecompression has an answer that is large only while it is compressed: gzip
// members that hold nothing.
func TestAnswerIsLimitedBeforeDecompression(t *testing.T) {
	t.Parallel()
	for members, ok := range map[int]bool{1: true, 100: false} {
		r := do(t, newParticipant(t, Options{MaxAnswerBytes: 1000}), post(zipped(t, members, "").URL))
		if (r.Kind == saga.Succeeded) != ok || !ok && r.Reason != "AnswerTooLarge" {
			t.Errorf("%d members: %s %s", members, r.Kind, r.Reason)
		}
	}
}

func TestAnswerIsLimitedAfterDecompression(t *testing.T) {
	t.Parallel()
	for size, ok := range map[int]bool{1000: true, 1001: false, 100_000: false} {
		r := do(t, newParticipant(t, Options{MaxAnswerBytes: 1000}), post(zipped(t, 1, strings.Repeat("a", size)).URL))
		if (r.Kind == saga.Succeeded) != ok || !ok && r.Reason != "AnswerTooLarge" {
			t.Errorf("%d bytes: %s %s", size, r.Kind, r.Reason)
		}
	}
}

// zipped is a server whose answer is a text, as the last of several gzip members.
func zipped(t *testing.T, members int, text string) *httptest.Server {
	t.Helper()
	var body bytes.Buffer
	for i := range members {
		z := gzip.NewWriter(&body)
		if i == members-1 {
			_, _ = io.WriteString(z, text)
		}
		_ = z.Close()
	}
	return newServer(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(body.Bytes())
	})
}

func TestAnAnswerUpToTheLimitPasses(t *testing.T) {
	t.Parallel()
	for _, zipped := range []bool{false, true} {
		for size, ok := range map[int]bool{999: true, 1000: true, 1001: false} {
			s := newServer(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
				w.Header().Set("Content-Type", "text/plain")
				if !zipped {
					_, _ = io.WriteString(w, strings.Repeat("a", size))
					return
				}
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				_, _ = io.WriteString(z, strings.Repeat("a", size))
				_ = z.Close()
			})
			r := do(t, newParticipant(t, Options{MaxAnswerBytes: 1000}), post(s.URL))
			if (r.Kind == saga.Succeeded) != ok || ok && r.Response["body"] != strings.Repeat("a", size) {
				t.Errorf("gzip %v, %d bytes: %v %s", zipped, size, r.Kind, r.Reason)
			}
		}
	}
}

// TestLargeAnswersWaitForRoomAndSmallOnesDoNot blocks ReserveMemory until ctx ends, as many
// concurrent large responses would.
func TestLargeAnswersWaitForRoomAndSmallOnesDoNot(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		size := 100 // a small answer
		if r.URL.Path == "/large" {
			size = 2 * smallAnswerBytes
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `"`+strings.Repeat("x", size)+`"`)
	})
	p := newParticipant(t, Options{})
	reserved, exhausted := make(chan int64, 1), true
	call := func(path string) participant.Call {
		c := post(s.URL + path)
		c.ReserveMemory = func(ctx context.Context, bytes int64) error {
			reserved <- bytes
			if exhausted {
				<-ctx.Done()
			}
			return ctx.Err()
		}
		return c
	}
	if r := do(t, p, call("/small")); r.Kind != saga.Succeeded || len(reserved) > 0 {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan participant.Result)
	go func() { ended <- p.Do(ctx, call("/large")) }()
	if bytes := <-reserved; bytes != DefaultMaxAnswerBytes {
		t.Errorf("reserved %d bytes, want %d", bytes, DefaultMaxAnswerBytes)
	}
	cancel(errors.New("the attempt's time is over"))
	if r := <-ended; r.Kind != saga.Unknown || r.Reason != "NoMemory" || !strings.Contains(r.Message, "no memory was available") {
		t.Errorf("%+v", r)
	}
	exhausted = false
	if r := do(t, p, call("/large")); r.Kind != saga.Succeeded || len(r.Response["body"].(json.RawMessage)) != 2*smallAnswerBytes+2 {
		t.Errorf("%s %s", r.Kind, r.Message)
	}
}
