package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/projection"
	sagasmodel "github.com/vextrus/saga-operator/internal/projection/sagas"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// patience bounds every wait; nothing takes that long.
const patience = 10 * time.Minute

const audience = "saga-operator"

// rig is the API over a namespace of the shared API server and a database of its own.
type rig struct {
	testing.TB
	ns        string
	admin     client.Client
	pool      *pgxpool.Pool
	store     *storepg.Store
	server    *Server
	base      string // its URL
	http      *http.Client
	decider   *fakeDecider
	abandoner *fakeAbandoner
	answers   *fakeCallbacks
	log       *lockedBuffer
}

// setup changes the options before the API starts.
type setup func(*operations.Options, *Options)

func newRig(t testing.TB, how ...setup) *rig {
	t.Helper()
	r := &rig{TB: t, decider: &fakeDecider{}, abandoner: &fakeAbandoner{}, answers: &fakeCallbacks{}, log: &lockedBuffer{}}
	var err error
	r.admin, err = typedClient(kubernetes(t).Config)
	r.ok(err)
	r.ns = r.namespace()
	r.database()
	r.start(how...)
	return r
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) database() {
	var err error
	r.pool, err = postgres.Open(context.Background(), postgres.Config{
		URL: throwaway.Database(r), ConnectTimeout: patience, StatementTimeout: patience, LockTimeout: patience, IdleInTxTimeout: patience,
	})
	r.ok(err)
	r.Cleanup(r.pool.Close)
	r.store = storepg.New(r.pool)
	runner, err := projection.NewRunner(projection.Options{Pool: r.pool, Store: r.store}, sagasmodel.History(), sagasmodel.Summary())
	r.ok(err)
	r.background(func(ctx context.Context) { _ = runner.Run(ctx) })
}

// background runs something until the test ends.
func (r *rig) background(run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	r.Cleanup(func() { cancel(); <-done })
}

// start serves the API on loopback, with TLS, with the rights of the operator's ServiceAccount.
func (r *rig) start(how ...setup) {
	account, err := kubernetes(r).ServiceAccount(context.Background(), "saga-system", "saga-operator")
	r.ok(err)
	kube, err := operations.NewClient(account, nil)
	r.ok(err)
	log := slog.New(slog.NewTextHandler(io.MultiWriter(r.log, r.Output()), &slog.HandlerOptions{Level: slog.LevelDebug}))
	oo := operations.Options{
		Client: kube, Access: operations.ClusterAccess{Client: kube}, Database: r.pool, Keys: unhurriedKeys{idempotency.NewPostgres(r.pool, idempotency.Options{Lease: patience})},
		Decider: r.decider, Abandoner: r.abandoner, Callbacks: r.answers, Logger: log, Poll: 5 * time.Millisecond,
	}
	so := Options{Authenticator: NewAuthenticator(unhurried{kube}, []string{audience}, nil), Logger: log, Version: "test", Limits: generous()}
	for _, h := range how {
		h(&oo, &so)
	}
	so.Operations, err = operations.New(oo)
	r.ok(err)
	r.server, err = New(so)
	r.ok(err)
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	r.ok(err)
	r.base = "https://" + l.Addr().String()
	r.speak(true)
	r.background(func(ctx context.Context) {
		if err := r.server.Serve(ctx, l); err != nil {
			r.Errorf("serving: %v", err)
		}
	})
}

// generous are limits that no test meets that does not set its own.
func generous() Limits {
	const most = 1_000_000
	return Limits{
		UserRate: most, AddressRate: most, HeaderTimeout: patience, ReadTimeout: patience, IdleTimeout: patience, Timeout: patience, WriteTimeout: patience, StreamWriteTimeout: patience,
	}
}

// unhurried is a cluster that is asked about tokens for as long as it takes, and unhurriedKeys keep answers likewise: the API's own bounds are for those that hang.
type unhurried struct{ client.Client }

func (u unhurried) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	return u.Client.Create(context.WithoutCancel(ctx), o, opts...)
}

type unhurriedKeys struct{ operationsKeys }

func (u unhurriedKeys) Complete(ctx context.Context, c idempotency.Claim, a idempotency.Response) error {
	return u.operationsKeys.Complete(context.WithoutCancel(ctx), c, a)
}

func (u unhurriedKeys) Fail(ctx context.Context, c idempotency.Claim, a idempotency.Response) error {
	return u.operationsKeys.Fail(context.WithoutCancel(ctx), c, a)
}

func (u unhurriedKeys) Release(ctx context.Context, c idempotency.Claim) error {
	return u.operationsKeys.Release(context.WithoutCancel(ctx), c)
}

