package operator_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/ports"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
	"github.com/vextrus/saga-operator/test/operator"
)

// memoryLimit is the memory limit of the operator's container (config/manager), in bytes. The
// kernel kills a process that exceeds it.
const memoryLimit = 512 << 20

// target is an operator that runs in its own process, with the credentials of the users of its API.
type target struct {
	*testing.T
	process *operator.Process
	restart func()
	admin   client.Client
	address string            // of the API
	tokens  map[string]string // bearer tokens by user
}

// newTarget starts the operator with newTargetWith. It allows attempts that take longer than a slow
// machine does.
func newTarget(t *testing.T, users ...string) *target {
	t.Helper()
	return newTargetWith(t, []string{"--max-attempt-timeout", "1h"}, users...)
}

// newTargetWith starts the operator with memoryLimit as its GOMEMLIMIT, and with further flags. Each
// user is a service account that may edit the sagas of one namespace, which has the user's name.
func newTargetWith(t *testing.T, flags []string, users ...string) *target {
	t.Helper()
	kubernetes := cluster.New(t, cluster.Options{Manifests: []string{
		"../../config/rbac/saga_viewer_role.yaml", "../../config/rbac/saga_editor_role.yaml",
	}})
	workshop, err := operator.NewWorkshop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = workshop.Close() })
	port, err := ports.Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(port.Release)
	a := &target{T: t, address: port.Address(), tokens: map[string]string{}}
	for _, user := range users {
		account, err := kubernetes.ServiceAccount(t.Context(), user, "editor")
		if err != nil {
			t.Fatal(err)
		}
		a.tokens[user] = account.BearerToken
		for _, role := range []string{"saga-viewer", "saga-editor"} {
			binding := fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":%q,"namespace":%q},
				"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":%q},"subjects":[{"kind":"ServiceAccount","name":"editor","namespace":%q}]}`, role, user, role, user)
			if err := kubernetes.Apply(t.Context(), []byte(binding)); err != nil {
				t.Fatal(err)
			}
		}
	}
	scheme := runtime.NewScheme()
	if err := v1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if a.admin, err = client.New(kubernetes.Config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	database := throwaway.EmptyDatabase(t)
	a.restart = func() {
		if a.process != nil {
			a.process.Kill()
		}
		a.process, err = workshop.Start(t.Context(), operator.Options{
			Config: kubernetes.Config, DatabaseURL: database, Env: []string{"GOMEMLIMIT=" + strconv.Itoa(memoryLimit)},
			Args: append([]string{"--api-bind-address", a.address, "--api-insecure-http", "--api-audiences", ""}, flags...),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.process.AwaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.restart()
	t.Cleanup(func() {
		if err := a.process.Stop(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// peakMemory returns the peak resident memory of the operator's process, in bytes.
func (a *target) peakMemory() int64 {
	a.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.process.PID()))
	if err != nil {
		a.Fatalf("reading the memory of the operator: %v\n%s", err, a.process.Tail())
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, "kB")), 10, 64)
	if err != nil {
		a.Fatal(err)
	}
	return kib << 10
}

// checkMemory fails the test if the operator has exited, or if its peak memory exceeds memoryLimit.
// load describes the requests before.
func (a *target) checkMemory(load string) {
	a.Helper()
	if !a.process.Running() {
		a.Fatalf("the operator has exited after %s:\n%s", load, a.process.Tail())
	}
	if peak := a.peakMemory(); peak > memoryLimit {
		a.Errorf("the operator used %d MiB after %s; the limit is %d MiB", peak>>20, load, memoryLimit>>20)
	} else {
		a.Logf("the operator used at most %d MiB after %s", peak>>20, load)
	}
}

// send sends a request and returns the status code of the response, or 0 if there is no response.
func (a *target) send(client *http.Client, method, path, user, key, body string) int {
	ctx, cancel := context.WithTimeout(a.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+a.address+path, strings.NewReader(body))
	if err != nil {
		a.Error(err)
		return 0
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if user != "" {
		req.Header.Set("Authorization", "Bearer "+a.tokens[user])
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := client.Do(req)
	if err != nil {
		return 0 // the operator may close the connection
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// checkServed creates and lists sagas as a user, and fails the test if the API does not serve the
// requests within patience.
func (a *target) checkServed(user, name string) {
	a.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	saga := fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"suspend":true,"steps":[{"name":"a","http":{"method":"POST","url":"http://127.0.0.1:1/"}}]}}`, name)
	for action, request := range map[string]func() int{
		"creating a saga": func() int { return a.send(client, "POST", "/v1/namespaces/"+user+"/sagas", user, name, saga) },
		"listing sagas":   func() int { return a.send(client, "GET", "/v1/namespaces/"+user+"/sagas", user, "", "") },
	} {
		status := 0
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); pause() { // as clients retry 429 and 503
			if status = request(); status == http.StatusOK || status == http.StatusCreated {
				break
			}
		}
		if status != http.StatusOK && status != http.StatusCreated {
			a.Errorf("%s: status %d", action, status)
		}
	}
}

