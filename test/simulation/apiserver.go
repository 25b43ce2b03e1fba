package simulation

import (
	"context"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/controllers"
)

var sagasResource = schema.GroupResource{Group: v1.GroupVersion.Group, Resource: "sagas"}

// apiServer keeps the objects of sagas, and every version of them for those that watch.
type apiServer struct {
	w        *World
	objects  map[string]*v1.Saga // by name
	revision int
	log      []*change
	// suspended holds the generation of the object in which a user last suspended a saga, by name.
	suspended map[string]int64
}

// change is one version of an object; deleted says that it is the last one.
type change struct {
	name    string // of the event, for the trace
	at      time.Time
	object  *v1.Saga
	deleted bool
}

func newAPIServer(w *World) *apiServer {
	return &apiServer{w: w, objects: map[string]*v1.Saga{}, suspended: map[string]int64{}}
}

// put stores a new version of an object, or removes it when nothing holds it.
func (s *apiServer) put(o *v1.Saga) {
	s.revision++
	o.ResourceVersion = strconv.Itoa(s.revision)
	gone := !o.DeletionTimestamp.IsZero() && len(o.Finalizers) == 0
	if gone {
		delete(s.objects, o.Name)
		s.w.books.gone(o)
	} else {
		s.objects[o.Name] = o
	}
	// The name counts the versions of the object, not of the server: it must not depend on other sagas.
	s.log = append(s.log, &change{name: fmt.Sprintf("%s@%d", o.Name, s.w.bus.count("version of "+o.Name)), at: time.Now(), object: o, deleted: gone})
}

// change is what a user does to an object.
func (s *apiServer) change(name string, f func(*v1.Saga)) {
	o := s.objects[name]
	if o == nil {
		return
	}
	o = o.DeepCopy()
	was := o.Spec.Suspend
	f(o)
	o.Generation++
	if o.Spec.Suspend && !was {
		s.suspended[name] = o.Generation
	}
	s.put(o)
}

func (s *apiServer) delete(o *v1.Saga) {
	if !o.DeletionTimestamp.IsZero() {
		return
	}
	o = o.DeepCopy()
	o.Generation++
	o.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	s.put(o)
}

// cacheOf is what a node has seen of the API server. It lags.
type cacheOf struct {
	n       *node
	next    int // in the log of the API server
	objects map[string]*v1.Saga
}

// watch begins with a list of everything.
func (s *apiServer) watch(n *node) *cacheOf {
	c := &cacheOf{n: n, next: len(s.log), objects: map[string]*v1.Saga{}}
	for _, o := range s.objects {
		seen := c.keep(o)
		n.handlers.CreateFunc(n.ctx, event.TypedCreateEvent[*v1.Saga]{Object: seen}, n.queue)
	}
	return c
}

func (c *cacheOf) keep(o *v1.Saga) *v1.Saga {
	kept, err := controllers.Transform(o.DeepCopy())
	if err != nil {
		panic(err)
	}
	c.objects[o.Name] = kept.(*v1.Saga)
	return c.objects[o.Name]
}

// ready returns the change that arrives next, once it has been on its way for long enough.
func (c *cacheOf) ready() *change {
	w := c.n.w
	if c.next >= len(w.api.log) {
		return nil
	}
	e := w.api.log[c.next]
	if at := e.at.Add(c.lag(e)); at.After(time.Now()) {
		return nil
	}
	return e
}

// lag is how far behind a cache is with a change.
func (c *cacheOf) lag(e *change) time.Duration {
	w, name := c.n.w, c.n.id+" "+e.name
	if w.Script != nil {
		return w.Script.Delays[name]
	}
	switch p := w.float("lag", name); {
	case w.calm() || w.Without["lag "+name] || p < 0.7:
		return 0
	case p < 0.97:
		return w.between("lagging", name, 0, 500*time.Millisecond)
	default:
		return w.between("lagging", name, 0, 20*time.Second)
	}
}

// until returns how long it takes until a change arrives; false when none is under way.
func (c *cacheOf) until() (time.Time, bool) {
	if c.next >= len(c.n.w.api.log) {
		return time.Time{}, false
	}
	e := c.n.w.api.log[c.next]
	return e.at.Add(c.lag(e)), true
}

// see takes the next change in.
func (c *cacheOf) see() {
	e := c.n.w.api.log[c.next]
	c.next++
	old, known := c.objects[e.object.Name]
	seen := c.keep(e.object)
	if e.deleted {
		delete(c.objects, e.object.Name)
	}
	h, q := c.n.handlers, c.n.queue
	switch {
	case e.deleted && known:
		h.DeleteFunc(c.n.ctx, event.TypedDeleteEvent[*v1.Saga]{Object: seen}, q)
	case e.deleted:
	case known:
		h.UpdateFunc(c.n.ctx, event.TypedUpdateEvent[*v1.Saga]{ObjectOld: old, ObjectNew: seen}, q)
	default:
		h.CreateFunc(c.n.ctx, event.TypedCreateEvent[*v1.Saga]{Object: seen}, q)
	}
}

