package operations

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// Caller is who sends a command or a query, as the cluster knows them.
type Caller struct {
	Name, UID string
	Groups    []string
	Extra     map[string][]string
}

type callerKey struct{}

// WithCaller puts the caller into a context. Only whoever has authenticated them may.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf is the caller of a context, and whether there is one.
func CallerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok && c.Name != ""
}

// Permission is what somebody needs of the cluster: a verb on sagas, or on a subresource of theirs.
type Permission struct {
	Verb, Subresource string
	Namespace         string
	// Name is empty for what concerns no saga that is there: creating and listing.
	Name string
	// Path is the path of a URL that is no resource, such as /metrics. Only Verb goes with it.
	Path string
}

// String says it as the cluster does.
func (p Permission) String() string {
	if p.Path != "" {
		return fmt.Sprintf("%s the path %s", p.Verb, p.Path)
	}
	resource := "sagas"
	if p.Subresource != "" {
		resource += "/" + p.Subresource
	}
	return fmt.Sprintf("%s on %s.%s in namespace %s", p.Verb, resource, group, p.Namespace)
}

// group is the API group of sagas.
const group = "saga.vextrus.io"

// guarded is a command or query that says what its sender has to be allowed to do. One that does not is never carried out.
type guarded interface{ Needs() Permission }

// bearer is a command whose own content is the credential.
type bearer interface{ byToken() }

// realm keeps the idempotency keys of users and namespaces apart. A namespace holds no slash.
func realm(namespace, user string) string {
	r := namespace + "/" + user
	if len(r) <= idempotency.MaxRealm {
		return r
	}
	sum := sha256.Sum256([]byte(user))
	return namespace + "/sha256:" + hex.EncodeToString(sum[:])
}

type carriedOutKey struct{}

// NotingReplay returns a context, and by done whether a command that was sent with it has been carried out. False after a success means that the answer is a repetition.
func NotingReplay(ctx context.Context) (with context.Context, done func() bool) {
	carried := new(bool)
	return context.WithValue(ctx, carriedOutKey{}, carried), func() bool { return *carried }
}

func noteCarriedOut(ctx context.Context) {
	if carried, ok := ctx.Value(carriedOutKey{}).(*bool); ok {
		*carried = true
	}
}
