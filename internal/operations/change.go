package operations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/saga"
)

func (h *handlers) suspend(ctx context.Context, c SuspendSaga) (Object, error) {
	return h.change(ctx, c.Ref, "suspend", true)
}

func (h *handlers) resume(ctx context.Context, c ResumeSaga) (Object, error) {
	return h.change(ctx, c.Ref, "suspend", false)
}

func (h *handlers) cancel(ctx context.Context, c CancelSaga) (Object, error) {
	return h.change(ctx, c.Ref, "cancel", true)
}

// change sets one field of a saga's spec, as whoever may edit it does with kubectl. What it comes to is decided from the events: a saga may be finishing at this moment.
func (h *handlers) change(ctx context.Context, ref Ref, field string, value bool) (Object, error) {
	o, err := h.object(ctx, ref)
	if err != nil {
		return Object{}, err
	}
	flags, err := o.specFlags()
	if err != nil {
		return Object{}, err
	}
	phase, err := o.phase()
	if err != nil {
		return Object{}, err
	}
	is := flags.Suspend
	if field == "cancel" {
		is = flags.Cancel
	}
	cancelled := field == "cancel" && is && phase == v1.PhaseCompensated // the wish has come true
	switch finished := saga.Phase(phase).Terminal(); {
	case finished && !cancelled:
		return Object{}, &ConflictError{Reason: "Finished", Message: fmt.Sprintf("saga %s has finished: it is %s, and that does not change any more", ref, phase)}
	case is == value:
		return encode(o)
	}
	who, _ := CallerOf(ctx)
	patch, err := patchOf(o, who, field, value)
	if err != nil {
		return Object{}, err
	}
	as, err := h.onBehalf(ctx)
	if err != nil {
		return Object{}, err
	}
	err = h.Client.Patch(as, o, client.RawPatch(types.MergePatchType, patch), fieldOwner)
	switch {
	case apierrors.IsNotFound(err):
		return Object{}, noSaga(ref)
	case apierrors.IsConflict(err), ofAnother(err):
		return Object{}, &ConflictError{Reason: "Changed", Message: fmt.Sprintf("saga %s was replaced by another one in the meantime; look at it and ask again", ref)}
	case err != nil:
		return Object{}, h.writeError(fmt.Sprintf("setting spec.%s of saga %s", field, ref), err)
	}
	h.Logger.InfoContext(ctx, "a saga was changed through the API", "saga", ref.String(), "uid", o.GetUID(), "field", field, "value", value, "user", who.Name)
	return encode(o)
}

// patchOf returns the merge patch that sets a field of a saga's spec for a caller. With the uid in it
// the API server refuses the patch if another saga of the same name has been created in the meantime.
func patchOf(o *document, who Caller, field string, value bool) ([]byte, error) {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": o.GetUID(), "annotations": map[string]string{v1.ChangedByAnnotation: who.Name}},
		"spec":     map[string]any{field: value},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a change: %w", err)
	}
	return patch, nil
}

// ofAnother reports whether the API server refuses a change because the object that has the name is another: it takes the uid for a field that was to be changed, and cannot be.
func ofAnother(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == "metadata.uid" })
}

// object reads a saga.
func (h *handlers) object(ctx context.Context, ref Ref) (*document, error) {
	o := &document{}
	err := h.Client.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, o)
	if apierrors.IsNotFound(err) {
		return nil, noSaga(ref)
	}
	if err != nil {
		return nil, fromAPIServer(fmt.Sprintf("reading saga %s", ref), err)
	}
	return o, nil
}
