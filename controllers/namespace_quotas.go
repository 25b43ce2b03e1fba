package controllers

import (
	"context"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/vextrus/saga-operator/internal/quota"
)

// namespaceRetry is the pause between two attempts to watch namespaces.
const namespaceRetry = 10 * time.Second

// NamespaceQuotas keeps a table of quotas up to date with the annotations of Namespaces. It is a runnable
// of every replica. Where it may not read namespaces, the usual quotas apply to all.
type NamespaceQuotas struct {
	table *quota.Table
	cache cache.Cache
	log   *slog.Logger
	read  chan struct{}
}

// NewNamespaceQuotas returns one that reads namespaces from a cache.
func NewNamespaceQuotas(table *quota.Table, c cache.Cache, log *slog.Logger) *NamespaceQuotas {
	return &NamespaceQuotas{table: table, cache: c, log: log, read: make(chan struct{})}
}

// Read is closed when the annotations of all namespaces have been read.
func (n *NamespaceQuotas) Read() <-chan struct{} { return n.read }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*NamespaceQuotas) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable.
func (n *NamespaceQuotas) Start(ctx context.Context) error {
	informer := n.informer(ctx)
	if informer == nil {
		return nil
	}
	handle, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    n.take,
		UpdateFunc: func(_, o any) { n.take(o) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			n.drop(o)
		},
	})
	if err != nil {
		return err
	}
	if toolscache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		close(n.read)
	}
	<-ctx.Done()
	return nil
}

// informer returns the informer of namespaces, trying until it can be had; nil when the process ends.
func (n *NamespaceQuotas) informer(ctx context.Context) (informer cache.Informer) {
	_ = wait.PollUntilContextCancel(ctx, namespaceRetry, true, func(ctx context.Context) (bool, error) {
		found, err := n.cache.GetInformer(ctx, namespaceKind())
		switch {
		case err == nil:
			informer = found
		case ctx.Err() == nil:
			n.log.Warn("namespaces cannot be watched, so the quotas of the flags apply to all of them; the operator's ClusterRole has to allow it to list and watch namespaces; trying again", "error", err)
		}
		return err == nil, nil
	})
	return informer
}

func (n *NamespaceQuotas) take(o any) {
	defer guard(n.log, "reading the quotas of a namespace")
	if ns, ok := o.(*metav1.PartialObjectMetadata); ok {
		if err := n.table.Set(ns.Name, ns.Annotations); err != nil {
			n.log.Error("a quota of a namespace cannot be read; the flag's applies", "namespace", ns.Name, "error", err)
		}
	}
}

func (n *NamespaceQuotas) drop(o any) {
	defer guard(n.log, "dropping the quotas of a namespace")
	if ns, ok := o.(*metav1.PartialObjectMetadata); ok {
		_ = n.table.Set(ns.Name, nil) // no annotation, no error
	}
}

// namespaceKind is how namespaces are watched: their metadata only.
func namespaceKind() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
}
