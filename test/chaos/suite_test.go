// Package chaos kills, stops and misleads what the operator stands on, and looks at what is left: the real operator as a process of its own, a real API server,
// PostgreSQL and participants over HTTP. CHAOS=long runs it with longer outages and more rounds.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
	"github.com/vextrus/saga-operator/test/operator"
)

// patience bounds every wait for a state, and every attempt at what has to succeed: nobody waits that long where all is well.
const patience = 10 * time.Minute

// long reports whether the long form was asked for.
var long = os.Getenv("CHAOS") == "long"

// The tests of this package follow each other, and share what takes long to start. Each has a namespace, a database and operators of its own.
var (
	api      *cluster.Cluster
	workshop *operator.Workshop
	k8s      client.Client
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	code, err := runSuite(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func runSuite(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience) // of building the operator, too
	defer cancel()
	if api, err = cluster.Start(ctx, cluster.Options{ControllerManager: true}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, api.Stop()) }()
	if workshop, err = operator.NewWorkshop(ctx); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, workshop.Close()) }()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1.AddToScheme(scheme)); err != nil {
		return 1, err
	}
	config := rest.CopyConfig(api.Config)
	config.WarningHandler = rest.NoWarnings{}
	if k8s, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return 1, err
	}
	return throwaway.Main(m), nil
}

// scene is what one test plays in.
type scene struct {
	t         *testing.T
	namespace string
	dsn       string
	pool      *pgxpool.Pool
	shop      *shop
	args      []string
}

// newScene makes a namespace and participants beside a database.
func newScene(t *testing.T, dsn string) *scene {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	s := &scene{t: t, namespace: name[:min(len(name), 50)], dsn: dsn, shop: newShop(t)}
	if err := k8s.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}); err != nil {
		t.Fatal(err)
	}
	s.args = []string{"--namespaces", s.namespace}
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: dsn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s.pool = pool
	return s
}

// operator starts the operator and waits until it is ready. It is stopped when the test ends.
func (s *scene) operator() *operator.Process {
	s.t.Helper()
	return s.operatorOf("")
}

// operatorOf starts a binary of the operator; the one of this source by default.
func (s *scene) operatorOf(binary string) *operator.Process {
	s.t.Helper()
	// They are variables because the version before does not know the flags.
	limits := []string{"SAGA_MAX_ATTEMPT_TIMEOUT=1h", "SAGA_MIN_BACKOFF=50ms"}
	p, err := workshop.Start(s.t.Context(), operator.Options{Config: api.Config, DatabaseURL: s.dsn, Args: s.args, Env: limits, Binary: binary})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("the operator's log ends with:\n%s", p.Tail())
		}
		if err := p.Stop(); err != nil && p.Running() {
			s.t.Error(err)
		}
	})
	if err := p.AwaitReady(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// apply creates sagas of three steps.
func (s *scene) apply(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if err := k8s.Create(s.t.Context(), s.saga(name)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// saga is a saga of the steps a, b and c at this scene's participants.
func (s *scene) saga(name string) *v1.Saga {
	saga := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}}
	request := func(method v1.HTTPMethod, step string) *v1.HTTPRequest {
		return &v1.HTTPRequest{Method: method, URL: s.shop.url + "/" + name + "/" + step}
	}
	for _, step := range []string{"a", "b", "c"} {
		do := request("POST", step)
		do.Body = &v1.JSON{Raw: []byte(`{"saga": "${saga.name}", "step": "` + step + `"}`)}
		retry := &v1.Retry{MaxAttempts: 50, InitialBackoff: &metav1.Duration{Duration: 50 * time.Millisecond}, MaxBackoff: &metav1.Duration{Duration: 500 * time.Millisecond}}
		saga.Spec.Steps = append(saga.Spec.Steps, v1.Step{
			Name: step, Effect: v1.Effect{HTTP: do, Retry: retry, AttemptTimeout: &metav1.Duration{Duration: patience}},
			Compensation: &v1.Effect{HTTP: request("DELETE", step), Retry: retry, AttemptTimeout: &metav1.Duration{Duration: patience}},
		})
	}
	return saga
}

// get looks at a saga's object.
func (s *scene) get(name string) *v1.Saga {
	s.t.Helper()
	saga := &v1.Saga{}
	if err := k8s.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, saga); err != nil {
		s.t.Fatal(err)
	}
	return saga
}

