package http

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	nethttp "net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/httpheader"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

var methods = []string{nethttp.MethodGet, nethttp.MethodPost, nethttp.MethodPut, nethttp.MethodPatch, nethttp.MethodDelete}

var errScheme = errors.New("must begin with http:// or https://")

// request builds the HTTP request from rendered settings. What is checked here is what is sent.
func (p *Participant) request(call participant.Call) (*nethttp.Request, error) {
	method, ok := call.With["method"].(string)
	if !ok || !slices.Contains(methods, method) {
		return nil, fmt.Errorf("method: must be one of %s", strings.Join(methods, ", "))
	}
	raw, ok := call.With["url"].(string)
	if !ok {
		return nil, errors.New("url: must be a string")
	}
	u, err := parseURL(raw)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	req := &nethttp.Request{
		Method: method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(nethttp.Header, 12),
	}
	req.Header["Accept"], req.Header["User-Agent"] = []string{"application/json"}, []string{p.userAgent}
	if body, ok := call.With["body"]; ok && body != nil {
		if method == nethttp.MethodGet {
			return nil, errors.New("body: GET has no body")
		}
		if err := setBody(req, body); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
	}
	if err := setHeaders(req, call.With["headers"]); err != nil {
		return nil, err
	}
	own := [...]string{call.Key, call.Saga.UID, call.Attempt.Step, call.TraceParent}
	req.Header["Idempotency-Key"], req.Header["Saga-Id"], req.Header["Saga-Step"] = own[0:1:1], own[1:2:2], own[2:3:3]
	if call.TraceParent != "" {
		req.Header["Traceparent"] = own[3:4:4]
	}
	return req, nil
}

func setBody(req *nethttp.Request, body any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(body); err != nil {
		return err
	}
	raw := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	req.Header["Content-Type"] = []string{"application/json"}
	req.ContentLength = int64(len(raw))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	req.Body, _ = req.GetBody()
	return nil
}

func setHeaders(req *nethttp.Request, value any) error {
	headers, ok := value.(map[string]any)
	if value == nil {
		return nil
	}
	if !ok {
		return errors.New("headers: must be an object")
	}
	for name, v := range headers {
		text, err := headerText(v)
		if err == nil {
			err = checkHeader(name, text)
		}
		if err != nil {
			return fmt.Errorf("headers.%s: %w", name, err)
		}
		req.Header[nethttp.CanonicalHeaderKey(name)] = []string{text}
	}
	return nil
}

// headerText renders a header's value: an expression alone keeps its type, and a number is what many headers hold.
func headerText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case bool:
		return strconv.FormatBool(v), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	}
	return "", errors.New("must be a string, a number or a boolean")
}

func checkMethod(with map[string]any) error {
	method, ok := with["method"].(string)
	switch {
	case with["method"] == nil:
		return fmt.Errorf("is required: one of %s", strings.Join(methods, ", "))
	case !ok || !slices.Contains(methods, method):
		return fmt.Errorf("must be one of %s, and cannot be an expression", strings.Join(methods, ", "))
	}
	return nil
}

func checkHeaders(value any) []saga.FieldError {
	if value == nil {
		return nil
	}
	headers, ok := value.(map[string]any)
	if !ok {
		return []saga.FieldError{{Field: "headers", Message: "must be an object of names and values"}}
	}
	var errs []saga.FieldError
	if len(headers) > maxHeaders {
		errs = append(errs, saga.FieldError{Field: "headers", Message: fmt.Sprintf("are more than %d", maxHeaders)})
	}
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		text, err := headerText(headers[name])
		if err == nil {
			// A value with an expression in it is known only when it is rendered.
			if literals := expression.Literals(text); len(literals) == 1 {
				text = literals[0]
			} else {
				text = ""
			}
			err = checkHeader(name, text)
		}
		folded := httpheader.Fold(name)
		if other, twice := seen[folded]; twice && err == nil {
			err = fmt.Errorf("is the same header as %s to many servers", other)
		}
		seen[folded] = name
		if err != nil {
			errs = append(errs, saga.FieldError{Field: "headers." + name, Message: err.Error()})
		}
	}
	return errs
}

func checkHeader(name, value string) error {
	if err := httpheader.Check(name); err != nil {
		return err
	}
	if len(value) > maxHeaderBytes {
		return fmt.Errorf("is %d bytes long; the limit is %d", len(value), maxHeaderBytes)
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return errors.New("holds a control character")
		}
	}
	if nethttp.CanonicalHeaderKey(name) == "Content-Type" && value != "" {
		media, _, err := mime.ParseMediaType(value)
		if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") {
			return errors.New("must be application/json or a type that ends in +json: the body is always JSON")
		}
	}
	return nil
}

// parseURL parses a URL and refuses what two programs could understand in two ways.
func parseURL(raw string) (*url.URL, error) {
	if len(raw) > maxURLBytes {
		return nil, fmt.Errorf("is %d bytes long; the limit is %d", len(raw), maxURLBytes)
	}
	for i := range len(raw) {
		switch c := raw[i]; {
		case c <= ' ' || c >= 0x7f || c == '\\':
			return nil, fmt.Errorf("holds the character %q, which must be percent-encoded", raw[i])
		case c == '#':
			return nil, errors.New("has a fragment (#…), which is never sent; a # in a value is written %23")
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		// The error repeats the whole URL; its cause is enough.
		if cause := errors.Unwrap(err); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("is not a URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "" {
		return nil, errScheme
	}
	if u.User != nil {
		return nil, errors.New("holds a user name or a password; use a header")
	}
	if err := checkHost(u); err != nil {
		return nil, err
	}
	return u, checkPath(u.EscapedPath())
}

func checkHost(u *url.URL) error {
	host := u.Hostname()
	if host == "" {
		return errors.New("has no host")
	}
	if strings.HasPrefix(u.Host, "[") {
		if a, err := netip.ParseAddr(host); err != nil || a.Zone() != "" {
			return fmt.Errorf("has the host %q, which is not an IPv6 address", host)
		}
	} else {
		for i := range len(host) {
			if c := host[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
				return fmt.Errorf("has the host %q, which is not a name", host)
			}
		}
	}
	_, port, hasPort := strings.Cut(u.Host[strings.LastIndexByte(u.Host, ']')+1:], ":")
	if n, err := strconv.ParseUint(port, 10, 16); hasPort && (err != nil || n == 0) {
		return fmt.Errorf("has the port %q, which is not a number from 1 to 65535", port)
	}
	return nil
}

func checkPath(escaped string) error {
	for segment := range strings.SplitSeq(escaped, "/") {
		plain, err := url.PathUnescape(segment)
		if err != nil {
			return fmt.Errorf("is not a URL: %w", err)
		}
		// Some servers cut parameters off at a semicolon before they look at the dots.
		name, _, _ := strings.Cut(plain, ";")
		switch {
		case name == "." || name == "..":
			return errors.New("has a dot segment in its path, which could lead to another path")
		case strings.ContainsAny(plain, `/\`):
			return errors.New("has an encoded slash in its path, which servers understand differently; put the value into the query or the body")
		}
		for i := range len(plain) {
			if plain[i] < ' ' || plain[i] == 0x7f {
				return errors.New("has an encoded control character in its path")
			}
		}
	}
	return nil
}
