// Package quota limits what the objects of one namespace may take together: a flag sets the limit of
// every namespace, and an administrator's annotation on a Namespace replaces it there.
package quota

import (
	"errors"
	"fmt"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// Unlimited is the value of a limit that allows everything.
const Unlimited = -1

// Limits are the quotas of one namespace. Each may be Unlimited; 0 allows nothing.
type Limits struct {
	// UnfinishedSagas is the maximum number of sagas that have started and not ended.
	UnfinishedSagas int64
	// UnfinishedBytes is the maximum total size of their specs, in bytes of JSON.
	UnfinishedBytes int64
	// Sinks is the maximum number of Sinks that are published to.
	Sinks int64
	// AttemptsPerSecond is the maximum rate at which attempts start; at least 1.
	AttemptsPerSecond int64
}

// None returns limits that allow everything.
func None() Limits {
	return Limits{UnfinishedSagas: Unlimited, UnfinishedBytes: Unlimited, Sinks: Unlimited, AttemptsPerSecond: Unlimited}
}

// annotated returns the limits after the annotations of a Namespace have replaced some. A value that cannot
// be read changes nothing and is part of the error.
func (l Limits) annotated(annotations map[string]string) (Limits, error) {
	var errs []error
	read := func(name string, least int64, parse func(string) (int64, error), limit *int64) {
		text, ok := annotations[name]
		if !ok {
			return
		}
		v, err := parse(text)
		if err != nil || v < least && v != Unlimited {
			errs = append(errs, fmt.Errorf("its annotation %s has to be a number of at least %d, or %d for no limit, and is %q", name, least, Unlimited, text))
			return
		}
		*limit = v
	}
	read(v1.MaxUnfinishedSagasAnnotation, 0, integer, &l.UnfinishedSagas)
	read(v1.MaxUnfinishedBytesAnnotation, 0, quantity, &l.UnfinishedBytes)
	read(v1.MaxSinksAnnotation, 0, integer, &l.Sinks)
	read(v1.MaxAttemptsPerSecondAnnotation, 1, integer, &l.AttemptsPerSecond)
	return l, errors.Join(errs...)
}

func integer(text string) (int64, error) { return strconv.ParseInt(text, 10, 64) }

// quantity reads a number of bytes as Kubernetes writes them, for example 64Mi.
func quantity(text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, err
	}
	return q.Value(), nil
}

// Table has the limits of all namespaces. It is safe for concurrent use; a nil Table limits nothing.
type Table struct {
	usual Limits

	mu      sync.RWMutex
	own     map[string]Limits
	changed []func(namespace string)
}

// NewTable returns a table in which every namespace has the usual limits.
func NewTable(usual Limits) *Table {
	return &Table{usual: usual, own: map[string]Limits{}}
}

// Of returns the limits of a namespace.
func (t *Table) Of(namespace string) Limits {
	if t == nil {
		return None()
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if l, ok := t.own[namespace]; ok {
		return l
	}
	return t.usual
}

// OnChange has f called with each namespace whose limits change from now on. A nil Table never calls it.
func (t *Table) OnChange(f func(namespace string)) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed = append(t.changed, f)
}

// Set updates the limits of a namespace from its annotations, which are nil for a deleted one. The error
// names the annotations that cannot be read; the usual limits apply instead.
func (t *Table) Set(namespace string, annotations map[string]string) error {
	limits, err := t.usual.annotated(annotations)
	t.mu.Lock()
	before, had := t.own[namespace]
	if !had {
		before = t.usual
	}
	delete(t.own, namespace)
	if limits != t.usual {
		t.own[namespace] = limits
	}
	changed := t.changed
	t.mu.Unlock()
	if limits != before {
		for _, f := range changed {
			f(namespace)
		}
	}
	return err
}
