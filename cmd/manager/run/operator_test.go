package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/ports"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// patience bounds every wait, and whatever the operator and its participants are given to do things in that have to succeed.
const patience = 10 * time.Minute

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

// TestTheOperatorStartsWithoutItsDatabaseAndWorksWhenItComes runs the whole operator, as the binary does, on a database that is away at first.
func TestTheOperatorStartsWithoutItsDatabaseAndWorksWhenItComes(t *testing.T) {
	t.Parallel()
	kubernetes := cluster.New(t, cluster.Options{})
	log := &lockedBuffer{}
	dsn, openDoor := behindDoor(t, throwaway.EmptyDatabase(t))
	service := newSlowService(t)
	health := freeAddress(t)

	kubeconfig := leastPrivileged(t, kubernetes)

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, []string{
			"--kubeconfig", kubeconfig, "--lease-namespace=saga-system", "--health-address", health, "--metrics-address=0", "--api-bind-address=0",
			"--egress-allow=127.0.0.0/8", "--max-attempt-timeout=30m", "--log-format=text", "--log-level=debug", "--shutdown-grace", patience.String(),
		}, environ("DATABASE_URL", dsn), log, log)
	}()
	defer stop()

	eventually(t, func() error { return ready(t, health, http.StatusServiceUnavailable, "[-] database:") })
	if code, body := ask(t, health, "/healthz"); code != http.StatusOK {
		t.Errorf("the operator is not alive while its database is away: %d %s", code, body)
	}
	openDoor()
	eventually(t, func() error { return ready(t, health, http.StatusOK, "[+] schema: ok") })
	kube := newClient(t, kubernetes)
	waitCompleted(t, kube, create(t, kube, "quick", service.URL+"/quick"))
	waitExpired(t, kube, create(t, kube, "brief", service.URL+"/brief"))

	// Nobody reaches the API server through the operator, although its address is one that the administrator has allowed.
	refused := create(t, kube, "hostile", strings.TrimSuffix(kubernetes.Config.Host, "/")+"/api/v1/secrets")
	eventually(t, func() error {
		if err := kube.Get(t.Context(), client.ObjectKeyFromObject(refused), refused); err != nil {
			return err
		}
		if f := refused.Status.Failure; f == nil || f.Cause != "StepRejected" || f.Reason != "EgressDenied" {
			return fmt.Errorf("a saga with the API server as its participant is %s: %+v", refused.Status.Phase, f)
		}
		return nil
	})

	// Told to stop, it lets the attempt that is under way end, and records what it came to.
	last := create(t, kube, "slow", service.URL+"/slow")
	service.awaitRequest()
	stop()
	eventually(t, func() error {
		return ready(t, health, http.StatusServiceUnavailable, "[-] running: the operator is stopping")
	})
	eventually(t, func() error {
		if !strings.Contains(log.String(), `msg="All workers finished" controller=saga`) {
			return errors.New("sagas are still reconciled, which would record the outcome, too")
		}
		return nil
	})
	service.answer()
	select {
	case code := <-ended:
		if code != exitOK {
			t.Errorf("the operator ended with exit code %d", code)
		}
	case <-time.After(patience):
		t.Fatal("the operator did not end")
	}
	if got := history(t, dsn, last); !slices.Contains(got, "AttemptSucceeded") {
		t.Errorf("the attempt that was under way when the operator was told to stop is not recorded: %v", got)
	}
	if text := log.String(); strings.Contains(text, "forbidden") || t.Failed() {
		t.Errorf("the operator's log, in which nothing should be forbidden:\n%s", text)
	}
	password, _ := mustParse(t, dsn).User.Password()
	if password != "" && strings.Contains(log.String(), password) {
		t.Error("the log shows the password of the database")
	}
}

// slowService is a participant that holds what it is asked at /slow until it is told to answer.
type slowService struct {
	*httptest.Server
	t               *testing.T
	asked, answered chan struct{}
	answer          func()
}

func newSlowService(t *testing.T) *slowService {
	t.Helper()
	s := &slowService{t: t, asked: make(chan struct{}), answered: make(chan struct{})}
	s.answer = sync.OnceFunc(func() { close(s.answered) })
	asked := sync.OnceFunc(func() { close(s.asked) })
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			asked()
			<-s.answered
		}
		_, _ = io.WriteString(w, `{"id":"1"}`)
	}))
	t.Cleanup(s.Close)
	t.Cleanup(s.answer) // before that
	return s
}

// awaitRequest waits until it is asked at /slow.
func (s *slowService) awaitRequest() {
	s.t.Helper()
	select {
	case <-s.asked:
	case <-time.After(patience):
		s.t.Fatal("the participant is not asked")
	}
}