// eventually waits until something holds; what it returns otherwise is shown when it never does.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		<-tick.C
	}
}

// ended waits until sagas have ended in a phase, as their objects show it.
func (s *scene) ended(phase v1.SagaPhase, names ...string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d sagas are %s", len(names), phase), func() error {
		list := &v1.SagaList{}
		if err := k8s.List(s.t.Context(), list, client.InNamespace(s.namespace)); err != nil {
			return err
		}
		return allEnded(list.Items, phase, names)
	})
}

// allEnded fails with one of the sagas that have not ended in a phase, or are not there.
func allEnded(sagas []v1.Saga, phase v1.SagaPhase, names []string) error {
	byName := map[string]*v1.Saga{}
	for i := range sagas {
		byName[sagas[i].Name] = &sagas[i]
	}
	for _, name := range names {
		switch saga := byName[name]; {
		case saga == nil:
			return fmt.Errorf("%s is not there", name)
		case saga.Status.Phase != phase:
			return fmt.Errorf("%s is %s (%s)", name, saga.Status.Phase, saga.Status.Reason)
		}
	}
	return nil
}

func TestASagaThatIsNotThereHasNotEnded(t *testing.T) {
	completed := v1.Saga{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Status: v1.SagaStatus{Phase: v1.PhaseCompleted}}
	for _, sagas := range [][]v1.Saga{nil, {completed}} {
		if err := allEnded(sagas, v1.PhaseCompleted, []string{"a", "b"}); err == nil {
			t.Errorf("of %d sagas two have ended", len(sagas))
		}
	}
	if err := allEnded([]v1.Saga{completed}, v1.PhaseCompleted, []string{"a"}); err != nil {
		t.Error(err)
	}
}

// recorded waits until an event of a type, and of a step where one is given, is in the database.
func (s *scene) recorded(typ, step string) {
	s.t.Helper()
	eventually(s.t, "recorded "+typ+" "+step, func() error {
		var n int
		err := s.pool.QueryRow(s.t.Context(), `SELECT count(*) FROM event_store WHERE type = $1 AND ($2 = '' OR data->>'step' = $2)`, typ, step).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("no such event")
		}
		return err
	})
}

// verify reads every stream as somebody would who knows nothing of how it came about, and compares with what the participants saw.
func (s *scene) verify(sagas int) {
	s.t.Helper()
	rows, err := s.pool.Query(s.t.Context(), `
		SELECT s.stream, s.version, count(e.*), min(e.version), max(e.version), st.version, st.phase,
		       count(*) FILTER (WHERE e.type IN ('SagaCompleted', 'SagaCompensated'))
		FROM streams s JOIN event_store e USING (stream) JOIN saga_state st ON s.stream = 'saga-' || st.uid
		GROUP BY s.stream, s.version, st.version, st.phase`)
	if err != nil {
		s.t.Fatal(err)
	}
	var stream, phase string
	var version, events, first, last, state, ends int64
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&stream, &version, &events, &first, &last, &state, &phase, &ends}, func() error {
		n++
		if events != version || first != 1 || last != version || state != version || ends != 1 {
			s.t.Errorf("%s (%s) is at version %d with events %d to %d, %d of them, %d ends, and a state of version %d", stream, phase, version, first, last, events, ends, state)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if n != sagas {
		s.t.Errorf("%d sagas are recorded, want %d", n, sagas)
	}
	s.shop.verify()
}

// names makes so many names.
func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return all
}
