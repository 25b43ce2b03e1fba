package run

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// hub is an HTTP destination for messages that takes them for a token, while it is open.
type hub struct {
	mu    sync.Mutex
	token string
	open  bool
	types map[string][]string // by what the message is about, in the order of their arrival
	known map[string]bool     // by the ID of the message, which may come more than once
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.open:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case r.Header.Get("Authorization") != "Bearer "+h.token:
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if id := r.Header.Get("Ce-Id"); r.Method == http.MethodPost && !h.known[id] {
		h.known[id] = true
		subject := r.Header.Get("Ce-Subject")
		h.types[subject] = append(h.types[subject], r.Header.Get("Ce-Type"))
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *hub) setOpen(open bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = open
}

// got returns the types of the messages about a saga, in their order.
func (h *hub) got(o *v1.Saga) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for subject, types := range h.types {
		if strings.Contains(subject, string(o.UID)) || strings.Contains(subject, o.Name) {
			return slices.Clone(types)
		}
	}
	return nil
}

// TestMessagesOfSagasArriveAtASink runs the whole operator, with no more rights than it is given: what a saga does is told to an HTTP destination, in its order, also when that
// was away meanwhile. It is not parallel: what the libraries log goes where the latest operator of the process logs.
func TestMessagesOfSagasArriveAtASink(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{})
	participants := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"id":"1"}`) }))
	t.Cleanup(participants.Close)
	h := &hub{token: "a-token-for-the-hub", open: true, types: map[string][]string{}, known: map[string]bool{}}
	destination := httptest.NewServer(h)
	t.Cleanup(destination.Close)
	log := &lockedBuffer{}
	stop := operatorProcess(t, log, throwaway.Database(t), "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address=0", "--api-bind-address=0", "--egress-allow=127.0.0.0/8", "--log-format=text", "--log-level=debug", "--outbox-shards=2")
	defer func() {
		if err := stop(); err != nil || t.Failed() || strings.Contains(log.String(), "forbidden") {
			t.Errorf("the operator ended: %v; its log, in which nothing should be forbidden:\n%s", err, log)
		}
		if strings.Contains(log.String(), h.token) {
			t.Error("the log shows the token")
		}
	}()

	kube := newClient(t, kubernetes)
	letReadSecrets(t, kubernetes, "default")
	s := sinkOf(t, kube, destination.URL, h.token)
	waitSink(t, kube, s, func(st *v1.SinkStatus) bool { return holds(st, "Ready", "Ready") })

	first := create(t, kube, "first", participants.URL)
	waitCompleted(t, kube, first)
	eventually(t, func() error { return complete(h.got(first)) })
	waitSink(t, kube, s, func(st *v1.SinkStatus) bool { return *st.Published >= 2 && *st.Backlog == 0 && st.LastError == nil })

	h.setOpen(false)
	second := create(t, kube, "second", participants.URL)
	waitCompleted(t, kube, second)
	waitSink(t, kube, s, func(st *v1.SinkStatus) bool { return holds(st, "Busy", "") && *st.Backlog > 0 && st.LastError != nil })
	h.setOpen(true)
	eventually(t, func() error { return complete(h.got(second)) })
	if diff := cmp.Diff(h.got(first), h.got(second)); diff != "" {
		t.Errorf("what was told of two sagas alike (-first +second):\n%s", diff)
	}
	waitSink(t, kube, s, func(st *v1.SinkStatus) bool {
		return holds(st, "Ready", "Ready") && *st.Backlog == 0 && *st.DeadLetters == 0
	})
}

// processArguments is the variable by which a process of this test's binary is told to be an operator, and with which arguments.
const processArguments = "OPERATOR_PROCESS_ARGUMENTS"

// operatorProcess runs an operator in a process of its own, since metrics are one process' and this one has an operator already. It ends when stop is called, or this process
// does.
func operatorProcess(t *testing.T, log io.Writer, dsn string, args ...string) (stop func() error) {
	t.Helper()
	_, stop = clockedProcess(t, log, dsn, args...)
	return stop
}

// clockedProcess is operatorProcess on a machine whose clock can be set: set has it be ahead of the time.
func clockedProcess(t *testing.T, log io.Writer, dsn string, args ...string) (set func(ahead time.Duration), stop func() error) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run=^TestAnOperatorInAProcessOfItsOwn$")
	// Sagas have long timeouts, because a slow machine must not end an attempt.
	args = append(args, "--shutdown-grace", patience.String(), "--max-attempt-timeout=30m")
	cmd.Env = append(os.Environ(), processArguments+"="+strings.Join(args, "\n"), "DATABASE_URL="+dsn)
	cmd.Stdout, cmd.Stderr = log, log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	set = func(ahead time.Duration) {
		if _, err := fmt.Fprintln(stdin, ahead); err != nil {
			t.Error(err)
		}
	}
	return set, func() error {
		_ = stdin.Close()
		return cmd.Wait()
	}
}

// TestAnOperatorInAProcessOfItsOwn is that process. It ends with its standard input, whose lines say how
// far its clock is ahead.
func TestAnOperatorInAProcessOfItsOwn(t *testing.T) {
	args, asked := os.LookupEnv(processArguments)
	if !asked {
		t.Skip("it is run by other tests")
	}
	ctx, stop := context.WithCancel(t.Context())
	var ahead atomic.Int64
	go func() {
		defer stop()
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			if d, err := time.ParseDuration(lines.Text()); err == nil {
				ahead.Store(int64(d))
			}
		}
	}()
	wall := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	if code := mainWith(ctx, strings.Split(args, "\n"), os.LookupEnv, os.Stdout, os.Stderr, wall); code != exitOK {
		t.Errorf("the operator ended with exit code %d", code)
	}
}

func TestTheShardsOfASinkHaveBounds(t *testing.T) {
	t.Parallel()
	env := environ("DATABASE_URL", databaseURL)
	if c, err := Parse(nil, env, t.Output()); err != nil || c.OutboxShards != 4 {
		t.Errorf("%d shards by default (%v)", c.OutboxShards, err)
	}
	for _, n := range []string{"0", "65"} {
		if _, err := Parse([]string{"--outbox-shards=" + n}, env, t.Output()); err == nil || !strings.Contains(err.Error(), "--outbox-shards") {
			t.Errorf("%s shards: error %v, want one that names --outbox-shards", n, err)
		}
	}
}

// sinkOf creates a sink with its Secret.
func sinkOf(t *testing.T, kube client.Client, url, token string) *v1.Sink {
	t.Helper()
	secret := &corev1.Secret{StringData: map[string]string{"token": token}}
	secret.Namespace, secret.Name, secret.Annotations = "default", "hub", map[string]string{v1.SecretHostsAnnotation: "127.0.0.1"}
	s := &v1.Sink{}
	s.Namespace, s.Name = "default", "hub"
	s.Spec = v1.SinkSpec{HTTP: &v1.HTTPSink{URL: url}, AllowPlaintextCredentials: true, Credentials: &v1.SinkCredentials{SecretRef: v1.SinkSecretReference{Name: "hub"}}}
	for _, o := range []client.Object{secret, s} {
		if err := kube.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func waitSink(t *testing.T, kube client.Client, s *v1.Sink, ok func(*v1.SinkStatus) bool) {
	t.Helper()
	began := time.Now()
	eventually(t, func() error {
		if err := kube.Get(t.Context(), client.ObjectKeyFromObject(s), s); err != nil {
			return err
		}
		if st := &s.Status; st.Published == nil || st.Backlog == nil || st.DeadLetters == nil || !ok(st) {
			return fmt.Errorf("the status of the sink is %+v", s.Status)
		}
		return nil
	})
	t.Logf("after %s: %+v", time.Since(began).Round(time.Millisecond), s.Status)
}

// holds reports whether a sink is ready, or not, for a reason.
func holds(st *v1.SinkStatus, reason, ready string) bool {
	for _, c := range st.Conditions {
		if c.Type == v1.ConditionReady {
			return c.Reason == reason && (c.Status == "True") == (ready != "")
		}
	}
	return false
}

// complete checks that the messages of a saga begin with its start and end with its end.
func complete(types []string) error {
	if n := len(types); n < 2 || !strings.HasSuffix(types[0], "Started") || !strings.HasSuffix(types[n-1], "Completed") {
		return fmt.Errorf("the messages are %v", types)
	}
	return nil
}