// nestedJSON returns JSON of about the given number of bytes that takes as much memory as possible
// when it is decoded.
func nestedJSON(bytes int) string {
	const one = `{"":{"":0}},`
	return "[" + strings.Repeat(one, bytes/len(one)) + "0]"
}

// concurrently calls run with 0 to n-1 in n goroutines, and waits for all of them.
func concurrently(n int, run func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { run(i) })
	}
	all.Wait()
}

// TestOperatorSurvivesAnonymousRequests attacks the API without a token, as every client that
// reaches its port can.
func TestOperatorSurvivesAnonymousRequests(t *testing.T) {
	a := newTarget(t, "shop")
	a.checkServed("shop", "before")
	a.checkMemory("one saga")

	body := fmt.Sprintf(`{"outcome":"Succeeded","body":%s}`, nestedJSON(1<<20))
	concurrently(80, func(i int) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		a.send(client, "POST", fmt.Sprintf("/v1/callbacks/forged-%d", i), "", "", body)
	})
	a.checkMemory("80 large requests to forged callbacks")

	held := a.openConnections(700, "POST /v1/callbacks/%d HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n")
	a.checkServed("shop", "while-connections-are-held")
	for _, c := range held {
		_ = c.Close()
	}
	a.checkMemory("700 incomplete requests")
	a.checkServed("shop", "afterwards")
}

// openConnections opens n connections and writes a request on each. request is a format for the
// number of the connection.
func (a *target) openConnections(n int, request string) (held []net.Conn) {
	a.Helper()
	for i := range n {
		c, err := new(net.Dialer).DialContext(a.Context(), "tcp", a.address)
		if err != nil {
			a.Fatal(err)
		}
		a.Cleanup(func() { _ = c.Close() })
		_, _ = fmt.Fprintf(c, request, i) // fails if the operator has closed the connection: it limits connections
		held = append(held, c)
	}
	return held
}

