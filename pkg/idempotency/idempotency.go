// Package idempotency has a request act once, however often it is sent. A client names the effect that it wants with a key; whoever has carried the effect out keeps the answer with
// the key for 24 hours, and gives it again, byte for byte, to whoever sends the same request with the same key.
//
// There are two forms:
//
//   - [Once] puts the key into the handler's own transaction: effect, key and answer are committed together, and there is no moment at which one of them is there without the others.
//     Use it wherever the effect is a change of a PostgreSQL database.
//   - [Middleware] stands before any net/http handler and keeps the keys in a [Store] of their own. A handler that is killed in the middle leaves its key claimed until the lease is
//     over; then a retry takes over, and the first one's late completion is refused by its fencing number. Use it where the effect is elsewhere, and is itself safe to repeat.
//
// The package needs nothing but pgx, and [Schema] for its table.
package idempotency

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits.
const (
	// MaxKey is how long a key may be, in bytes.
	MaxKey = 255
	// MaxRealm is how long a realm may be, in bytes.
	MaxRealm = 1024
	// MaxResponse is how large the body of an answer may be that a store keeps, in bytes.
	MaxResponse = 8 << 20
)

// Defaults.
const (
	// DefaultTTL is how long an answer is kept: from when it was stored, exactly.
	DefaultTTL = 24 * time.Hour
	// DefaultLease is how long a key is claimed before somebody else may take it over.
	DefaultLease = time.Minute
)

// Errors; test with errors.Is.
var (
	// ErrInProgress says that the first request with this key is being carried out. See *InProgressError.
	ErrInProgress = errors.New("a request with this key is being carried out")
	// ErrMismatch says that the key was used for another request. Whoever sends it has made a mistake: a key names one effect.
	ErrMismatch = errors.New("this key was used for another request")
	// ErrFenced says that a claim is void: its lease was over, and somebody else has taken the key over. What was done under it must not be answered for.
	ErrFenced = errors.New("the claim of this key is lost: its lease was over and another request has taken the key over")
	// ErrQuota says that the stored responses of a realm have reached [Options.RealmBytes]. The key
	// was not claimed. A later attempt succeeds once enough keys have expired and been removed.
	ErrQuota = errors.New("the stored responses of this realm have reached their quota; retry after some have expired")
	// ErrInvalidKey says that a key or a realm is empty, too long, or no text.
	ErrInvalidKey = errors.New("invalid key")
)

// InProgressError is an ErrInProgress that says how long it may take.
type InProgressError struct {
	// RetryAfter is until when the first request holds the key at most.
	RetryAfter time.Duration
}

func (e *InProgressError) Error() string {
	return fmt.Sprintf("%v; it holds the key for %s at most", ErrInProgress, e.RetryAfter.Round(time.Millisecond))
}

// Unwrap makes it an ErrInProgress.
func (e *InProgressError) Unwrap() error { return ErrInProgress }

// Key names one effect that somebody wants.
type Key struct {
	// Realm keeps those apart who do not know of each other: the same Key in two realms is two keys. A tenant, a user, or a service and an operation; it may be empty. Up to MaxRealm bytes.
	Realm string
	// Key is the client's. Up to MaxKey bytes.
	Key string
}

// String implements fmt.Stringer.
func (k Key) String() string {
	if k.Realm == "" {
		return fmt.Sprintf("%.64q", k.Key)
	}
	return fmt.Sprintf("%.64q of %.64q", k.Key, k.Realm)
}

