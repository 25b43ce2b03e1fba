package run

import (
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestOnlyAnAnswerTakesTheLease tells what an API server says that is away, or has just started and has not read the roles, from what counts.
func TestOnlyAnAnswerTakesTheLease(t *testing.T) {
	t.Parallel()
	leases := schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"not reached":               {errors.New("connection refused"), true},
		"cannot answer":             {apierrors.NewServiceUnavailable("starting"), true},
		"has not read the roles":    {apierrors.NewForbidden(leases, "saga-operator", errors.New("no role")), true},
		"somebody else has written": {apierrors.NewConflict(leases, "saga-operator", errors.New("changed")), false},
		"the lease is gone":         {apierrors.NewNotFound(leases, "saga-operator"), false},
	} {
		if got := unanswered(c.err); got != c.want {
			t.Errorf("%s: unanswered is %t", name, got)
		}
	}
}
