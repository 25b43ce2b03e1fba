package operations

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// RequestAnnotation says which request a saga was created by. Its parts are the request and its content,
// as hashes, the time in seconds, and a signature. A request that is repeated after a crash, or when its
// key is no longer kept, finds its saga by it. The signature keeps others from writing it.
const RequestAnnotation = group + "/api-request"

// signatureTolerance is the longest time between a signature and the creation of the object, including the
// difference between two clocks. A signature that is copied to a later object is not valid.
const signatureTolerance = time.Minute

// signer signs objects with the key in the database.
type signer struct {
	pool *pgxpool.Pool

	mu  sync.Mutex
	key []byte
}

// load reads the key once.
func (s *signer) load(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key == nil {
		var key []byte
		if err := s.pool.QueryRow(ctx, `SELECT key FROM api_request_key`).Scan(&key); err != nil {
			return nil, fromDatabase("reading the key that signs requests", err)
		}
		s.key = key
	}
	return s.key, nil
}

// mark is the content of a RequestAnnotation.
type mark struct {
	request, content string
	at               int64
}

// sign returns the annotation of an object.
func (m mark) sign(key []byte, namespace, name string) string {
	return strings.Join([]string{m.request, m.content, strconv.FormatInt(m.at, 10), m.signature(key, namespace, name)}, "/")
}

func (m mark) signature(key []byte, namespace, name string) string {
	h := hmac.New(sha256.New, key)
	for _, part := range []string{namespace, name, m.request, m.content, strconv.FormatInt(m.at, 10)} {
		_, _ = h.Write([]byte(part + "\x00")) // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil))
}

// verify reads the annotation of an object. It reports false if the operator did not write it for this
// object.
func verify(key []byte, o *document) (m mark, ok bool) {
	parts := strings.Split(o.GetAnnotations()[RequestAnnotation], "/")
	if len(parts) != 4 {
		return m, false
	}
	at, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil {
		return m, false
	}
	m = mark{request: parts[0], content: parts[1], at: at}
	if !hmac.Equal([]byte(parts[3]), []byte(m.signature(key, o.GetNamespace(), o.GetName()))) {
		return m, false
	}
	return m, o.GetCreationTimestamp().Sub(time.Unix(at, 0)).Abs() <= signatureTolerance
}

// requestID is what names a request within the cluster.
func requestID(c StartSaga) string {
	r, key := c.IdempotencyKey()
	sum := sha256.Sum256([]byte(r + "\x00" + key))
	return hex.EncodeToString(sum[:])
}

// fingerprint returns a hash of what a request asks for. Two requests with different fingerprints are not
// the same, whatever their keys.
func (c StartSaga) fingerprint() (string, error) {
	h := sha256.New()
	e := json.NewEncoder(h) // it ignores whitespace, and ends each part
	for _, part := range []any{c.Name, c.GenerateName, c.Labels, c.Annotations, c.Spec} {
		if err := e.Encode(part); err != nil {
			return "", fmt.Errorf("encoding a request: %w", err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
