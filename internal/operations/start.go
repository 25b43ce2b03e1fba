package operations

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// RequestAnnotation holds, as two hashes, which request a saga was created by: whose key it had, and what it asked for. A request that is repeated after a crash in the middle, or when its key
// is kept no more, knows its saga again by it, and one that has the key of another is told from it.
const RequestAnnotation = group + "/api-request"

// fieldOwner is who manages the fields of the objects that are written here.
const fieldOwner = client.FieldOwner("saga-operator-api")

// start creates the object. The operator's own rights are used, and the annotation says for whom; the cluster's policies let nobody else do so.
func (h *handlers) start(ctx context.Context, c StartSaga) (Object, error) {
	noteCarriedOut(ctx)
	who, _ := CallerOf(ctx)
	if !h.Watches(c.Namespace) {
		return Object{}, invalid("path.namespace", "this operator does not carry out the sagas of namespace %s", c.Namespace)
	}
	doing := fmt.Sprintf("creating a saga in namespace %s", c.Namespace)
	request := requestID(c)
	o, err := c.object(ctx, who.Name, request)
	if err != nil {
		return Object{}, err
	}
	name := o.GetName()
	err = h.Client.Create(ctx, o, fieldOwner)
	switch {
	case apierrors.IsAlreadyExists(err):
		return h.again(ctx, c, doing, name, who.Name, request)
	case apierrors.IsNotFound(err):
		return Object{}, &NotFoundError{What: "namespace " + c.Namespace}
	case err != nil:
		return Object{}, fromAPIServer(doing, err)
	}
	h.Logger.InfoContext(ctx, "a saga was created through the API", "saga", c.Namespace+"/"+name, "uid", o.GetUID(), "user", who.Name, "traceparent", cqrs.TraceParent(ctx))
	return encode(o)
}

// again answers a request whose saga is there already: by this very request, or by another.
func (h *handlers) again(ctx context.Context, c StartSaga, doing, name, user, request string) (Object, error) {
	o := &document{}
	err := h.Client.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, o)
	switch {
	case apierrors.IsNotFound(err):
		return Object{}, &ConflictError{Reason: "Changed", Again: true, Message: fmt.Sprintf("a saga called %s was in namespace %s a moment ago and is gone now; send the same again", name, c.Namespace)}
	case err != nil:
		return Object{}, fromAPIServer(fmt.Sprintf("reading saga %s/%s, which is there already", c.Namespace, name), err)
	}
	notes := o.GetAnnotations()
	by, content, _ := strings.Cut(notes[RequestAnnotation], "/")
	switch {
	case by != request || notes[v1.CreatedByAnnotation] != user:
		return Object{}, cqrs.Refuse("AlreadyExists", "another saga called %s exists in namespace %s", name, c.Namespace)
	case content != c.fingerprint():
		return Object{}, fmt.Errorf("%s: saga %s was created with this key by a request that asked for something else: %w", doing, name, idempotency.ErrMismatch)
	}
	return encode(o)
}

// requestID is what names a request within the cluster.
func requestID(c StartSaga) string {
	r, key := c.IdempotencyKey()
	sum := sha256.Sum256([]byte(r + "\x00" + key))
	return hex.EncodeToString(sum[:])
}

// fingerprint is what a request asks for, as a hash: two that differ in it are not the same, whatever their key.
func (c StartSaga) fingerprint() string {
	h := sha256.New()
	e := json.NewEncoder(h) // it makes one form of what differs in spaces only, and ends each part
	for _, part := range []any{c.Name, c.GenerateName, c.Labels, c.Annotations, c.Spec} {
		_ = e.Encode(part) // the spec has been read; and a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil))
}

// object is the object to be created.
func (c StartSaga) object(ctx context.Context, user, request string) (*document, error) {
	o := &document{Spec: c.Spec} // numbers keep their original text
	if err := json.Unmarshal(c.Spec, &map[string]json.RawMessage{}); err != nil {
		return nil, invalid("spec", "the spec is no JSON object")
	}
	o.SetNamespace(c.Namespace)
	o.SetName(c.Name)
	if c.Name == "" {
		o.SetName(generated(c.GenerateName, request))
	}
	o.SetLabels(c.Labels)
	notes := map[string]string{v1.CreatedByAnnotation: user, RequestAnnotation: request + "/" + c.fingerprint()}
	if trace := cqrs.TraceParent(ctx); trace != "" {
		notes[v1.TraceParentAnnotation] = trace
	}
	maps.Copy(notes, c.Annotations)
	o.SetAnnotations(notes)
	return o, nil
}

// generated is a name that the same request gets again.
func generated(prefix, request string) string {
	const digits, maxName = 10, 253
	sum := sha256.Sum256([]byte(request))
	suffix := strings.ToLower(base32.HexEncoding.EncodeToString(sum[:]))[:digits]
	return prefix[:min(len(prefix), maxName-digits)] + suffix
}
