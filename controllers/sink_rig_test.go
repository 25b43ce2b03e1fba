package controllers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// briskPace has things happen sooner than in production, so that tests need not wait.
var briskPace = sinkPace{
	look: 200 * time.Millisecond, mend: 200 * time.Millisecond, firstCheck: 200 * time.Millisecond, recheck: time.Second,
	refresh: 100 * time.Millisecond, forget: 100 * time.Millisecond,
}

// sinkRig is a namespace for sinks over the package's one API server. Its relay is shared by all operators that are started in it, as a database would be.
type sinkRig struct {
	*testing.T
	ns    string
	kube  client.Client
	relay *recordingRelay

	log lockedLog
}

func newSinkRig(t *testing.T) *sinkRig {
	t.Helper()
	kube, err := client.New(apiServer(t), client.Options{Scheme: scheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	r := &sinkRig{T: t, kube: kube, relay: newRecordingRelay()}
	r.ns = r.namespace(nil)
	return r
}

// namespace makes one.
func (r *sinkRig) namespace(labels map[string]string) string {
	r.Helper()
	ns := &corev1.Namespace{}
	ns.GenerateName, ns.Labels = "t-", labels
	if err := r.kube.Create(r.Context(), ns); err != nil {
		r.Fatal(err)
	}
	return ns.Name
}

// reconciler is one that may connect to 127.0.0.1, and to no other address of this machine.
func (r *sinkRig) reconciler() *SinkReconciler {
	r.Helper()
	policy, err := egress.New([]string{"127.0.0.1"}, nil)
	if err != nil {
		r.Fatal(err)
	}
	return &SinkReconciler{
		Relay: r.relay, Dial: withoutDNS(policy.Dialer(patienceOfTests).DialContext), Namespace: r.ns, AnyName: true, pace: briskPace,
		Logger:  slog.New(slog.NewTextHandler(io.MultiWriter(r.Output(), &r.log), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Watches: func(ns string) bool { return ns == r.ns },
		around:  func(p outbox.Publisher) outbox.Publisher { return &countingPublisher{Publisher: p} },
	}
}

// withoutDNS knows without asking anybody that there is no host whose name ends in .invalid: what name servers say of it, and after how long, is not what a test is about.
func withoutDNS(dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, _, err := net.SplitHostPort(address); err == nil && strings.HasSuffix(host, ".invalid") {
			return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
		}
		return dial(ctx, network, address)
	}
}

// start runs an operator for the rig's namespace until the function that it returns is called, or the test ends.
func (r *sinkRig) start(change ...func(*SinkReconciler, *ctrl.Options)) (s *SinkReconciler, stop func()) {
	r.Helper()
	s = r.reconciler()
	o := managerOptions(r.T, r.ns)
	for _, f := range change {
		f(s, &o)
	}
	mgr, err := ctrl.NewManager(apiServer(r.T), o)
	if err != nil {
		r.Fatal(err)
	}
	if err := s.SetupWithManager(mgr); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.Errorf("running the manager: %v", err)
		}
	})
	r.Cleanup(stop)
	return s, stop
}

// sink creates a Sink whose spec is written in YAML.
func (r *sinkRig) sink(name, spec string) *v1.Sink {
	r.Helper()
	o, err := r.trySink(name, spec)
	if err != nil {
		r.Fatalf("creating sink %s: %v", name, err)
	}
	return o
}

func (r *sinkRig) trySink(name, spec string) (*v1.Sink, error) {
	o := &v1.Sink{}
	o.Namespace, o.Name = r.ns, name
	if err := yaml.UnmarshalStrict([]byte(spec), &o.Spec); err != nil {
		return nil, err
	}
	return o, r.kube.Create(r.Context(), o)
}

// clusterSink creates a ClusterSink, which goes with the test. Its name is the rig's: there is one of them for all tests.
func (r *sinkRig) clusterSink(spec string) *v1.ClusterSink {
	r.Helper()
	o := &v1.ClusterSink{}
	o.Name = r.ns
	if err := yaml.UnmarshalStrict([]byte(spec), &o.Spec); err != nil {
		r.Fatal(err)
	}
	if err := r.kube.Create(r.Context(), o); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = r.kube.Delete(context.Background(), o) })
	return o
}

// secret creates a Secret for some hosts; none where they are empty.
func (r *sinkRig) secret(name, hosts string, data map[string]string) *corev1.Secret {
	r.Helper()
	o := &corev1.Secret{StringData: data}
	o.Namespace, o.Name = r.ns, name
	if hosts != "" {
		o.Annotations = map[string]string{v1.SecretHostsAnnotation: hosts}
	}
	if err := r.kube.Create(r.Context(), o); err != nil {
		r.Fatal(err)
	}
	return o
}

// patch changes an object as a user would.
func (r *sinkRig) patch(o client.Object, mergePatch string) {
	r.Helper()
	if err := r.kube.Patch(r.Context(), o, client.RawPatch(types.MergePatchType, []byte(mergePatch))); err != nil {
		r.Fatalf("changing %s: %v", o.GetName(), err)
	}
}

func (r *sinkRig) eventually(f func() error) {
	r.Helper()
	(&rig{T: r.T}).eventually(f)
}

// waitReady waits until the condition Ready of a sink is as wanted, for its present spec.
func (r *sinkRig) waitReady(name string, status metav1.ConditionStatus, reason string) *v1.Sink {
	r.Helper()
	o := &v1.Sink{}
	r.eventually(func() error { return r.ready(name, status, reason, o) })
	return o
}

