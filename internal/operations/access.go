package operations

import (
	"context"
	"errors"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

// Access says who may do what.
type Access interface {
	// Allowed returns nil, a *ForbiddenError, or an ErrUnavailable: who cannot be asked about is not let in.
	Allowed(ctx context.Context, who Caller, what Permission) error
}

// ClusterAccess asks the cluster, each time anew: a right that is taken away is gone with the next request.
type ClusterAccess struct{ Client client.Client }

// Allowed implements Access with a SubjectAccessReview.
func (a ClusterAccess) Allowed(ctx context.Context, who Caller, what Permission) error {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: who.Name, UID: who.UID, Groups: who.Groups,
	}}
	if what.Path != "" {
		review.Spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: what.Path, Verb: what.Verb}
	} else {
		review.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
			Group: group, Version: "v1", Resource: "sagas", Subresource: what.Subresource, Verb: what.Verb, Namespace: what.Namespace, Name: what.Name,
		}
	}
	if len(who.Extra) > 0 {
		review.Spec.Extra = make(map[string]authorizationv1.ExtraValue, len(who.Extra))
		for k, v := range who.Extra {
			review.Spec.Extra[k] = v
		}
	}
	if err := a.Client.Create(ctx, review); err != nil {
		err = fmt.Errorf("asking whether user %q may %s: %w", who.Name, what, err)
		if errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if review.Status.Allowed && !review.Status.Denied {
		return nil
	}
	return &ForbiddenError{User: who.Name, Permission: what}
}

// errNobody says that a command came without a caller, which is a mistake of whoever sent it.
var errNobody = errors.New("nobody is authenticated")

// authorize is the middleware of both buses that asks before anything else happens.
func authorize(access Access) cqrs.Middleware {
	return cqrs.Authorize(func(ctx context.Context, m cqrs.Message) error {
		if _, ok := m.Value.(bearer); ok {
			return nil
		}
		g, ok := m.Value.(guarded)
		if !ok {
			return fmt.Errorf("%s says of nobody that they may send it", m.Name)
		}
		who, ok := CallerOf(ctx)
		if !ok {
			return errNobody
		}
		return access.Allowed(ctx, who, g.Needs())
	})
}
