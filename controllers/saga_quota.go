package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/quota"
)

// reasonQuotaExceeded is the reason while a saga waits for others of its namespace to end.
const reasonQuotaExceeded = "QuotaExceeded"

// quotaPatience is how long new sagas wait for the annotations of namespaces to be read. After that the
// usual quotas apply to all: the operator may not be allowed to read namespaces.
const quotaPatience = 10 * time.Second

// admit asks whether a saga that has not started may, by the quotas of its namespace. If not, it sets why
// in the sighting. A saga that is cancelled or to be deleted may: it does nothing, and ends at once.
func (r *SagaReconciler) admit(s *sighting) bool {
	if r.unfinished == nil || s.deleting() || s.object.Spec.Cancel {
		return true
	}
	namespace, bytes := s.key.Namespace, specBytes(s.object)
	limits := r.Quotas.Of(namespace)
	switch r.unfinished.Admit(namespace, s.key, bytes) {
	case quota.Uncounted:
		s.uncounted = true
	case quota.Full:
		s.held = &problem{reason: reasonQuotaExceeded, transient: true, message: fmt.Sprintf(
			"The unfinished sagas of namespace %s use up its quota (%s). This one starts when others have ended. An administrator can change the quota by the annotations %s and %s of the Namespace.",
			namespace, quotaText(limits), v1.MaxUnfinishedSagasAnnotation, v1.MaxUnfinishedBytesAnnotation)}
	case quota.TooLarge:
		s.held = &problem{reason: reasonQuotaExceeded, message: fmt.Sprintf(
			"Its spec has %d bytes of JSON, and all unfinished sagas of namespace %s may have %d. Make it smaller, or have an administrator change the quota by the annotation %s of the Namespace.",
			bytes, namespace, limits.UnfinishedBytes, v1.MaxUnfinishedBytesAnnotation)}
	default:
		return true
	}
	return false
}

// quotaText says what a namespace may have.
func quotaText(l quota.Limits) string {
	switch {
	case l.UnfinishedBytes < 0:
		return fmt.Sprintf("%d sagas", l.UnfinishedSagas)
	case l.UnfinishedSagas < 0:
		return fmt.Sprintf("%d bytes of specs", l.UnfinishedBytes)
	default:
		return fmt.Sprintf("%d sagas, and %d bytes of specs", l.UnfinishedSagas, l.UnfinishedBytes)
	}
}

// count updates the count by where a saga stands. A saga whose events cannot be read counts as before.
func (r *SagaReconciler) count(s *sighting) {
	if r.unfinished == nil {
		return
	}
	state := &s.result.State
	waits := s.held != nil || s.uncounted
	switch {
	case s.settled, s.over, state.Phase.Terminal(), s.unstarted && !waits:
		r.unfinished.Ended(s.key.Namespace, s.key)
	case state.Version > 0 && !r.unfinished.Counts(s.key.Namespace, s.key):
		r.unfinished.Started(s.key.Namespace, s.key, specBytes(s.object))
	}
}

// countUnfinished counts a saga that recovery has found.
func (r *SagaReconciler) countUnfinished(ctx context.Context, k engine.Key) {
	if r.unfinished == nil || r.unfinished.Counts(k.Namespace, k) {
		return
	}
	cached := &v1.Saga{}
	if err := r.Client.Get(ctx, types.NamespacedName{Namespace: k.Namespace, Name: k.Name}, cached); err != nil || string(cached.UID) != k.UID {
		cached = nil // it is being undone
	}
	r.unfinished.Started(k.Namespace, k, specBytes(cached))
}

// counted lets new sagas start when the quotas have been read. The unfinished sagas have been counted.
func (r *SagaReconciler) counted(ctx context.Context) {
	if r.unfinished == nil {
		return
	}
	timer := time.NewTimer(quotaPatience)
	defer timer.Stop()
	select {
	case <-r.quotasRead():
	case <-timer.C:
		r.Logger.Warn("the annotations of namespaces could not be read yet: until then the quotas of the flags apply to all namespaces")
	case <-ctx.Done():
		return
	}
	r.unfinished.Counted()
}

func (r *SagaReconciler) quotasRead() <-chan struct{} {
	if r.QuotasRead != nil {
		return r.QuotasRead
	}
	closed := make(chan struct{})
	close(closed)
	return closed
}

// WaitingForQuota returns how many sagas wait for the quotas of their namespaces.
func (r *SagaReconciler) WaitingForQuota() int {
	if r.unfinished == nil {
		return 0
	}
	return r.unfinished.Waiting()
}
