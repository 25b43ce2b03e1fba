package http

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	nethttp "net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/net/http2"

	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// failed classifies an attempt that brought no answer. sent is whether the request may have been written to a connection.
func failed(ctx context.Context, err error, sent bool) participant.Result {
	timeout := ctx.Err() != nil || isTimeout(err)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var denied *egress.Error
	switch {
	case refusedStream(err):
		return participant.Result{Kind: saga.Retryable, Reason: "StreamRefused", Message: short("the server did not take the request: " + err.Error())}
	case sent && timeout:
		return participant.Result{Kind: saga.Unknown, Reason: "TimedOut", Message: short("no answer came in time, and the request may have been carried out: " + err.Error())}
	case sent:
		return participant.Result{Kind: saga.Unknown, Reason: "ConnectionBroken", Message: short("the connection broke before the answer, and the request may have been carried out: " + err.Error())}
	case errors.As(err, &denied):
		return participant.Result{Kind: saga.Rejected, Author: saga.AuthorOperator, Reason: "EgressDenied", Message: short(denied.Error())}
	}
	return participant.Result{Kind: saga.Retryable, Reason: "ConnectionFailed", Message: short("no connection came about: " + err.Error())}
}

// refusedStream reports whether an HTTP/2 server says that it has not looked at the request (RFC 9113, section 8.7).
func refusedStream(err error) bool {
	var stream http2.StreamError
	return errors.As(err, &stream) && stream.Code == http2.ErrCodeRefusedStream
}

var (
	errTooLarge = errors.New("the answer is too large")
	errNoMemory = errors.New("no memory was available in time")
	buffers     = sync.Pool{New: func() any { return new(bytes.Buffer) }}
)

// smallAnswerBytes is how large an answer may be that need not wait for room.
const smallAnswerBytes = 64 << 10

// maxPooledBytes keeps a few large answers from holding memory for good.
const maxPooledBytes = 64 << 10

// outcome reads the response and returns its result. reserve is the ReserveMemory of the call, and
// may be nil.
func (p *Participant) outcome(ctx context.Context, resp *nethttp.Response, reserve func(context.Context, int64) error) participant.Result {
	if resp.StatusCode < 200 {
		// 101: what follows is another protocol, and is not read.
		return participant.Result{Kind: saga.Unknown, Reason: reason(resp.StatusCode), Message: fmt.Sprintf("an answer that is none (%d)", resp.StatusCode)}
	}
	b := buffers.Get().(*bytes.Buffer)
	defer func() {
		if b.Cap() <= maxPooledBytes {
			b.Reset()
			buffers.Put(b)
		}
	}()
	readErr := p.read(ctx, b, resp, reserve)
	var body any
	if readErr == nil {
		body = responseBody(b.Bytes(), resp.Header.Get("Content-Type"))
	}
	kind, author := judge(resp, isHTML(resp, b.Bytes()))
	result := participant.Result{
		Kind: kind, Author: author, Over: kind == saga.Unknown && resp.StatusCode >= 300 && !slices.Contains(stillAtWork, resp.StatusCode),
		Response: map[string]any{"status": int64(resp.StatusCode), "headers": headersOf(resp.Header), "body": body},
	}
	if result.Kind != saga.Succeeded {
		result.Reason = reason(resp.StatusCode)
		result.Message = message(resp, body)
		switch {
		case resp.StatusCode < 300:
			result.Reason, result.Message = "UnexpectedHTML", fmt.Sprintf(
				"the response is a web page (%d), such as a gateway's login page, and not the participant's; it is taken for one only if the step asks for it by the header Accept", resp.StatusCode)
		case author == saga.AuthorGateway:
			result.Message = shortTo(result.Message, maxMessageBytes-len(maybeGateway)) + maybeGateway
		}
		result.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), p.clock)
		return result
	}
	switch {
	case errors.Is(readErr, errTooLarge):
		return participant.Result{Kind: saga.Unknown, Over: true, Reason: "AnswerTooLarge", Message: fmt.Sprintf(
			"the request was carried out (%d), but its answer is larger than %d bytes and cannot be used", resp.StatusCode, p.limit)}
	case errors.Is(readErr, errNoMemory):
		return participant.Result{Kind: saga.Unknown, Over: true, Reason: "NoMemory", Message: short(fmt.Sprintf(
			"the request was carried out (%d), but the operator could not read its response: %v", resp.StatusCode, readErr))}
	case readErr != nil:
		if cause := context.Cause(ctx); cause != nil {
			readErr = cause
		}
		return participant.Result{Kind: saga.Unknown, Over: true, Reason: "AnswerBroken", Message: short(fmt.Sprintf(
			"the request was carried out (%d), but its answer broke off: %v", resp.StatusCode, readErr))}
	}
	return result
}

