package operations

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// fieldOwner is who manages the fields of the objects that are written here.
const fieldOwner = client.FieldOwner("saga-operator-api")

// start creates the object. If the operator's own rights are used, the annotation says for whom; the cluster's policies let only the operator do so.
func (h *handlers) start(ctx context.Context, c StartSaga) (Object, error) {
	noteCarriedOut(ctx)
	who, _ := CallerOf(ctx)
	if !h.Watches(c.Namespace) {
		return Object{}, invalid("path.namespace", "this operator does not carry out the sagas of namespace %s", c.Namespace)
	}
	doing := fmt.Sprintf("creating a saga in namespace %s", c.Namespace)
	key, err := h.signer.load(ctx)
	if err != nil {
		return Object{}, err
	}
	m, err := markOf(c)
	if err != nil {
		return Object{}, err
	}
	o, err := c.object(ctx, who.Name, m, key)
	if err != nil {
		return Object{}, err
	}
	name := o.GetName()
	as, err := h.onBehalf(ctx)
	if err != nil {
		return Object{}, err
	}
	err = h.Client.Create(as, o, fieldOwner)
	switch {
	case apierrors.IsAlreadyExists(err):
		return h.again(ctx, c, doing, name, m, key)
	case apierrors.IsNotFound(err):
		return Object{}, &NotFoundError{What: "namespace " + c.Namespace}
	case err != nil:
		return Object{}, h.writeError(doing, err)
	}
	h.Logger.InfoContext(ctx, "a saga was created through the API", "saga", c.Namespace+"/"+name, "uid", o.GetUID(), "user", who.Name, "traceparent", cqrs.TraceParent(ctx))
	return encode(o)
}

// again answers a request whose saga is there already. The saga was created by this request or by another
// one. Only the signature tells: everybody who may create sagas can write the same annotations.
func (h *handlers) again(ctx context.Context, c StartSaga, doing, name string, m mark, key []byte) (Object, error) {
	o := &document{}
	err := h.Client.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, o)
	switch {
	case apierrors.IsNotFound(err):
		return Object{}, &ConflictError{Reason: "Changed", Again: true, Message: fmt.Sprintf("a saga called %s was in namespace %s a moment ago and is gone now; send the same again", name, c.Namespace)}
	case err != nil:
		return Object{}, fromAPIServer(fmt.Sprintf("reading saga %s/%s, which is there already", c.Namespace, name), err)
	}
	made, ok := verify(key, o)
	switch {
	case !ok || made.request != m.request:
		return Object{}, cqrs.Refuse("AlreadyExists", "another saga called %s exists in namespace %s", name, c.Namespace)
	case made.content != m.content:
		return Object{}, fmt.Errorf("%s: saga %s was created with this key by a request that asked for something else: %w", doing, name, idempotency.ErrMismatch)
	}
	return encode(o)
}

// markOf returns the mark of an object that is created now.
func markOf(c StartSaga) (mark, error) {
	content, err := c.fingerprint()
	return mark{request: requestID(c), content: content, at: time.Now().Unix()}, err
}

// object is the object to be created.
func (c StartSaga) object(ctx context.Context, user string, m mark, key []byte) (*document, error) {
	o := &document{Spec: c.Spec} // numbers keep their original text
	if err := json.Unmarshal(c.Spec, &map[string]json.RawMessage{}); err != nil {
		return nil, invalid("spec", "the spec is no JSON object")
	}
	o.SetNamespace(c.Namespace)
	o.SetName(c.Name)
	if c.Name == "" {
		o.SetName(generated(c.GenerateName, m.request))
	}
	o.SetLabels(c.Labels)
	notes := map[string]string{v1.CreatedByAnnotation: user, RequestAnnotation: m.sign(key, o.GetNamespace(), o.GetName())}
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