// Check says what is wrong with a key: an error that wraps ErrInvalidKey.
func (k Key) Check() error {
	text := func(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
	switch {
	case k.Key == "":
		return fmt.Errorf("%w: it is empty", ErrInvalidKey)
	case len(k.Key) > MaxKey:
		return fmt.Errorf("%w: it has %d bytes, and %d are allowed", ErrInvalidKey, len(k.Key), MaxKey)
	case len(k.Realm) > MaxRealm:
		return fmt.Errorf("%w: its realm has %d bytes, and %d are allowed", ErrInvalidKey, len(k.Realm), MaxRealm)
	case !text(k.Key) || !text(k.Realm):
		return fmt.Errorf("%w: it is not UTF-8 without zero bytes", ErrInvalidKey)
	}
	return nil
}

// Fingerprint tells two requests apart that come with the same key.
type Fingerprint [sha256.Size]byte

// FingerprintOf is that of an HTTP request. path is the path as it was sent, with the query.
func FingerprintOf(method, path string, body []byte) Fingerprint {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %d %s\n", len(method), method, len(path), path) // lengths, so that nothing can pass for something else
	h.Write(body)
	return Fingerprint(h.Sum(nil))
}

// Response is an answer as it is kept.
type Response struct {
	// Status is an HTTP status, or whatever else tells answers apart; not zero.
	Status int
	// Header are those headers that belong to the answer. They may be nil.
	Header http.Header
	// Body is given again byte for byte. Up to MaxResponse bytes.
	Body []byte
}

// Claim is the right to carry a request out.
type Claim struct {
	Key Key
	// Fence is the fencing number: whoever claims the key later has a greater one, whatever has become of the key in between. Hand it to what the effect changes, where that can refuse
	// smaller ones.
	Fence int64
	// LeaseUntil is when somebody else may take the key over.
	LeaseUntil time.Time
	// First says that no request with the key has been begun before, as far as the store remembers, but for those whose key was given
	// back by Release: nothing has happened under the key yet.
	First bool
}

// Begun is what a request turned out to be: the first of its key, with a Claim, or a repetition, with the Response to the first.
type Begun struct {
	Claim    *Claim
	Response *Response
}

// Store keeps keys and answers. All methods are safe for concurrent use.
type Store interface {
	// Begin claims a key for its first request, or takes it over from a request whose lease is
	// over. If the key has a stored response, Begin returns that response. It fails with an
	// [*InProgressError], [ErrMismatch], [ErrQuota] or [ErrInvalidKey]. An expired key counts as
	// unknown.
	Begin(ctx context.Context, key Key, of Fingerprint) (Begun, error)
	// Complete keeps the answer of a request that was carried out. It fails with ErrFenced when somebody else has taken the key over, and changes nothing then.
	Complete(ctx context.Context, c Claim, r Response) error
	// Fail keeps a definite no, which is given again as an answer is: the effect has not happened, and does not under this key. It fails as Complete does.
	Fail(ctx context.Context, c Claim, r Response) error
	// Release gives a key back whose request had no effect: the next one is the first. It fails as Complete does.
	Release(ctx context.Context, c Claim) error
	// Abandon ends the lease of a request that may have had an effect: the next one takes the key over, and is not the first. It fails
	// as Complete does.
	Abandon(ctx context.Context, c Claim) error
	// Sweep removes up to limit keys that have expired and returns how many. Nothing depends on it but the room they take.
	Sweep(ctx context.Context, limit int) (int, error)
}

// Options are those of a store. The zero value is usable.
type Options struct {
	// TTL is how long an answer is kept; DefaultTTL where it is zero.
	TTL time.Duration
	// Lease is how long a claim holds; DefaultLease where it is zero.
	Lease time.Duration
	// RealmBytes is the quota of one realm in bytes: the bodies of its stored responses plus 256
	// for each key, including expired keys until [Store.Sweep] removes them. A store that has
	// reached it refuses new keys with [ErrQuota]. 0 means no quota. The [Postgres] store counts
	// once a minute and adds its own responses in between, so several processes can exceed the
	// quota by the responses that they store within one minute.
	RealmBytes int64
	// Clock is what time it is; nil is the database's own clock, or time.Now in memory.
	Clock func() time.Time
}

func (o Options) withDefaults() Options {
	if o.TTL <= 0 {
		o.TTL = DefaultTTL
	}
	if o.Lease <= 0 {
		o.Lease = DefaultLease
	}
	return o
}

// checkResponse says what is wrong with an answer that is to be kept.
func checkResponse(r Response) error {
	if r.Status == 0 {
		return errors.New("an answer without a status cannot be kept")
	}
	if len(r.Body) > MaxResponse {
		return fmt.Errorf("an answer of %d bytes cannot be kept; the limit is %d", len(r.Body), MaxResponse)
	}
	return nil
}