// speak makes a client that speaks HTTP/2 or only HTTP/1.1.
func (r *rig) speak(http2 bool) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: protocols}
	r.http = &http.Client{Transport: transport, Timeout: patience}
	r.Cleanup(transport.CloseIdleConnections)
}

func (r *rig) namespace() string {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}
	r.ok(r.admin.Create(r.Context(), ns))
	return ns.Name
}

// granted is one right that each of the operator's ClusterRoles has, and no other of them.
var granted = map[string]operations.Permission{
	"saga-viewer": {Verb: "get"}, "saga-editor": {Verb: "create"}, "saga-decider": {Verb: "update", Subresource: "decide"}, "saga-abandoner": {Verb: "update", Subresource: "abandon"},
}

// account makes a ServiceAccount that has some of the operator's ClusterRoles in namespaces, and returns its name for RBAC.
func (r *rig) account(name string, in string, roles ...string) *corev1.ServiceAccount {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: name}}
	r.ok(r.admin.Create(r.Context(), account))
	for _, role := range roles {
		r.bind(account, in, role)
	}
	return account
}

func (r *rig) bind(account *corev1.ServiceAccount, in, role string) *rbacv1.RoleBinding {
	b := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: account.Name + "-" + role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: account.Namespace, Name: account.Name}},
	}
	r.ok(r.admin.Create(r.Context(), b))
	who, right := operations.Caller{Name: "system:serviceaccount:" + account.Namespace + ":" + account.Name}, granted[role]
	right.Namespace = in
	r.until(role+" is bound, also in the eyes of the API server's authorizer", func() bool {
		return operations.ClusterAccess{Client: r.admin}.Allowed(r.Context(), who, right) == nil
	})
	return b
}

// good reports whether the API server takes a token for the API's audience.
func (r *rig) good(token string) bool {
	r.Helper()
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}}}
	r.ok(r.admin.Create(r.Context(), review))
	return review.Status.Authenticated
}

// token is a token of an account for some audiences; none is the API server's own.
func (r *rig) token(account *corev1.ServiceAccount, audiences ...string) string {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
	r.ok(r.admin.SubResource("token").Create(r.Context(), account, request))
	return request.Status.Token
}

// editor is the token of somebody who may edit and view the sagas of the rig's namespace.
func (r *rig) editor() string {
	return r.token(r.account("editor-"+uuid.NewString()[:8], r.ns, "saga-viewer", "saga-editor"), audience)
}

// call is a request.
type call struct {
	method, path, token, body string
	header                    http.Header
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) problem(t testing.TB) Problem {
	t.Helper()
	var p Problem
	if got := a.header.Get("Content-Type"); got != problemJSON {
		t.Fatalf("status %d has Content-Type %s and body %.300s", a.status, got, a.body)
	}
	if err := json.Unmarshal(a.body, &p); err != nil || p.Status != a.status {
		t.Fatalf("problem %s: %v", a.body, err)
	}
	return p
}

func (a answer) saga(t testing.TB) v1.Saga {
	t.Helper()
	var s v1.Saga
	if err := json.Unmarshal(a.body, &s); err != nil || a.status >= http.StatusMultipleChoices {
		t.Fatalf("status %d, body %.500s: %v", a.status, a.body, err)
	}
	return s
}

func (r *rig) request(c call) *http.Request {
	r.Helper()
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(context.Background(), c.method, r.base+strings.ReplaceAll(c.path, "/NS/", "/"+r.ns+"/"), body)
	r.ok(err)
	if c.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for name, values := range c.header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	return req
}

// do sends a request and holds its answer against the document.
func (r *rig) do(c call) answer {
	r.Helper()
	req := r.request(c)
	res, err := r.http.Do(req)
	r.ok(err)
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	r.ok(err)
	res.Body = io.NopCloser(bytes.NewReader(body))
	r.check(req, res)
	return answer{res.StatusCode, res.Header, body}
}

func (r *rig) check(req *http.Request, res *http.Response) {
	r.Helper()
	for _, must := range []string{"X-Request-Id", "X-Content-Type-Options", "Cache-Control"} {
		if res.Header.Get(must) == "" {
			r.Errorf("%s %s: the answer has no %s", req.Method, req.URL.Path, must)
		}
	}
	res.Header.Set("X-Test-Operation", r.server.operationOf(req))
	check(r, r.server.documentJSON, req, res)
	res.Header.Del("X-Test-Operation")
}

// operationOf is the id of the operation that a request is for.
func (s *Server) operationOf(req *http.Request) string {
	if path.Clean(req.URL.Path) != req.URL.Path {
		return noOperation
	}
	_, pattern := s.mux.Handler(req)
	if op := s.operations[pattern]; op != nil {
		return op.id
	}
	return noOperation
}

