package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// ownNamespace is where a pod finds the name of its namespace.
const ownNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// leaseLock is the lease by which the leader is elected. Unlike controller-runtime's own it makes no Kubernetes events, and so needs no right to make
// them beside the leases.
func leaseLock(c Config, cfg *rest.Config, renewDeadline time.Duration) (resourcelock.Interface, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("naming this replica: %w", err)
	}
	cfg = rest.AddUserAgent(cfg, "leader-election")
	cfg.Timeout = renewDeadline / 2 // one request that hangs must not cost the lease
	client, err := coordinationv1.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("making a client for the lease: %w", err)
	}
	return &steadyLock{Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: leaseNamespace(c), Name: c.LeaseName},
		Client:     client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + uuid.NewString()},
	}}, nil
}

// steadyLock keeps the lease of a leader whose API server is away. controller-runtime ends the process of a leader that cannot renew its lease, because for most a lease is
// a lock. Here it is a politeness: two that lead are harmless, sagas go on without the API server, and as long as it is away nobody else can take the lease either. So an
// API server that does not answer takes nothing from the leader, also not when its process stood still for longer than the lease and it has to look whose that is. What it says
// when it answers counts: whoever finds another holder then has lost the lease, and ends.
type steadyLock struct {
	resourcelock.Interface
	// last is what the API server said last, if that was that this replica holds the lease; the elector asks from one goroutine.
	last *resourcelock.LeaderElectionRecord
}

// note remembers what the API server has said.
func (l *steadyLock) note(record *resourcelock.LeaderElectionRecord) {
	if l.last = nil; record.HolderIdentity == l.Identity() {
		kept := *record
		l.last = &kept
	}
}

// Get implements resourcelock.Interface.
func (l *steadyLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	switch {
	case err == nil:
		l.note(record)
	case l.last != nil && unanswered(err):
		last := *l.last
		raw, err := json.Marshal(last)
		return &last, raw, err
	}
	return record, raw, err
}

// Create implements resourcelock.Interface.
func (l *steadyLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, record)
	if l.last = nil; err == nil {
		l.note(&record)
	}
	return err
}

// Update implements resourcelock.Interface.
func (l *steadyLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, record)
	switch {
	case err == nil:
		l.note(&record)
	case l.last != nil && record.HolderIdentity == l.Identity() && unanswered(err):
		return nil
	}
	return err
}

// unanswered reports whether an error says nothing of the request: the API server was not reached, or cannot answer now, or has just started and has not read yet who may do what.
func unanswered(err error) bool {
	var status apierrors.APIStatus
	return !errors.As(err, &status) || apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) || apierrors.IsServerTimeout(err) ||
		apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsForbidden(err)
}

// leaseNamespace is the operator's own; outside of a cluster, where it has none, default.
func leaseNamespace(c Config) string {
	if c.LeaseSpace != "" {
		return c.LeaseSpace
	}
	if own, err := os.ReadFile(ownNamespace); err == nil {
		return strings.TrimSpace(string(own))
	}
	return metav1.NamespaceDefault
}
