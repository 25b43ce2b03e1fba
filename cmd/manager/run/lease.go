package run

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
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
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: leaseNamespace(c), Name: c.LeaseName},
		Client:     client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + uuid.NewString()},
	}, nil
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