// ready reads a sink and returns an error if its condition Ready is not as wanted.
func (r *sinkRig) ready(name string, status metav1.ConditionStatus, reason string, o *v1.Sink) error {
	r.Helper()
	if err := r.kube.Get(r.Context(), types.NamespacedName{Namespace: r.ns, Name: name}, o); err != nil {
		return err
	}
	c := meta.FindStatusCondition(o.Status.Conditions, v1.ConditionReady)
	if c == nil || c.Status != status || c.Reason != reason || c.ObservedGeneration != o.Generation || o.Status.ObservedGeneration != o.Generation {
		return fmt.Errorf("sink %s at generation %d is not Ready=%s for %s: %+v", name, o.Generation, status, reason, o.Status)
	}
	if c.Message == "" || c.LastTransitionTime.IsZero() {
		r.Errorf("sink %s: the condition says nothing: %+v", name, c)
	}
	return nil
}

// waitSet waits until the relay publishes to a sink by another publisher than the one that is given, and returns the sink.
func (r *sinkRig) waitSet(o client.Object, other outbox.Publisher) outbox.Sink {
	r.Helper()
	var s outbox.Sink
	r.eventually(func() error {
		var ok bool
		if s, ok = r.relay.get(string(o.GetUID())); !ok || s.Publisher == other {
			return fmt.Errorf("sink %s is not published to in a new way", o.GetName())
		}
		return nil
	})
	return s
}

func (r *sinkRig) waitRemoved(o client.Object) {
	r.Helper()
	r.eventually(func() error {
		if _, ok := r.relay.get(string(o.GetUID())); ok {
			return fmt.Errorf("sink %s is still published to", o.GetName())
		}
		return nil
	})
}

// receiver is an HTTP destination that takes everything from whoever shows its token, where it has one.
type receiver struct {
	url   string
	mu    sync.Mutex
	token string
	seen  []string // the values of Authorization
}

func newReceiver(t *testing.T, token string) *receiver {
	t.Helper()
	s := &receiver{token: token}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := req.Header.Get("Authorization")
	s.seen = append(s.seen, got)
	if s.token != "" && got != "Bearer "+s.token {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "this is not the token: "+got)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveOn has an HTTP destination that takes everything listen.
func serveOn(t *testing.T, l net.Listener) {
	t.Helper()
	server := httptest.NewUnstartedServer(&receiver{})
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
}

// requestFor is the key of an object.
func requestFor(o client.Object) reconcile.Request {
	return reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o)}
}

func (s *receiver) shown(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.seen, "Bearer "+token)
}

// recordingRelay stands for the relay where a test is about what it is told. It keeps the one promise that matters here: a publisher is closed when it is replaced or removed.
type recordingRelay struct {
	mu        sync.Mutex
	sinks     map[string]outbox.Sink
	known     map[string]outbox.Status
	begun     []string
	sets      int
	forgotten []string
	away      bool
	busy      bool // somebody publishes to all of them
}

func newRecordingRelay() *recordingRelay {
	return &recordingRelay{sinks: map[string]outbox.Sink{}, known: map[string]outbox.Status{}}
}

var errAway = errors.New("the database is away")

func (f *recordingRelay) Set(_ context.Context, s outbox.Sink) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errAway
	}
	f.sets++
	if old, ok := f.sinks[s.ID]; ok {
		_ = old.Publisher.Close()
	}
	f.sinks[s.ID] = s
	if _, ok := f.known[s.ID]; !ok {
		f.known[s.ID] = outbox.Status{ID: s.ID, Name: s.Name}
	}
	return nil
}

func (f *recordingRelay) Begin(_ context.Context, id, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errAway
	}
	f.begun = append(f.begun, id)
	if _, ok := f.known[id]; !ok {
		f.known[id] = outbox.Status{ID: id, Name: name}
	}
	return nil
}

func (f *recordingRelay) hasBegun(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.begun, id)
}

func (f *recordingRelay) Remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, ok := f.sinks[id]; ok {
		_ = old.Publisher.Close()
	}
	delete(f.sinks, id)
}

func (f *recordingRelay) Statuses(context.Context) ([]outbox.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, errAway
	}
	return slices.Collect(maps.Values(f.known)), nil
}

func (f *recordingRelay) Forget(_ context.Context, id string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		return false, nil
	}
	f.forgotten = append(f.forgotten, id)
	delete(f.known, id)
	return true, nil
}

func (f *recordingRelay) get(id string) (outbox.Sink, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sinks[id]
	return s, ok
}

// stands says where a sink stands.
func (f *recordingRelay) stands(s outbox.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[s.ID] = s
}

func (f *recordingRelay) setAway(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

func (f *recordingRelay) setBusy(busy bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy = busy
}

func (f *recordingRelay) wasForgotten(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.forgotten, id)
}

// countingPublisher counts what is asked of a publisher.
type countingPublisher struct {
	outbox.Publisher
	mu     sync.Mutex
	checks int
	closed bool
}

func (p *countingPublisher) Check(ctx context.Context) error {
	p.mu.Lock()
	p.checks++
	p.mu.Unlock()
	return p.Publisher.Check(ctx)
}

func (p *countingPublisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	return p.Publisher.Close()
}

func (p *countingPublisher) counts() (checks int, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checks, p.closed
}

// lockedLog is a log that is written and read at once.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