// kube is a node's client: it reads from the cache and writes to the API server. The methods that it lacks are not called.
type kube struct {
	client.Client
	n *node
}

// Get implements client.Client.
func (k *kube) Get(_ context.Context, name types.NamespacedName, into client.Object, _ ...client.GetOption) error {
	o := k.n.cache.objects[name.Name]
	if o == nil {
		return apierrors.NewNotFound(sagasResource, name.Name)
	}
	o.DeepCopyInto(into.(*v1.Saga))
	return nil
}

// write makes a write by the fate that it meets.
func (k *kube) write(ctx context.Context, what string, o client.Object, do func() error) error {
	w := k.n.w
	name := fmt.Sprintf("%s %s %s", k.n.id, what, o.GetName())
	name = fmt.Sprintf("%s #%d", name, w.bus.count(name))
	f, gaveUp := w.bus.await(ctx, k.n, apiWrite, name)
	switch {
	case gaveUp:
		return ctx.Err()
	case f == failedBefore:
		return apierrors.NewInternalError(fmt.Errorf("etcd has no leader"))
	case f == failedAfter:
		_ = do()
		return apierrors.NewTimeoutError("the answer was lost", 1)
	}
	return do()
}

// current returns the object that a write is about, if it is the version that the writer knows.
func (k *kube) current(o client.Object) (*v1.Saga, error) {
	now := k.n.w.api.objects[o.GetName()]
	switch {
	case now == nil || now.UID != o.GetUID():
		return nil, apierrors.NewNotFound(sagasResource, o.GetName())
	case now.ResourceVersion != o.GetResourceVersion():
		return nil, apierrors.NewConflict(sagasResource, o.GetName(), fmt.Errorf("the object has been modified"))
	}
	return now.DeepCopy(), nil
}

// Patch implements client.Client for what the reconciler patches: finalizers.
func (k *kube) Patch(ctx context.Context, o client.Object, _ client.Patch, _ ...client.PatchOption) error {
	return k.write(ctx, "patch", o, func() error {
		now, err := k.current(o)
		if err == nil {
			now.Finalizers = o.GetFinalizers()
			k.n.w.api.put(now)
			o.SetResourceVersion(now.ResourceVersion)
		}
		return err
	})
}

// Delete implements client.Client.
func (k *kube) Delete(ctx context.Context, o client.Object, _ ...client.DeleteOption) error {
	return k.write(ctx, "delete", o, func() error {
		now, err := k.current(o)
		if err == nil {
			k.n.w.api.delete(now)
		}
		return err
	})
}

// Status implements client.Client.
func (k *kube) Status() client.SubResourceWriter { return &statusOf{k: k} }

type statusOf struct {
	client.SubResourceWriter
	k *kube
}

// Patch implements client.SubResourceWriter.
func (s *statusOf) Patch(ctx context.Context, o client.Object, _ client.Patch, _ ...client.SubResourcePatchOption) error {
	return s.k.write(ctx, "status", o, func() error {
		now, err := s.k.current(o)
		if err == nil {
			o.(*v1.Saga).Status.DeepCopyInto(&now.Status)
			s.k.n.w.api.put(now)
			now.DeepCopyInto(o.(*v1.Saga))
		}
		return err
	})
}

// live reads from the API server itself.
type live struct {
	client.Reader
	n *node
}

// Get implements client.Reader.
func (l *live) Get(ctx context.Context, name types.NamespacedName, into client.Object, _ ...client.GetOption) error {
	w := l.n.w
	label := fmt.Sprintf("%s get %s", l.n.id, name.Name)
	label = fmt.Sprintf("%s #%d", label, w.bus.count(label))
	f, gaveUp := w.bus.await(ctx, l.n, apiRead, label)
	o := w.api.objects[name.Name]
	ns, isNamespace := into.(*metav1.PartialObjectMetadata)
	switch {
	case gaveUp:
		return ctx.Err()
	case f == failedBefore:
		return apierrors.NewInternalError(fmt.Errorf("etcd has no leader"))
	case isNamespace: // it exists from the beginning
		ns.Name, ns.UID = name.Name, "8d5d1c1f-0000-4000-8000-000000000000"
		return nil
	case o == nil:
		return apierrors.NewNotFound(sagasResource, name.Name)
	}
	o.DeepCopyInto(into.(*v1.Saga))
	return nil
}
