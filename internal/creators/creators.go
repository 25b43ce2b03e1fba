// Package creators finds out whether the cluster protects the annotation that names the creator of a
// saga. Without the protection everybody who may create sagas can write any name there.
package creators

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// keep is how long a finding is used. A policy that is removed is believed for at most that long.
	keep = 5 * time.Second
	// lookTimeout limits the requests for one finding.
	lookTimeout = 5 * time.Second
	// settling is how long API servers may take to enforce a new policy, including the difference
	// between their clocks.
	settling = 5 * time.Second
)

// remedy says what to do if creators are not recorded.
const remedy = "the creators of sagas are not recorded; install config/admission/created_by_policy.yaml of this version with the name of the operator's ServiceAccount, and allow the operator to get both of its objects"

// Check finds out whether a saga was created under the shipped admission policy. It is safe for
// concurrent use.
type Check struct {
	kube  client.Client
	log   *slog.Logger
	clock func() time.Time

	mu       sync.Mutex
	want     *shipped // once the operator's own name is known
	since    time.Time
	err      error
	keptTill time.Time
	reported string
}

// NewCheck returns a Check. kube reads from the API server, not from a cache.
func NewCheck(kube client.Client, log *slog.Logger) *Check {
	return &Check{kube: kube, log: log, clock: time.Now}
}

// Protected reports whether the annotation of an object that was created at a time can be believed.
// The result is false if that cannot be found out.
func (c *Check) Protected(ctx context.Context, created time.Time) bool {
	since, err := c.find(ctx)
	return err == nil && created.After(since.Add(settling))
}

// Recorded reports whether the creators of new sagas were recorded at the last look.
func (c *Check) Recorded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && !c.keptTill.IsZero()
}

// Start implements manager.Runnable: the operator says at its start if creators are not recorded.
func (c *Check) Start(ctx context.Context) error {
	_, _ = c.find(ctx)
	return nil
}

// find returns since when the policy is in the cluster.
func (c *Check) find(ctx context.Context) (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clock().Before(c.keptTill) {
		return c.since, c.err
	}
	limited, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	since, err := c.look(limited)
	if ctx.Err() != nil {
		return time.Time{}, ctx.Err() // the caller is leaving, which says nothing about the policy
	}
	c.since, c.err, c.keptTill = since, err, c.clock().Add(keep)
	c.report()
	return since, err
}

// report logs a finding that differs from the one before.
func (c *Check) report() {
	text := "none"
	if c.err != nil {
		text = c.err.Error()
	}
	switch {
	case text == c.reported:
	case c.err != nil:
		c.log.Warn(remedy, "error", c.err)
	default:
		c.log.Info("the creators of sagas are recorded", "since", c.since.UTC())
	}
	c.reported = text
}

// look compares the cluster's policy and binding with the shipped ones.
func (c *Check) look(ctx context.Context) (since time.Time, err error) {
	if err := c.learnName(ctx); err != nil {
		return since, err
	}
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	if err := c.get(ctx, c.want.policy.Kind, c.want.policy.Name, &policy); err != nil {
		return since, err
	}
	var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
	if err := c.get(ctx, c.want.binding.Kind, c.want.binding.Name, &binding); err != nil {
		return since, err
	}
	if !equality.Semantic.DeepEqual(policy.Spec, c.want.policy.Spec) {
		return since, fmt.Errorf("comparing ValidatingAdmissionPolicy %s: its spec is not the shipped one", policy.Name)
	}
	if err := c.checkBinding(&binding); err != nil {
		return since, fmt.Errorf("comparing ValidatingAdmissionPolicyBinding %s: %w", binding.Name, err)
	}
	since = changed(&policy)
	if bound := changed(&binding); bound.After(since) {
		since = bound
	}
	return since, nil
}

// learnName asks the cluster for the name of the operator, once.
func (c *Check) learnName(ctx context.Context) error {
	if c.want != nil {
		return nil
	}
	review := &authenticationv1.SelfSubjectReview{}
	if err := c.kube.Create(ctx, review); err != nil {
		return fmt.Errorf("asking the API server for the operator's own name: %w", err)
	}
	want, err := shippedFor(review.Status.UserInfo.Username)
	if err != nil {
		return err
	}
	c.want = &want
	return nil
}

func (c *Check) get(ctx context.Context, kind, name string, o client.Object) error {
	err := c.kube.Get(ctx, client.ObjectKey{Name: name}, o)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("reading %s %s: it is not installed", kind, name)
	}
	if err != nil {
		return fmt.Errorf("reading %s %s: %w", kind, name, err)
	}
	return nil
}

// checkBinding accepts further actions beside Deny, and nothing that exempts objects.
func (c *Check) checkBinding(b *admissionregistrationv1.ValidatingAdmissionPolicyBinding) error {
	switch {
	case b.Spec.PolicyName != c.want.binding.Spec.PolicyName:
		return errors.New("it binds another policy")
	case !slices.Contains(b.Spec.ValidationActions, admissionregistrationv1.Deny):
		return errors.New("its validationActions do not contain Deny")
	case b.Spec.ParamRef != nil, b.Spec.MatchResources != nil:
		return errors.New("it does not apply to all sagas")
	}
	return nil
}

// changed returns when an object was last changed, as the API server recorded it. A policy that was
// weakened for some time protects only sagas that were created later.
func changed(o metav1.Object) time.Time {
	last := o.GetCreationTimestamp().Time
	for _, f := range o.GetManagedFields() {
		if f.Time != nil && f.Subresource == "" && f.Time.After(last) {
			last = f.Time.Time
		}
	}
	return last
}
