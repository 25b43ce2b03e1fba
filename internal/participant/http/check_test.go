package http

import (
	nethttp "net/http"
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestSettingsThatCannotWorkAreRefusedWithTheField(t *testing.T) {
	t.Parallel()
	p := newParticipant(t, Options{})
	good := func() map[string]any {
		return map[string]any{"method": "POST", "url": "http://h/x", "headers": map[string]any{"X-A": "b"}, "body": map[string]any{}}
	}
	if errs := p.Check(good()); errs != nil {
		t.Fatal(errs)
	}
	for _, c := range []struct {
		key            string
		value          any
		field, message string
	}{
		{"method", nil, "method", "is required"},
		{"method", "get", "method", "must be one of"},
		{"method", "${input.m}", "method", "cannot be an expression"},
		{"method", "CONNECT", "method", "must be one of"},
		{"method", "GET", "body", "GET has no body"},
		{"url", nil, "url", "is required"},
		{"url", int64(1), "url", "must be a string"},
		{"headers", "x", "headers", "must be an object"},
		{"headers", map[string]any{"X A": "b"}, "headers.X A", "valid name"},
		{"headers", map[string]any{"X-A": "b\r\nX-B: c"}, "headers.X-A", "control character"},
		{"headers", map[string]any{"X-A": []any{}}, "headers.X-A", "must be a string"},
		{"headers", map[string]any{"x-a": "1", "X-A": "2"}, "headers.x-a", "same header"},
		{"headers", map[string]any{"host": "evil"}, "headers.host", "cannot be set"},
		{"headers", map[string]any{"content-length": "1"}, "headers.content-length", "cannot be set"},
		{"headers", map[string]any{"Transfer-Encoding": "chunked"}, "headers.Transfer-Encoding", "cannot be set"},
		{"headers", map[string]any{"connection": "x"}, "headers.connection", "cannot be set"},
		{"headers", map[string]any{"idempotency-key": "other"}, "headers.idempotency-key", "cannot be set"},
		{"headers", map[string]any{"SAGA-ID": "other"}, "headers.SAGA-ID", "cannot be set"},
		{"headers", map[string]any{"traceparent": "x"}, "headers.traceparent", "cannot be set"},
		{"headers", map[string]any{"Content-Type": "text/plain"}, "headers.Content-Type", "always JSON"},
		{"headers", map[string]any{"Idempotency_Key": "other"}, "headers.Idempotency_Key", "to many servers"},
		{"headers", map[string]any{"X-Forwarded-For": "10.0.0.1"}, "headers.X-Forwarded-For", "who the client is"},
		{"headers", map[string]any{"X_A": "1", "X-A": "2"}, "headers.X_A", "same header"},
		{"query", "x", "query", "not a setting"},
	} {
		with := good()
		with[c.key] = c.value
		errs := p.Check(with)
		if len(errs) != 1 || errs[0].Field != c.field || !strings.Contains(errs[0].Message, c.message) {
			t.Errorf("%s = %v: %v, want %s: %s", c.key, c.value, errs, c.field, c.message)
		}
	}
	with := good()
	with["headers"] = map[string]any{"X-A": "${input.a}\n", "Content-Type": "application/merge-patch+json", "Authorization": "Bearer x"}
	if errs := p.Check(with); errs != nil {
		t.Error(errs)
	}
}

var badURLs = map[string]string{
	"ftp://h/":                 "http://",
	"h/x":                      "http://",
	"//h/x":                    "http://",
	"file:///etc/passwd":       "http://",
	"http:h":                   "http://",
	"http://":                  "no host",
	"http:///x":                "no host",
	"http://:80/":              "no host",
	"http://user@h/":           "user name",
	"http://user:pw@h/":        "user name",
	"http://h@evil/":           "user name",
	"http://h/#x":              "fragment",
	"http://h/a b":             "percent-encoded",
	"http://h/a\r\nX: y":       "percent-encoded",
	"http://h/é":               "percent-encoded",
	`http://h\@evil/`:          "percent-encoded",
	"http://h/a/../b":          "dot segment",
	"http://h/a/./b":           "dot segment",
	"http://h/..":              "dot segment",
	"http://h/a/%2e%2E/b":      "dot segment",
	"http://h/a/.%2e/b":        "dot segment",
	"http://h/a/..;x=1/b":      "dot segment",
	"http://h/a%2fb":           "encoded slash",
	"http://h/a%2F..%2Fb":      "encoded slash",
	"http://h/a%5Cb":           "encoded slash",
	"http://h/a%00b":           "control character",
	"http://h/a%0d%0ab":        "control character",
	"http://h/%zz":             "not a URL",
	"http://h:0/":              "port",
	"http://h:99999/":          "port",
	"http://h:x/":              "not a URL",
	"http://h:/":               "port",
	"http://[fe80::1%25eth0]/": "not an IPv6 address",
	"http://[zz]/":             "",
	"http://h%41/":             "",
	"http://h,x/":              "not a name",
	"http://" + longName + "/": "the limit is",
}

var longName = strings.Repeat("a", maxURLBytes)

func TestAURLThatTwoProgramsCouldReadDifferentlyIsRefused(t *testing.T) {
	t.Parallel()
	p := newParticipant(t, Options{})
	for u, message := range badURLs {
		errs := p.Check(map[string]any{"method": "DELETE", "url": u})
		if len(errs) != 1 || errs[0].Field != "url" || !strings.Contains(errs[0].Message, message) {
			t.Errorf("Check %.60q: %v, want %q", u, errs, message)
		}
		// And again when it was rendered: what is sent is what is checked.
		r := do(t, p, post(u))
		if r.Kind != saga.Rejected || r.Reason != "InvalidRequest" || r.Author != saga.AuthorOperator {
			t.Errorf("Do %.60q: %+v", u, r)
		}
	}
}

func TestURLTemplatesAreCheckedAsFarAsTheyAreKnown(t *testing.T) {
	t.Parallel()
	p := newParticipant(t, Options{})
	for _, u := range []string{"http://${input.host}/x", "http://${input.region}.payments.svc:8080/x", "http://h/x/${input.id}/y", "http://h/x?q=${input.q}", "https://h-${input.a}.example/.${input.x}", "http://h/x/${input.a}${input.b}",
		"${input.eu ? 'http://eu' : 'https://us:8443/v2'}/x/${input.id}", "http://${input.eu ? 'eu.payments' : 'us.payments'}/x"} {
		if errs := p.Check(map[string]any{"method": "POST", "url": u}); errs != nil {
			t.Errorf("%s: %v", u, errs)
		}
	}
	for u, message := range map[string]string{
		"ftp://h/${x}":                              "http://",
		"inventory/${x}":                            "http://",
		"http://h/../${x}":                          "dot segment",
		"http://h/${x}/../y":                        "dot segment",
		"http://h/${x}#y":                           "fragment",
		"http://u:${pw}@h/":                         "user name",
		"${input.url}":                              "begins with an expression",
		"${input.base}/x":                           "begins with an expression",
		"http://h:${input.x}/":                      "in its port",
		"${input.a ? 'http://a' : 'ftp://b'}/x":     "http://",
		"${input.a ? 'http://a' : 'http://u@b'}/x":  "user name",
		"${input.a ? 'http://a' : 'http://b'}/../x": "dot segment",
		"http://${input.a ? 'a' : 'b:99999'}/x":     "port",
		"http://h/a%2f${x}":                         "encoded slash",
		"http://h/${x} y":                           "percent-encoded",
	} {
		errs := p.Check(map[string]any{"method": "POST", "url": u})
		if len(errs) != 1 || !strings.Contains(errs[0].Message, message) {
			t.Errorf("%s: %v, want %q", u, errs, message)
		}
	}
}

func TestARenderedRequestThatCannotBeSentIsRejected(t *testing.T) {
	t.Parallel()
	p := newParticipant(t, Options{})
	for name, with := range map[string][]any{
		"a header with a line break": {"headers", map[string]any{"X-A": "a\r\nX-B: c"}},
		"a forbidden header":         {"headers", map[string]any{"saga-id": "other"}},
		"a header respelled":         {"headers", map[string]any{"Saga_Id": "other"}},
		"an unknown method":          {"method", "BREW"},
		"a null header":              {"headers", map[string]any{"X-A": nil}},
		"a URL that is no string":    {"url", int64(5)},
		"a GET with a body":          {"method", "GET"},
	} {
		if r := do(t, p, post("http://127.0.0.1:1/", with...)); r.Kind != saga.Rejected || r.Reason != "InvalidRequest" || r.Author != saga.AuthorOperator {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for u := range badURLs {
		f.Add(u)
	}
	f.Add("http://[::1]:80/a?b=c")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseURL(s)
		if err != nil {
			return
		}
		// What is sent is understood the same way again.
		again, err := parseURL(u.String())
		if err != nil || again.Host != u.Host || again.EscapedPath() != u.EscapedPath() || again.RawQuery != u.RawQuery {
			t.Fatalf("%q became %q: %v", s, u, err)
		}
	})
}

func TestAnInputCannotSendARequestToAnotherPath(t *testing.T) {
	t.Parallel()
	paths := make(chan string, 10)
	s := newServer(t, func(_ nethttp.ResponseWriter, r *nethttp.Request) { paths <- r.RequestURI })
	p := newParticipant(t, Options{})
	settings := map[string]any{"method": "DELETE", "url": s.URL + "/orders/${input.id}/lines?by=${input.by}"}
	tmpl, errs := expression.Compile(settings, expression.WithoutResponse)
	if errs != nil || p.Check(settings) != nil {
		t.Fatal(errs, p.Check(settings))
	}
	for id, sent := range map[string]string{
		"1042": "/orders/1042/lines?by=a%26all%3Dtrue%23", "a b?c#d": "/orders/a%20b%3Fc%23d/lines?by=a%26all%3Dtrue%23",
		"..": "", ".": "", "../../users": "", `..\users`: "", "%2e%2e": "/orders/%252e%252e/lines?by=a%26all%3Dtrue%23", "a\x00": "", "": "",
	} {
		rendered, err := tmpl.Render(t.Context(), expression.Scope{Input: map[string]any{"id": id, "by": "a&all=true#"}})
		if err != nil {
			if id != "" {
				t.Errorf("%q: %v", id, err)
			}
			continue
		}
		r := do(t, p, participant.Call{With: rendered.(map[string]any)})
		if sent == "" {
			want(t, r, saga.Rejected, "InvalidRequest", "url: ")
			continue
		}
		want(t, r, saga.Succeeded, "", "")
		if got := <-paths; got != sent {
			t.Errorf("%q was sent as %s, want %s", id, got, sent)
		}
	}
	if len(paths) > 0 {
		t.Errorf("another request came through: %s", <-paths)
	}
}