const spec = `{"steps":[{"name":"reserve","http":{"method":"POST","url":"http://inventory.example/reservations"},"compensation":{"http":{"method":"DELETE","url":"http://inventory.example/reservations"}}}]}`

func manifest(name string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q},"spec":%s}`, name, spec)
}

// create creates a saga by the API.
func (r *rig) create(token, name string) v1.Saga {
	r.Helper()
	a := r.do(call{method: "POST", path: "/v1/namespaces/NS/sagas", token: token, body: manifest(name), header: key(uuid.NewString())})
	if a.status != http.StatusCreated {
		r.Fatalf("creating %s: %d %s", name, a.status, a.body)
	}
	return a.saga(r)
}

func key(k string) http.Header { return http.Header{"Idempotency-Key": {k}} }

// phase writes where a saga stands, as the reconciler does.
func (r *rig) phase(name string, phase v1.SagaPhase) {
	r.Helper()
	patch := fmt.Sprintf(`{"status":{"phase":%q}}`, phase)
	s := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: name}}
	r.ok(r.admin.Status().Patch(r.Context(), s, client.RawPatch("application/merge-patch+json", []byte(patch))))
}

// remove has the object of a saga be gone.
func (r *rig) remove(name string) {
	r.Helper()
	s := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: name}}
	r.ok(client.IgnoreNotFound(r.admin.Patch(r.Context(), s, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))))
	r.ok(client.IgnoreNotFound(r.admin.Delete(r.Context(), s)))
	r.until("saga "+name+" is gone", func() bool { return apierrors.IsNotFound(r.admin.Get(r.Context(), client.ObjectKeyFromObject(s), s)) })
}

var began = time.Date(2030, 5, 6, 12, 0, 0, 0, time.UTC)

func at(n int) saga.At { return saga.At{At: began.Add(time.Duration(n) * time.Second)} }

func attempted(n int) saga.Event {
	return saga.AttemptStarted{At: at(n), Attempt: saga.Attempt{EffectID: saga.EffectID{Step: "reserve", Direction: saga.Action}, Number: n}}
}

// happened appends events to a saga's stream.
func (r *rig) happened(uid string, facts ...saga.Event) eventstore.Token {
	r.Helper()
	a := eventstore.Append{Stream: "saga-" + uid, Expected: eventstore.AnyVersion}
	for _, f := range facts {
		kind, schema, data, err := saga.Marshal(f)
		r.ok(err)
		a.Events = append(a.Events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: kind, SchemaVersion: schema, Data: data})
	}
	done, err := r.store.Append(context.Background(), a)
	r.ok(err)
	return done.Token
}

// shown waits until the history shows a write.
func (r *rig) shown(token eventstore.Token) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for projection.Wait(ctx, r.pool, "saga_history", token) != nil { // its first generation is not there yet
		select {
		case <-ctx.Done():
			r.Fatal("the history does not show what has happened")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// fakeDecider notes decisions and answers as it is told.
type fakeDecider struct {
	mu   sync.Mutex
	fail error
	all  []saga.Decision
	keys []engine.Key
}

func (d *fakeDecider) Decide(_ context.Context, k engine.Key, s saga.Decision) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all, d.keys = append(d.all, s), append(d.keys, k)
	return d.fail
}

// fakeCallbacks notes answers and answers as it is told.
type fakeCallbacks struct {
	mu   sync.Mutex
	fail error
	all  []engine.CallbackAnswer
}

func (c *fakeCallbacks) Answer(_ context.Context, _ string, a engine.CallbackAnswer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, a)
	return c.fail
}

func (c *fakeCallbacks) failWith(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

// lockedBuffer is a log that is written and read at once.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// until asks again and again.
func (r *rig) until(what string, so func() bool) {
	r.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			r.Fatalf("after %s it is not so that %s", patience, what)
		}
	}
}

// createAs creates a saga directly, with annotations, and returns who is said to have created it.
func (r *rig) createAs(config *rest.Config, name string, annotations map[string]string) string {
	r.Helper()
	kube, err := typedClient(config)
	r.ok(err)
	var s v1.Saga
	r.ok(json.Unmarshal([]byte(manifest(name)), &s))
	s.Namespace, s.Annotations = r.ns, annotations
	if err := kube.Create(r.Context(), &s); err != nil {
		return err.Error()
	}
	return s.Annotations[v1.CreatedByAnnotation]
}

type operationsKeys = cqrs.IdempotencyStore

// Complete fails until remember is called.
func (f *forgetful) Complete(ctx context.Context, c idempotency.Claim, a idempotency.Response) error {
	if !f.remembers.Load() {
		return errors.New("lost")
	}
	return f.operationsKeys.Complete(ctx, c, a)
}

func (f *forgetful) remember() { f.remembers.Store(true) }
