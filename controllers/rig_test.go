package controllers

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/conditionscheck"
	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	participanthttp "github.com/vextrus/saga-operator/internal/participant/http"
	"github.com/vextrus/saga-operator/internal/saga"
)

// patienceOfTests bounds every wait. It is long because the machine may be busy; nothing waits that long when all is well.
const patienceOfTests = 5 * time.Minute

// rig is a namespace with an operator of its own, over the package's one API server.
type rig struct {
	*testing.T
	ns    string
	kube  client.Client // reads from the API server, not from a cache
	store eventstore.Store
	svc   *service

	// What the operator's client does, for a test to come between; each is nil or called with the object that is asked for.
	beforeGet    func(client.Object) // with what the cache has, which it may change
	beforeDelete func(client.Object)
	beforeStatus func(client.Object) error // what it returns is what the API server says to the write
	onTransport  func(http.RoundTripper) http.RoundTripper
	onStart      func(*SagaReconciler)
	log          lockedLog

	mu       sync.Mutex
	tampered bool // statuses are not the operator's own
	tallies  map[string]*tally
	barriers int
}

// newRig starts an operator for a new namespace. At the end of the test it checks the conditions of every saga in it.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := newRigWithoutOperator(t, memory.New())
	r.startOperator()
	return r
}

func newRigWithoutOperator(t *testing.T, store eventstore.Store) *rig {
	t.Helper()
	kube, err := client.New(apiServer(t), client.Options{Scheme: scheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, kube: kube, store: store, svc: newService(t), tallies: map[string]*tally{}}
	ns := &corev1.Namespace{}
	ns.GenerateName = "t-"
	if err := kube.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	r.ns = ns.Name
	t.Cleanup(r.checkConditions)
	return r
}

func scheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1.AddToScheme, corev1.AddToScheme, eventsv1.AddToScheme, authenticationv1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// startOperator runs one more operator for the rig's namespace until the function that it returns is called, or the test ends.
func (r *rig) startOperator() (stop func()) {
	r.Helper()
	cfg := apiServer(r.T)
	if r.onTransport != nil {
		cfg.Wrap(r.onTransport)
	}
	o := managerOptions(r.T, r.ns)
	o.NewClient, o.Cache.ByObject = r.countingClient, map[client.Object]cache.ByObject{&v1.Saga{}: {Transform: Transform}}
	mgr, err := ctrl.NewManager(cfg, o)
	if err != nil {
		r.Fatal(err)
	}
	kinds := participantKinds(r.T)
	log := slog.New(slog.NewTextHandler(io.MultiWriter(r.Output(), &r.log), &slog.HandlerOptions{Level: slog.LevelInfo}))
	sagas := &SagaReconciler{
		Logger: log, Events: true, AnyName: true, Concurrency: 16,
		Watches: func(ns string) bool { return ns == r.ns },
	}
	sagas.Engine, err = engine.New(engine.Options{Store: r.store, Participants: kinds, Notify: sagas.Enqueue, Logger: log, Workers: 64})
	if err != nil {
		r.Fatal(err)
	}
	if r.onStart != nil {
		r.onStart(sagas)
	}
	if err := sagas.setup(mgr, counting{r, sagas}); err != nil {
		r.Fatal(err)
	}
	sagas.events.timeout = patienceOfTests // in production an event is not worth that
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.Errorf("running the manager: %v", err)
		}
		_ = sagas.Engine.Shutdown(ctx) // a crash: what was under way is abandoned
	})
	r.Cleanup(stop)
	return stop
}

// managerOptions are those of an operator for one namespace that has as long as it needs to start and to stop.
func managerOptions(t *testing.T, ns string) ctrl.Options {
	t.Helper()
	return ctrl.Options{
		Scheme: scheme(t), Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Cache:                   cache.Options{DefaultNamespaces: map[string]cache.Config{ns: {}}},
		Controller:              config.Controller{CacheSyncTimeout: patienceOfTests},
		GracefulShutdownTimeout: new(patienceOfTests),
	}
}