// read reads the body to its end, so that the connection can be used again, or to the limit, which also holds for what is compressed
// and for what it expands to.
//
// A body of more than smallAnswerBytes waits until p.limit bytes of memory are reserved for it:
// hundreds of large bodies at once would not fit.
func (p *Participant) read(ctx context.Context, b *bytes.Buffer, resp *nethttp.Response, reserve func(context.Context, int64) error) error {
	if resp.ContentLength > p.limit {
		return errTooLarge
	}
	if n := resp.ContentLength; n > 0 {
		b.Grow(int(min(n, smallAnswerBytes)) + bytes.MinRead)
	}
	from := &limited{resp.Body, p.limit}
	if strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		z, err := gzip.NewReader(from)
		if errors.Is(err, io.EOF) {
			return nil // an empty body
		}
		if err != nil {
			return err
		}
		from = &limited{z, p.limit}
	}
	switch _, err := io.CopyN(b, from, smallAnswerBytes); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	if reserve != nil {
		if err := reserve(ctx, p.limit); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("%w: %w", errNoMemory, err)
		}
	}
	_, err := b.ReadFrom(from)
	return err
}

// limited is a reader that fails when there is more than left bytes; io.LimitReader would pass the cut off for the end.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(b []byte) (int, error) {
	if int64(len(b)) > l.left+1 {
		b = b[:l.left+1]
	}
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// responseBody returns the body for output expressions: nil if it is empty, a json.RawMessage if it
// is JSON that expression.Decode accepts, and a string otherwise. A body that begins with { or [ is
// parsed as JSON whatever its content type: many servers send JSON under another type.
func responseBody(raw []byte, contentType string) any {
	trimmed := bytes.TrimSpace(raw)
	if len(trimmed) == 0 {
		return nil
	}
	if strings.Contains(contentType, "json") || trimmed[0] == '{' || trimmed[0] == '[' {
		if expression.Check(trimmed) == nil {
			return withoutNUL(trimmed)
		}
	}
	return text(string(raw))
}

// text makes valid UTF-8 without NUL, which no text in PostgreSQL can hold.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, replacement), "\x00", replacement)
}

// replacement takes the place of NUL and of invalid UTF-8 in text.
const replacement = string(unicode.ReplacementChar)

// lenient has readers and writers accept the JSON that expression.Check accepts.
var lenient = jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// withoutNUL returns a copy of raw in which every NUL in strings and names is replaced. raw must be
// valid JSON.
func withoutNUL(raw []byte) json.RawMessage {
	if !bytes.Contains(raw, []byte(`\u0000`)) {
		return slices.Clone(raw)
	}
	var out bytes.Buffer
	from, to := jsontext.NewDecoder(bytes.NewReader(raw), lenient), jsontext.NewEncoder(&out, lenient)
	for {
		t, err := from.ReadToken()
		if err != nil { // io.EOF: raw is valid
			return bytes.TrimSpace(out.Bytes())
		}
		if t.Kind() == '"' {
			t = jsontext.String(strings.ReplaceAll(t.String(), "\x00", replacement))
		}
		if err := to.WriteToken(t); err != nil {
			return slices.Clone(raw) // unreachable: the tokens come from valid JSON
		}
	}
}

// headersOf gives the first value of each header under its name in lower case: the first maxHeaders by name, each cut to 1 KiB.
func headersOf(h nethttp.Header) map[string]any {
	const most = 1 << 10
	out := make(map[string]any, min(len(h), maxHeaders))
	add := func(name string) {
		if v := h[name]; len(v) > 0 && name != "Set-Cookie" {
			out[strings.ToLower(name)] = text(v[0][:min(len(v[0]), most)])
		}
	}
	if len(h) <= maxHeaders {
		for name := range h {
			add(name)
		}
		return out
	}
	for _, name := range slices.Sorted(maps.Keys(h))[:maxHeaders] {
		add(name)
	}
	return out
}

// HeaderOutcome is the header by which a participant vouches for its no: with the value Rejected, nothing has happened under the key and
// nothing will, whatever became of earlier attempts.
const HeaderOutcome = "Saga-Outcome"

// maybeGateway follows a message whose author may be a gateway.
const maybeGateway = "; gateways answer so, too, and nothing vouches for it"

// gatewayStatuses are the codes of 4xx that meshes, ingresses, firewalls and auth proxies give. 409 is among them for another reason: to
// a repetition it means that the first request with the key is still at work (draft-ietf-httpapi-idempotency-key-header).
var gatewayStatuses = []int{
	nethttp.StatusUnauthorized, nethttp.StatusForbidden, nethttp.StatusNotFound, nethttp.StatusMethodNotAllowed, nethttp.StatusProxyAuthRequired,
	nethttp.StatusConflict, nethttp.StatusRequestEntityTooLarge, nethttp.StatusRequestURITooLong, nethttp.StatusMisdirectedRequest,
	nethttp.StatusRequestHeaderFieldsTooLarge, nethttp.StatusUnavailableForLegalReasons,
}

// stillAtWork are the codes of responses that something before the participant gives, which may still be at work then.
var stillAtWork = []int{nethttp.StatusRequestTimeout, nethttp.StatusTooEarly, nethttp.StatusBadGateway, nethttp.StatusServiceUnavailable, nethttp.StatusGatewayTimeout}

// neverVouched are the codes of 4xx that say of themselves that it may be otherwise the next time.
var neverVouched = []int{nethttp.StatusRequestTimeout, nethttp.StatusTooEarly, nethttp.StatusTooManyRequests}

