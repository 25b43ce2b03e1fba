package effect

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
)

const (
	maxBody = 64 << 10
	maxKey  = 255
)

// Request is a request for an effect.
type Request struct {
	// Key is the idempotency key.
	Key         string
	body        []byte
	path        func(string) string
	fingerprint [sha256.Size]byte
}

func read(w http.ResponseWriter, r *http.Request) (*Request, error) {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return nil, Refuse(http.StatusBadRequest, "the header Idempotency-Key is missing")
	}
	if len(key) > maxKey {
		return nil, Refuse(http.StatusBadRequest, "the Idempotency-Key is longer than %d bytes", maxKey)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		return nil, Refuse(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", maxBody)
	}
	if err != nil {
		return nil, Refuse(http.StatusBadRequest, "the body cannot be read: %v", err)
	}
	return &Request{Key: key, body: body, path: r.PathValue, fingerprint: fingerprint(r.Method, r.URL.EscapedPath(), body)}, nil
}

// Decode reads the body, one JSON object without fields that into does not know.
func (r *Request) Decode(into any) error { return decode(r.body, into) }

// Order is the order that the wildcard {order} in the pattern stands for.
func (r *Request) Order() (string, error) {
	order := r.path("order")
	return order, CheckOrder(order)
}

var orderID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckOrder says what is wrong with the id of an order.
func CheckOrder(id string) error {
	if !orderID.MatchString(id) {
		return errors.New("order: 1 to 64 letters, digits and . _ - are needed, a letter or digit first")
	}
	return nil
}

// DecodeBody is Decode for requests that are not for an effect.
func DecodeBody(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return fmt.Errorf("the body cannot be read: %w", err)
	}
	return decode(body, into)
}

func decode(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("the body is not the JSON that is needed: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON in the body")
	}
	return nil
}

// Write answers a request that is not for an effect.
func Write(w http.ResponseWriter, status int, body any) { write(w, status, body) }

// WriteMessage answers a request that is not for an effect with a message.
func WriteMessage(w http.ResponseWriter, status int, text string) { writeMessage(w, status, text) }
