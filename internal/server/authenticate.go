package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/operations"
)

// Authenticator finds out who somebody is by their bearer token: it asks the cluster, and remembers what it says for a short time. It remembers hashes of tokens only.
type Authenticator struct {
	client    client.Client
	audiences []string
	known     *cache.LRUExpireCache
	trusted   *cache.LRUExpireCache
	asking    singleflight.Group
}

const (
	// maxKnown bounds how many tokens are remembered.
	maxKnown = 4096
	// acceptedFor is how long a token is good without asking again, and so how long one is that has been revoked; refusedFor is how long a bad one is bad.
	acceptedFor, refusedFor = 30 * time.Second, 5 * time.Second
	// trustedFor is how long the rate of an address does not apply to a token after the cluster has
	// accepted it.
	trustedFor = time.Hour
	// maxToken is how long a token may be.
	maxToken = 8 << 10
	// askTimeout bounds asking, which others with the same token wait for too.
	askTimeout = 10 * time.Second
)

// NewAuthenticator returns one for tokens of some audiences. Without any it takes those that the API server itself takes. clk may be nil.
func NewAuthenticator(c client.Client, audiences []string, clk clock.Clock) *Authenticator {
	if clk == nil {
		clk = clock.RealClock{}
	}
	return &Authenticator{client: c, audiences: audiences, known: cache.NewLRUExpireCacheWithClock(maxKnown, clk), trusted: cache.NewLRUExpireCacheWithClock(maxKnown, clk)}
}

// trusts reports whether the cluster accepted the token at its last check, at most trustedFor ago.
// The token may have become invalid since.
func (a *Authenticator) trusts(token string) bool {
	_, good := a.trusted.Get(sha256.Sum256([]byte(token)))
	return good
}

// errUnauthenticated says that a token is not good, and no more: why is nobody's business who has none.
var errUnauthenticated = errors.New("the bearer token is not valid")

// verdict is what is remembered of a token.
type verdict struct {
	caller operations.Caller
	good   bool
}

// bearerToken is the token of a request; empty where there is none.
func bearerToken(h http.Header) (string, error) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return "", nil
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken || strings.ContainsAny(token, " ,\t") {
		return "", errUnauthenticated
	}
	return token, nil
}

// Authenticate returns whose token it is. It fails with errUnauthenticated, or with operations.ErrUnavailable when the cluster cannot be asked.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (operations.Caller, error) {
	key := sha256.Sum256([]byte(token))
	v, ok := a.known.Get(key)
	if !ok {
		// Somebody else who waits for the same answer does not lose it when this caller gives up.
		result := a.asking.DoChan(string(key[:]), func() (any, error) { return a.ask(context.WithoutCancel(ctx), key, token) })
		select {
		case r := <-result:
			if r.Err != nil {
				return operations.Caller{}, r.Err
			}
			v = r.Val
		case <-ctx.Done():
			return operations.Caller{}, fmt.Errorf("asking whose token it is: %w", ctx.Err())
		}
	}
	if known, _ := v.(verdict); known.good {
		return known.caller, nil
	}
	return operations.Caller{}, errUnauthenticated
}

// ask asks the cluster. A panic is an error here: it happens in a goroutine of its own, where it would end the operator.
func (a *Authenticator) ask(ctx context.Context, key [sha256.Size]byte, token string) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("asking whose token it is: panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: a.audiences}}
	if err := a.client.Create(ctx, review); err != nil {
		return nil, fmt.Errorf("asking whose token it is: %w: %w", operations.ErrUnavailable, err)
	}
	v, keep := verdict{}, refusedFor
	if s := review.Status; s.Authenticated && s.User.Username != "" && a.meant(s.Audiences) {
		v.good, keep = true, acceptedFor
		v.caller = operations.Caller{Name: s.User.Username, UID: s.User.UID, Groups: s.User.Groups}
		if len(s.User.Extra) > 0 {
			v.caller.Extra = make(map[string][]string, len(s.User.Extra))
			for name, values := range s.User.Extra {
				v.caller.Extra[name] = values
			}
		}
	}
	a.known.Add(key, v, keep)
	if v.good {
		a.trusted.Add(key, struct{}{}, trustedFor)
	} else {
		a.trusted.Remove(key)
	}
	return v, nil
}

// meant reports whether a token was made for this API. An authenticator that knows no audiences names none, and its answer does not count then.
func (a *Authenticator) meant(audiences []string) bool {
	return len(a.audiences) == 0 || slices.ContainsFunc(audiences, func(s string) bool { return slices.Contains(a.audiences, s) })
}