// TestOperatorSurvivesHostileUser attacks the API with the rights of a user who may edit the sagas
// of one namespace.
func TestOperatorSurvivesHostileUser(t *testing.T) {
	a := newTarget(t, "shop", "hostile")
	a.checkServed("shop", "before")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	steps := `"suspend":true,"steps":[{"name":"a","http":{"method":"POST","url":"http://127.0.0.1:1/"}}]`
	create := func(name, input string) int {
		return a.send(client, "POST", "/v1/namespaces/hostile/sagas", "hostile", name, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{%s,"input":{"x":%s}}}`, name, steps, input))
	}
	for deadline := time.Now().Add(patience); ; pause() { // below the limit of 50,000 values
		status := create("large", nestedJSON(100<<10))
		if status == http.StatusCreated {
			break
		}
		if status == http.StatusBadRequest || status == http.StatusUnprocessableEntity || status == http.StatusForbidden || time.Now().After(deadline) {
			t.Fatalf("creating a large saga: status %d", status)
		}
	}
	concurrently(90, func(i int) { create(fmt.Sprintf("larger-%d", i), nestedJSON(1<<20)) })
	a.checkMemory("90 requests to create a saga of 1 MiB")
	concurrently(90, func(i int) {
		for range 5 {
			a.send(client, "GET", "/v1/namespaces/hostile/sagas/large", "hostile", "", "")
			a.send(client, "GET", "/v1/namespaces/hostile/sagas?limit=500", "hostile", "", "")
		}
	})
	a.checkMemory("900 requests to read large sagas")

	slow := a.openConnections(300, "POST /v1/namespaces/hostile/sagas HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+a.tokens["hostile"]+
		"\r\nContent-Type: application/json\r\nIdempotency-Key: k-%d\r\nContent-Length: 1000000\r\n\r\n{")
	a.checkServed("shop", "while-bodies-are-slow")
	a.checkMemory("300 incomplete bodies")
	for _, c := range slow {
		_ = c.Close()
	}
}

// pause waits between two polls of a condition.
func pause() { <-time.After(100 * time.Millisecond) }

// startParticipant starts a participant that responds to DELETE with an empty body, and to any
// other request with body, which is JSON. It returns the URL of the participant.
func (a *target) startParticipant(body string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodDelete {
			return
		}
		_, _ = io.WriteString(w, body)
	}))
	a.Cleanup(s.Close)
	return s.URL
}

// createSaga creates a saga with the given steps.
func (a *target) createSaga(namespace, name string, steps ...v1.Step) {
	a.Helper()
	s := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.SagaSpec{Steps: steps}}
	for deadline := time.Now().Add(patience); ; pause() {
		err := a.admin.Create(a.Context(), s)
		if err == nil {
			return
		}
		// Admission knows a new kind later than the storage does.
		if !apierrors.IsServiceUnavailable(err) || time.Now().After(deadline) {
			a.Fatal(err)
		}
	}
}

// stepAt returns a step that calls url. Its output x is the value of an expression.
func stepAt(url, name, expression string) v1.Step {
	undo := &v1.Effect{HTTP: &v1.HTTPRequest{Method: http.MethodDelete, URL: url}}
	return v1.Step{Name: name, Effect: v1.Effect{HTTP: &v1.HTTPRequest{Method: http.MethodPost, URL: url}}, Compensation: undo, Output: map[string]v1.OutputTemplate{"x": v1.OutputTemplate(expression)}}
}

// awaitEnd waits until all sagas of a namespace have completed or are compensated, and returns the
// number of sagas in each phase.
func (a *target) awaitEnd(namespace string) map[v1.SagaPhase]int {
	a.Helper()
	for deadline := time.Now().Add(patience); ; pause() {
		var all v1.SagaList
		if err := a.admin.List(a.Context(), &all, client.InNamespace(namespace)); err != nil {
			a.Fatal(err)
		}
		ended, phases := true, map[v1.SagaPhase]int{}
		for i := range all.Items {
			phase := all.Items[i].Status.Phase
			phases[phase]++
			ended = ended && (phase == v1.PhaseCompleted || phase == v1.PhaseCompensated)
		}
		if ended {
			return phases
		}
		if !a.process.Running() || time.Now().After(deadline) {
			a.Fatalf("sagas by phase: %v; log of the operator:\n%s", phases, a.process.Tail())
		}
	}
}

// TestOperatorSurvivesLargeResponses has sagas whose steps all run in parallel. Their participant
// sends responses of 1 MiB, each of which takes almost all the memory that a namespace has for
// decoding. Every response is decoded: the output of each step is one of its fields.
func TestOperatorSurvivesLargeResponses(t *testing.T) {
	a := newTarget(t, "hostile")
	values := nestedJSON(260 << 10)
	const field = `{"x":1,"values":,"text":""}`
	url := a.startParticipant(fmt.Sprintf(`{"x":1,"values":%s,"text":"%s"}`, values, strings.Repeat("x", 1<<20-len(values)-len(field))))
	const sagas = 10
	for i := range sagas {
		steps := make([]v1.Step, 20)
		for j := range steps {
			steps[j] = stepAt(url, fmt.Sprintf("s%d", j), "${response.body.x}")
			steps[j].DependsOn = []string{}                                // in parallel
			steps[j].AttemptTimeout = &metav1.Duration{Duration: patience} // many wait for memory at a time
		}
		a.createSaga("hostile", fmt.Sprintf("large-%d", i), steps...)
	}
	phases := a.awaitEnd("hostile")
	if phases[v1.PhaseCompleted] != sagas {
		t.Errorf("sagas by phase: %v, want %d Completed", phases, sagas)
	}
	a.checkMemory(fmt.Sprintf("%d sagas of 20 steps with large responses", sagas))
}

// TestOperatorSurvivesLargeOutputs has sagas with the largest outputs that are allowed, and
// restarts the operator before they end.
func TestOperatorSurvivesLargeOutputs(t *testing.T) {
	a := newTarget(t, "hostile")
	url := a.startParticipant(`{"x":"` + strings.Repeat("x", 250<<10) + `"}`)
	const sagas = 10
	withoutOutput := a.startParticipant(`{"x":1}`)
	for i := range sagas {
		steps := make([]v1.Step, 16)
		for j := range 15 {
			steps[j] = stepAt(url, fmt.Sprintf("s%d", j), "${response.body.x}")
		}
		steps[15] = stepAt(withoutOutput, "fails", "${response.body.y}") // there is no y: the step is retried, and never succeeds
		steps[15].Retry = &v1.Retry{MaxAttempts: 100, InitialBackoff: &metav1.Duration{Duration: time.Hour}, MaxBackoff: &metav1.Duration{Duration: time.Hour}}
		a.createSaga("hostile", fmt.Sprintf("large-%d", i), steps...)
	}
	retrying := func(s *v1.Saga) bool { return s.Status.Progress == "15/16" }
	for deadline := time.Now().Add(patience); ; pause() {
		var all v1.SagaList
		if err := a.admin.List(t.Context(), &all, client.InNamespace("hostile")); err != nil {
			t.Fatal(err)
		}
		n := 0
		for i := range all.Items {
			if retrying(&all.Items[i]) {
				n++
			}
		}
		if n == len(all.Items) {
			break
		}
		if !a.process.Running() || time.Now().After(deadline) {
			t.Fatalf("%d of %d sagas have recorded 15 outputs; log of the operator:\n%s", n, len(all.Items), a.process.Tail())
		}
	}
	a.checkMemory("10 sagas with 15 large outputs")
	a.restart()
	for i := range sagas {
		s := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: "hostile", Name: fmt.Sprintf("large-%d", i)}}
		if err := a.admin.Patch(t.Context(), s, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"cancel":true}}`))); err != nil {
			t.Fatal(err)
		}
	}
	if phases := a.awaitEnd("hostile"); phases[v1.PhaseCompensated] != sagas {
		t.Errorf("sagas by phase: %v, want %d Compensated", phases, sagas)
	}
	a.checkMemory("a restart with 10 sagas of 15 large outputs")
}