// participantKinds may call the loopback addresses that test servers have.
func participantKinds(t *testing.T) participant.Registry {
	t.Helper()
	policy, err := egress.New([]string{"127.0.0.0/8"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := participanthttp.New(participanthttp.Options{Egress: policy})
	t.Cleanup(p.Close)
	return participant.Registry{participanthttp.Kind: p}
}

// checkConditions is run at the end of every test.
func (r *rig) checkConditions() {
	var all v1.SagaList
	if err := r.kube.List(context.Background(), &all, client.InNamespace(r.ns)); err != nil {
		r.Errorf("listing the sagas: %v", err)
	}
	for i := range all.Items {
		if err := conditionscheck.Saga(&all.Items[i]); err != nil {
			r.Error(err)
		}
	}
}

// create applies a saga whose spec is written in YAML; SERVICE in it stands for the URL of the rig's service.
func (r *rig) create(name, spec string) *v1.Saga {
	r.Helper()
	o, err := r.parse(name, spec)
	if err != nil {
		r.Fatal(err)
	}
	if err := r.kube.Create(r.Context(), o); err != nil {
		r.Fatalf("creating saga %s: %v", name, err)
	}
	return o
}

func (r *rig) parse(name, spec string) (*v1.Saga, error) {
	o := &v1.Saga{}
	o.Namespace, o.Name = r.ns, name
	if err := yaml.UnmarshalStrict([]byte(r.svc.steps(spec)), &o.Spec); err != nil {
		return nil, fmt.Errorf("reading the spec of %s: %w", name, err)
	}
	return o, nil
}

func (r *rig) get(name string) (*v1.Saga, error) {
	o := &v1.Saga{}
	err := r.kube.Get(r.Context(), types.NamespacedName{Namespace: r.ns, Name: name}, o)
	return o, err
}

// wait waits until an object is as wanted; describe says what that is.
func (r *rig) wait(name, describe string, ok func(*v1.Saga) bool) *v1.Saga {
	r.Helper()
	var last *v1.Saga
	r.eventually(func() error {
		o, err := r.get(name)
		if err != nil {
			return err
		}
		if err := conditionscheck.Saga(o); err != nil && !r.tampered {
			r.Error(err)
		}
		if last = o; ok(o) {
			return nil
		}
		return fmt.Errorf("saga %s is not %s: phase %s, step %q, reason %q, conditions %v", name, describe, o.Status.Phase, o.Status.Step, o.Status.Reason, o.Status.Conditions)
	})
	return last
}

func (r *rig) waitPhase(name string, p v1.SagaPhase) *v1.Saga {
	r.Helper()
	return r.wait(name, string(p), func(o *v1.Saga) bool { return o.Status.Phase == p })
}

func (r *rig) waitStalled(name, reason string) *v1.Saga {
	r.Helper()
	return r.wait(name, "stalled by "+reason, func(o *v1.Saga) bool {
		c := condition(o.Status.Conditions, v1.ConditionStalled)
		return holds(c) && c.Reason == reason
	})
}

func (r *rig) waitGone(name string) {
	r.Helper()
	r.eventually(func() error {
		o, err := r.get(name)
		if err != nil {
			return client.IgnoreNotFound(err)
		}
		return fmt.Errorf("saga %s is still there: phase %s, finalizers %v", name, o.Status.Phase, o.Finalizers)
	})
}

// eventually polls until f returns nil.
func (r *rig) eventually(f func() error) {
	r.Helper()
	deadline := time.Now().Add(patienceOfTests)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("waited too long: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// patch changes a saga as a user would.
func (r *rig) patch(name, mergePatch string) error {
	o := &v1.Saga{}
	o.Namespace, o.Name = r.ns, name
	return r.kube.Patch(r.Context(), o, client.RawPatch(types.MergePatchType, []byte(mergePatch)))
}

func (r *rig) mustPatch(name, mergePatch string) {
	r.Helper()
	if err := r.patch(name, mergePatch); err != nil {
		r.Fatalf("changing saga %s: %v", name, err)
	}
}

// mustPatchStatus changes a status, as nobody should.
func (r *rig) mustPatchStatus(name, mergePatch string) {
	r.Helper()
	r.tampered = true
	o := &v1.Saga{}
	o.Namespace, o.Name = r.ns, name
	if err := r.kube.Status().Patch(r.Context(), o, client.RawPatch(types.MergePatchType, []byte(mergePatch))); err != nil {
		r.Fatalf("changing the status of saga %s: %v", name, err)
	}
}

func (r *rig) delete(name string) {
	r.Helper()
	o := &v1.Saga{}
	o.Namespace, o.Name = r.ns, name
	if err := r.kube.Delete(r.Context(), o); err != nil {
		r.Fatalf("deleting saga %s: %v", name, err)
	}
}

// history returns the types of a saga's events, checked to be one stream without gap or fork.
func (r *rig) history(o *v1.Saga) []string {
	r.Helper()
	events, err := r.store.Load(r.Context(), engine.StreamOf(string(o.UID)), 1, 1000)
	if err != nil {
		r.Fatal(err)
	}
	types := make([]string, len(events))
	for i, e := range events {
		if e.Version != int64(i)+1 {
			r.Errorf("saga %s: event %d of its stream has version %d", o.Name, i+1, e.Version)
		}
		types[i] = e.Type
	}
	return types
}

// fold returns what a saga's stream comes to.
func (r *rig) fold(o *v1.Saga) saga.State {
	r.Helper()
	recorded, err := r.store.Load(r.Context(), engine.StreamOf(string(o.UID)), 1, 1000)
	if err != nil {
		r.Fatal(err)
	}
	var s saga.State
	for _, rec := range recorded {
		e, err := saga.Unmarshal(rec.Type, rec.SchemaVersion, rec.Data)
		if err != nil {
			r.Fatal(err)
		}
		s = saga.Evolve(s, e)
	}
	return s
}

// waitRecorded waits until a saga's stream, rather than its object, has come to a phase.
func (r *rig) waitRecorded(o *v1.Saga, p saga.Phase) {
	r.Helper()
	r.eventually(func() error {
		if s := r.fold(o); s.Phase != p {
			return fmt.Errorf("the stream of saga %s is at %s, want %s", o.Name, s.Phase, p)
		}
		return nil
	})
}

// waitEvents waits until there are Kubernetes events of an object, each as "Type Reason", among others that a slow machine may bring.
func (r *rig) waitEvents(o *v1.Saga, want ...string) {
	r.Helper()
	r.eventually(func() error {
		var list eventsv1.EventList
		if err := r.kube.List(r.Context(), &list, client.InNamespace(r.ns)); err != nil {
			return err
		}
		got := map[string]int{}
		for _, e := range list.Items {
			if e.Regarding.UID == o.UID {
				got[e.Type+" "+e.Reason]++
			}
		}
		for _, w := range want {
			if got[w] != 1 {
				return fmt.Errorf("the Kubernetes events of saga %s are %v, want one that says %q", o.Name, got, w)
			}
		}
		return nil
	})
}
