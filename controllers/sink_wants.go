package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubelabels "k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
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

// prepare returns what learns the labels of the namespaces of messages that a sink chooses by them; nil where it does not. The watch may be behind, so what it has not shown is asked
// for: no message is passed over because of a namespace that nobody here has heard of.
func (r *SinkReconciler) prepare(s *sinkObject) func(context.Context, []outbox.Message) error {
	if s.cluster == nil || s.cluster.NamespaceSelector == nil {
		return nil
	}
	return func(ctx context.Context, all []outbox.Message) error {
		asked := map[string]bool{"": true}
		for i := range all {
			name := all[i].Namespace
			if asked[name] {
				continue
			}
			asked[name] = true
			if r.namespaces.knows(name) {
				continue
			}
			ns := namespaceKind()
			err := r.Live.Get(ctx, client.ObjectKey{Name: name}, ns)
			switch {
			case apierrors.IsNotFound(err):
				r.namespaces.lose(name)
			case err != nil:
				return fmt.Errorf("reading the labels of namespace %s: %w", name, err)
			default:
				r.namespaces.learn(name, ns.Labels)
			}
		}
		return nil
	}
}

// namespaceLabels are the labels of all namespaces. Those of one that is gone stay as they were: its last messages are published after that. One that is gone and whose labels nobody
// here has seen, because the operator was started later, is taken for one that matches: what is published once too often can be dropped, what is not is lost.
type namespaceLabels struct {
	mu  sync.RWMutex
	all map[string]kubelabels.Set
	// gone are those that are, in that order; lost those of them that nobody has seen.
	gone []string
	lost map[string]bool
}

// maxGone is how many namespaces that are gone are remembered.
const maxGone = 10_000

func (n *namespaceLabels) put(name string, l map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.all == nil {
		n.all = map[string]kubelabels.Set{}
	}
	n.all[name] = kubelabels.Set(l)
	delete(n.lost, name)
	n.gone = slices.DeleteFunc(n.gone, func(g string) bool { return g == name })
}

// learn is put for what was asked for: what the watch shows is newer.
func (n *namespaceLabels) learn(name string, l map[string]string) {
	if !n.knows(name) {
		n.put(name, l)
	}
}

func (n *namespaceLabels) end(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remember(name)
}

// lose says that there is no namespace of a name, and that nothing is known of the one that there was.
func (n *namespaceLabels) lose(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.all[name]; known || n.lost[name] {
		return
	}
	if n.lost == nil {
		n.lost = map[string]bool{}
	}
	n.lost[name] = true
	n.remember(name)
}

// remember adds to those that are gone, and drops the longest gone.
func (n *namespaceLabels) remember(name string) {
	if n.gone = append(n.gone, name); len(n.gone) > maxGone {
		delete(n.all, n.gone[0])
		delete(n.lost, n.gone[0])
		n.gone = n.gone[1:]
	}
}

func (n *namespaceLabels) knows(name string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	_, known := n.all[name]
	return known || n.lost[name]
}

func (n *namespaceLabels) match(name string, s kubelabels.Selector) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	l, known := n.all[name]
	return n.lost[name] || known && s.Matches(l)
}

// namespaceSource keeps the labels of namespaces as they are. It queues nothing: they are asked for with each message. The controller starts when it has seen all.
func (r *SinkReconciler) namespaceSource(c cache.Cache) source.TypedSource[reconcile.Request] {
	return source.TypedKind(c, namespaceKind(), handler.TypedFuncs[*metav1.PartialObjectMetadata, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*metav1.PartialObjectMetadata], _ sinkQueue) {
			defer guard(r.Logger, "taking in a new namespace")
			r.takeNamespace(e.Object)
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*metav1.PartialObjectMetadata], _ sinkQueue) {
			defer guard(r.Logger, "taking in a changed namespace")
			r.takeNamespace(e.ObjectNew)
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*metav1.PartialObjectMetadata], _ sinkQueue) {
			defer guard(r.Logger, "taking in a deleted namespace")
			r.namespaces.end(e.Object.Name)
		},
	})
}

// takeNamespace takes in the labels of a namespace, and its quotas, so that these are known before the first
// sink is looked at. NamespaceQuotas logs the annotations that cannot be read.
func (r *SinkReconciler) takeNamespace(o *metav1.PartialObjectMetadata) {
	r.namespaces.put(o.Name, o.Labels)
	if r.Quotas != nil {
		_ = r.Quotas.Set(o.Name, o.Annotations)
	}
}
