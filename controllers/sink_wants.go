package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubelabels "k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/vextrus/saga-operator/internal/outbox"
)

// wants returns whether a sink takes a message. Where it comes from is asked first: a Sink has what is its namespace's, whatever else it says.
func (r *SinkReconciler) wants(s *sinkObject) (func(*outbox.Message) bool, error) {
	from := func(namespace string) bool { return namespace == s.GetNamespace() }
	if s.cluster != nil {
		selected, err := selector(s.cluster.NamespaceSelector)
		if err != nil {
			return nil, fmt.Errorf("spec.namespaceSelector cannot be read: %w", err)
		}
		from = func(namespace string) bool { return selected.Empty() || r.namespaces.match(namespace, selected) }
	}
	sagas, err := selector(s.spec.SagaSelector)
	if err != nil {
		return nil, fmt.Errorf("spec.sagaSelector cannot be read: %w", err)
	}
	types := slices.Clone(s.spec.Types)
	return func(m *outbox.Message) bool {
		return m.Namespace != "" && from(m.Namespace) && anyMatches(types, m.Type) && sagas.Matches(kubelabels.Set(m.Labels))
	}, nil
}

// selector is that of a spec; everything where it says nothing.
func selector(s *metav1.LabelSelector) (kubelabels.Selector, error) {
	if s == nil {
		return kubelabels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// anyMatches reports whether a type is one of those that patterns stand for; no pattern stands for all.
func anyMatches(patterns []string, typ string) bool {
	for _, p := range patterns {
		if matches(p, typ) {
			return true
		}
	}
	return len(patterns) == 0
}

// matches reports whether a pattern, in which * is any text, stands for a type. The parts between the stars are looked for from left to right, which takes no going back.
func matches(pattern, typ string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(typ, parts[0])
	if !ok || len(parts) == 1 {
		return ok && rest == ""
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[last])
}

// namespaceLabels are the labels of all namespaces. Those of one that is gone stay as they were: its last messages are published after that.
type namespaceLabels struct {
	mu   sync.RWMutex
	all  map[string]kubelabels.Set
	gone []string
}

// maxGone is of how many namespaces that are gone the labels are kept.
const maxGone = 10_000

func (n *namespaceLabels) put(name string, l map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.all == nil {
		n.all = map[string]kubelabels.Set{}
	}
	n.all[name] = kubelabels.Set(l)
	n.gone = slices.DeleteFunc(n.gone, func(g string) bool { return g == name })
}

func (n *namespaceLabels) end(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone = append(n.gone, name); len(n.gone) > maxGone {
		delete(n.all, n.gone[0])
		n.gone = n.gone[1:]
	}
}

func (n *namespaceLabels) match(name string, s kubelabels.Selector) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	l, known := n.all[name]
	return known && s.Matches(l)
}

// namespaceSource keeps the labels of namespaces as they are. It queues nothing: they are asked for with each message. The controller starts when it has seen all.
func (r *SinkReconciler) namespaceSource(c cache.Cache) source.TypedSource[reconcile.Request] {
	kind := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
	return source.TypedKind(c, kind, handler.TypedFuncs[*metav1.PartialObjectMetadata, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*metav1.PartialObjectMetadata], _ sinkQueue) {
			defer guard(r.Logger, "taking in a new namespace")
			r.namespaces.put(e.Object.Name, e.Object.Labels)
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*metav1.PartialObjectMetadata], _ sinkQueue) {
			defer guard(r.Logger, "taking in a changed namespace")
			r.namespaces.put(e.ObjectNew.Name, e.ObjectNew.Labels)
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*metav1.PartialObjectMetadata], _ sinkQueue) {
			defer guard(r.Logger, "taking in a deleted namespace")
			r.namespaces.end(e.Object.Name)
		},
	})
}