// TestOperatorSurvivesCostlyExpressions has sagas whose definitions take about a second to check, and
// others whose settings take about as long as is allowed to render, beside the sagas of another namespace.
func TestOperatorSurvivesCostlyExpressions(t *testing.T) {
	a := newTarget(t, "shop", "hostile")
	url := a.startParticipant(`{"x":1}`)
	const sagas = 12
	for i := range sagas {
		a.createSaga("hostile", fmt.Sprintf("laborious-%d", i), costlySteps(url, 3, fmt.Sprintf("[%d, %%d%s]", i, strings.Repeat(",{1:{1:{1:1}}}", 170)))...)
		match := fmt.Sprintf("'%s'.matches('(.?){%d}b') ? %%d : 0", strings.Repeat("a", 3500), 220+i)
		a.createSaga("hostile", fmt.Sprintf("matching-%d", i), costlySteps(url, 1, match)...)
	}
	step := func(name string) v1.Step { return stepAt(url, name, "${response.body.x}") }
	a.createSaga("shop", "honest", step("a"), step("b"), step("c"))
	if phases := a.awaitEnd("shop"); phases[v1.PhaseCompleted] != 1 {
		t.Errorf("sagas of the other namespace by phase: %v, want 1 Completed", phases)
	}
	phases := a.awaitEnd("hostile") // some may take too long
	t.Logf("hostile sagas by phase: %v", phases)
	if phases[v1.PhaseCompleted] < sagas {
		t.Errorf("hostile sagas by phase: %v, want at least the %d Completed that only take long to check", phases, sagas)
	}
	a.checkServed("shop", "after")
	a.checkMemory(fmt.Sprintf("%d sagas with costly expressions", 2*sagas))
}

// TestOperatorSurvivesLargePlans has sagas with large definitions, each of which takes more than ten
// megabytes once compiled. Their participant does not respond, so that all attempts are under way.
func TestOperatorSurvivesLargePlans(t *testing.T) {
	a := newTarget(t, "shop", "hostile")
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(hanging.Close)
	t.Cleanup(func() { close(release) })
	const sagas = 40
	for i := range sagas {
		steps := costlySteps(hanging.URL, 3, fmt.Sprintf("[%d, %%d%s]", i, strings.Repeat(",[[[[1]]]]", 250)))
		steps[0].AttemptTimeout = &metav1.Duration{Duration: patience}
		a.createSaga("hostile", fmt.Sprintf("large-%d", i), steps...)
	}
	running := 0
	for deadline := time.Now().Add(patience); running < sagas; pause() {
		var all v1.SagaList
		if err := a.admin.List(t.Context(), &all, client.InNamespace("hostile")); err != nil {
			t.Fatal(err)
		}
		running = 0
		for i := range all.Items {
			if all.Items[i].Status.Phase == v1.PhaseRunning {
				running++
			}
		}
		if !a.process.Running() || time.Now().After(deadline) {
			t.Fatalf("%d of %d sagas run; log of the operator:\n%s", running, sagas, a.process.Tail())
		}
	}
	a.checkServed("shop", "after")
	a.checkMemory(fmt.Sprintf("%d sagas with large plans", sagas))
}

// costlySteps returns steps with 20 expressions each. They differ in the number that takes the place of
// %d, because an expression is compiled once.
func costlySteps(url string, steps int, expression string) []v1.Step {
	all := make([]v1.Step, steps)
	for i := range all {
		var list []string
		for j := range 20 {
			list = append(list, fmt.Sprintf(`"${`+expression+`}"`, 20*i+j))
		}
		all[i] = stepAt(url, fmt.Sprintf("s%d", i), "${response.body.x}")
		all[i].HTTP.Body = &v1.JSON{Raw: []byte("[" + strings.Join(list, ",") + "]")}
	}
	return all
}