// leastPrivileged returns the kubeconfig of the account that config/ makes for the operator.
func leastPrivileged(t *testing.T, kubernetes *cluster.Cluster) string {
	t.Helper()
	for _, file := range []string{"default/namespace.yaml", "rbac/service_account.yaml", "rbac/role.yaml", "rbac/leader_election_role.yaml", "rbac/secret_reader_role.yaml"} {
		manifest, err := os.ReadFile("../../../config/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if err := kubernetes.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	account, err := kubernetes.ServiceAccount(t.Context(), "saga-system", "saga-operator")
	if err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(kubernetes.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, right := range []authorizationv1.ResourceAttributes{
		{Group: "saga.vextrus.io", Resource: "sagas", Verb: "list"}, {Group: "coordination.k8s.io", Resource: "leases", Verb: "update", Namespace: "saga-system", Name: "saga-operator"},
	} {
		eventually(t, func() error { // the authorizer learns of roles by watching
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "system:serviceaccount:saga-system:saga-operator", ResourceAttributes: &right}}
			err := admin.Create(t.Context(), review)
			if err == nil && !review.Status.Allowed {
				err = fmt.Errorf("the operator may not %s %s yet", right.Verb, right.Resource)
			}
			return err
		})
	}
	text, err := cluster.Kubeconfig(account)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
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

func mustParse(t *testing.T, dsn string) *url.URL {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// patient is the URL of a database at which nothing fails for being slow: who runs a command once has no second try.
func patient(t *testing.T, dsn string) string {
	t.Helper()
	u := mustParse(t, dsn)
	q := u.Query()
	q.Set("connect_timeout", fmt.Sprint(int(patience.Seconds())))
	for _, limit := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		q.Set(limit, fmt.Sprint(patience.Milliseconds()))
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func newClient(t *testing.T, kubernetes *cluster.Cluster) client.Client {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	kube, err := client.New(kubernetes.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

func create(t *testing.T, kube client.Client, name, url string) *v1.Saga {
	t.Helper()
	o := &v1.Saga{}
	o.Namespace, o.Name = "default", name
	if err := yaml.UnmarshalStrict(fmt.Appendf(nil, `steps: [{name: a, attemptTimeout: 30m, http: {method: POST, url: "%s"}}]`, url), &o.Spec); err != nil {
		t.Fatal(err)
	}
	if err := kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return o
}

func waitCompleted(t *testing.T, kube client.Client, o *v1.Saga) {
	t.Helper()
	eventually(t, func() error {
		if err := kube.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		if o.Status.Phase != v1.PhaseCompleted {
			return fmt.Errorf("the saga is %s: %s", o.Status.Phase, o.Status.Reason)
		}
		return nil
	})
}

// waitExpired gives a saga no time to live after its end, and waits until it is gone.
func waitExpired(t *testing.T, kube client.Client, o *v1.Saga) {
	t.Helper()
	if err := kube.Patch(t.Context(), o, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"ttlAfterFinished":"0s"}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		err := kube.Get(t.Context(), client.ObjectKeyFromObject(o), o)
		if err == nil {
			return fmt.Errorf("the saga %s (%s) is still there", o.Name, o.Status.Phase)
		}
		return client.IgnoreNotFound(err)
	})
}

// history returns the types of a saga's events.
func history(t *testing.T, dsn string, o *v1.Saga) []string {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: dsn})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	events, err := storepg.New(pool).Load(t.Context(), engine.StreamOf(string(o.UID)), 1, 100)
	if err != nil {
		t.Fatal(err)
	}
	types := make([]string, len(events))
	for i, e := range events {
		types[i] = e.Type
	}
	return types
}

// recorded returns nil when an event of a type is in a saga's history.
func recorded(t *testing.T, dsn string, o *v1.Saga, event string) error {
	t.Helper()
	if got := history(t, dsn, o); !slices.Contains(got, event) {
		return fmt.Errorf("the history of %s is %v, without %s", o.Name, got, event)
	}
	return nil
}

// behindDoor returns a URL of a database at which nobody listens until the door is opened.
func behindDoor(t *testing.T, dsn string) (behind string, open func()) {
	t.Helper()
	u := mustParse(t, dsn)
	server, door := u.Host, freeAddress(t)
	u.Host = door
	return u.String(), func() {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", door)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go forward(c, server)
			}
		}()
	}
}

func forward(c net.Conn, to string) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	go func() {
		_, _ = io.Copy(s, c)
		_ = s.Close()
	}()
	_, _ = io.Copy(c, s)
}

// freeAddress is one that nobody else takes while the test runs.
func freeAddress(t *testing.T) string {
	t.Helper()
	p, err := ports.Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Release)
	return p.Address()
}

func ready(t *testing.T, address string, code int, line string) error {
	t.Helper()
	got, body := ask(t, address, "/readyz")
	if got != code || !strings.Contains(body, line) {
		return fmt.Errorf("readiness is %d, want %d and %q:\n%s", got, code, line, body)
	}
	return nil
}

func ask(t *testing.T, address, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(body)
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited too long: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}