// judge says what a response means, and of a no whose word it is.
func judge(resp *nethttp.Response, html bool) (saga.OutcomeKind, saga.Author) {
	status := resp.StatusCode
	vouched := strings.EqualFold(strings.TrimSpace(resp.Header.Get(HeaderOutcome)), string(saga.Rejected))
	switch {
	case vouched && (status < 300 || status >= 400 && status < 500) && !slices.Contains(neverVouched, status):
		return saga.Rejected, saga.AuthorParticipant
	case status < 300 && html && !asksForHTML(resp.Request):
		return saga.Unknown, saga.AuthorUnknown
	case status < 300:
		return saga.Succeeded, saga.AuthorUnknown
	case status == nethttp.StatusTooManyRequests:
		return saga.Retryable, saga.AuthorUnknown
	case status == nethttp.StatusRequestTimeout, status == nethttp.StatusTooEarly, status >= 500:
		return saga.Unknown, saga.AuthorUnknown // 503, too: a mesh gives it after it has forwarded the request
	case status == nethttp.StatusSeeOther && resp.Request.Method != nethttp.MethodGet:
		return saga.Unknown, saga.AuthorUnknown // what has been done, very often
	case status < 400, html, slices.Contains(gatewayStatuses, status):
		return saga.Rejected, saga.AuthorGateway
	default:
		return saga.Rejected, saga.AuthorUnknown
	}
}

// isHTML reports whether a response is a web page, by its type or, where it has none, by how it begins.
func isHTML(resp *nethttp.Response, body []byte) bool {
	if typ := resp.Header.Get("Content-Type"); typ != "" {
		media, _, _ := strings.Cut(strings.ToLower(typ), ";")
		media = strings.TrimSpace(media)
		return media == "text/html" || media == "application/xhtml+xml"
	}
	begin := strings.ToLower(string(bytes.TrimSpace(body[:min(len(body), 64)])))
	return strings.HasPrefix(begin, "<!doctype html") || strings.HasPrefix(begin, "<html")
}

// asksForHTML reports whether the step itself wants a web page.
func asksForHTML(req *nethttp.Request) bool {
	accept := strings.ToLower(strings.Join(req.Header.Values("Accept"), ","))
	return strings.Contains(accept, "html")
}

// reason makes one word of a status: PaymentRequired, or Status599 for one without a name.
func reason(status int) string {
	name := strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) {
			return r
		}
		return -1
	}, nethttp.StatusText(status))
	if name == "" {
		return "Status" + strconv.Itoa(status)
	}
	return name
}

// message says what a participant said, and the code: card declined (402).
func message(resp *nethttp.Response, body any) string {
	said := nethttp.StatusText(resp.StatusCode)
	if s := explanation(body); s != "" {
		said = s
	} else if location := resp.Header.Get("Location"); resp.StatusCode < 400 && location != "" {
		said = "redirects are not followed"
		if u, err := url.Parse(location); err == nil && u.Host != "" {
			said = "a redirect to host " + u.Host + " is not followed"
		}
	} else if s, ok := body.(string); ok && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		if line, _, _ := strings.Cut(strings.TrimSpace(s), "\n"); len(line) <= maxMessageBytes/2 && line != "" {
			said = line
		}
	}
	code := " (" + strconv.Itoa(resp.StatusCode) + ")"
	return strings.TrimSpace(shortTo(said, maxMessageBytes-len(code)) + code)
}

// explanation finds the sentence in a JSON answer: RFC 9457's detail and title, and what is common besides.
// Unlike encoding/json, it matches names exactly.
func explanation(body any) string {
	raw, ok := body.(json.RawMessage)
	if !ok {
		return ""
	}
	var fields struct {
		Detail  jsontext.Value `json:"detail"`
		Message jsontext.Value `json:"message"`
		Error   jsontext.Value `json:"error"`
		Title   jsontext.Value `json:"title"`
	}
	if jsonv2.Unmarshal(raw, &fields, lenient) != nil {
		return ""
	}
	for _, field := range []jsontext.Value{fields.Detail, fields.Message, fields.Error, fields.Title} {
		var said string
		if jsonv2.Unmarshal(field, &said, lenient) != nil {
			var inner struct {
				Message jsontext.Value `json:"message"`
			}
			_ = jsonv2.Unmarshal(field, &inner, lenient) // a field of another type has no explanation
			_ = jsonv2.Unmarshal(inner.Message, &said, lenient)
		}
		if said = strings.TrimSpace(said); said != "" {
			return said
		}
	}
	return ""
}

// retryAfter reads the header's two forms, seconds and a date. What is neither is no wish.
func retryAfter(value string, clock func() time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return MaxRetryAfter // more than fits
		}
		return min(time.Duration(seconds)*time.Second, MaxRetryAfter)
	}
	at, err := nethttp.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(clock()), 0), MaxRetryAfter)
}

func short(s string) string { return shortTo(s, maxMessageBytes) }

// shortTo makes one printable line of at most n bytes.
func shortTo(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s[:min(len(s), 4*n)], ""))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= n {
		return s
	}
	cut := n - len("…")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
