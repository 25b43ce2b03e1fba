package operations

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func (h *handlers) get(ctx context.Context, q GetSaga) (Object, error) {
	o, err := h.object(ctx, q.Ref)
	if err != nil {
		return Object{}, err
	}
	return encode(o)
}

func (h *handlers) list(ctx context.Context, q ListSagas) (List, error) {
	options := []client.ListOption{client.InNamespace(q.Namespace), client.Limit(limited(q.Limit)), client.Continue(q.Continue)}
	if q.Phase != "" {
		options = append(options, client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("status.phase", q.Phase)})
	}
	if q.LabelSelector != "" {
		selector, err := labels.Parse(q.LabelSelector)
		if err != nil {
			return List{}, invalid("query.labelSelector", "%v", err)
		}
		options = append(options, client.MatchingLabelsSelector{Selector: selector})
	}
	var found documents
	err := h.Client.List(ctx, &found, options...)
	switch {
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		return List{}, &ExpiredError{}
	case err != nil:
		return List{}, fromAPIServer(fmt.Sprintf("listing the sagas of namespace %s", q.Namespace), err)
	}
	l := List{Items: make([]json.RawMessage, 0, len(found.Items)), Continue: found.GetContinue(), Remaining: found.GetRemainingItemCount()}
	for i := range found.Items {
		o, err := encode(&found.Items[i])
		if err != nil {
			return List{}, err
		}
		l.Items = append(l.Items, o.JSON)
	}
	return l, nil
}
