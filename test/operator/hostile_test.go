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

// memoryLimit is what the operator has in a cluster (config/manager): one byte more, and it is ended.
const memoryLimit = 512 << 20

// target is the operator as a process of its own, with its API, and who attacks it.
type target struct {
	*testing.T
	process *operator.Process
	restart func()
	admin   client.Client
	address string // of the API
	tokens  map[string]string
}

// newTarget starts the operator with as much memory as it has in a cluster, and makes users who may edit the sagas of a namespace of their own name.
func newTarget(t *testing.T, users ...string) *target {
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
			Args: []string{"--api-bind-address", a.address, "--api-insecure-http", "--api-audiences", ""},
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

// peak is the most memory that the operator has had, in bytes.
func (a *target) peak() int64 {
	a.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.process.PID()))
	if err != nil {
		a.Fatalf("the operator has ended: %v\n%s", err, a.process.Tail())
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, "kB")), 10, 64)
	if err != nil {
		a.Fatal(err)
	}
	return kib << 10
}

// survives reports whether the operator is there, and within its limit.
func (a *target) survives(attack string) {
	a.Helper()
	if !a.process.Running() {
		a.Fatalf("after %s the operator has ended:\n%s", attack, a.process.Tail())
	}
	if peak := a.peak(); peak > memoryLimit {
		a.Errorf("with %s the operator has taken %d MiB, and has %d", attack, peak>>20, memoryLimit>>20)
	} else {
		a.Logf("with %s the operator has taken %d MiB at most", attack, peak>>20)
	}
}

// send sends a request, and returns the status of its answer; 0 where there is none.
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
		return 0 // the operator may well break a connection off
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// honest has a user do what users do, while others attack.
func (a *target) honest(user, name string) {
	a.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	saga := fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"suspend":true,"steps":[{"name":"a","http":{"method":"POST","url":"http://127.0.0.1:1/"}}]}}`, name)
	for what, request := range map[string]func() int{
		"creating a saga": func() int { return a.send(client, "POST", "/v1/namespaces/"+user+"/sagas", user, name, saga) },
		"listing sagas":   func() int { return a.send(client, "GET", "/v1/namespaces/"+user+"/sagas", user, "", "") },
	} {
		status := 0
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); { // as clients do that are told to try again
			if status = request(); status == http.StatusOK || status == http.StatusCreated {
				break
			}
		}
		if status != http.StatusOK && status != http.StatusCreated {
			a.Errorf("%s is answered with %d", what, status)
		}
	}
}

// nested is JSON of about so many bytes that takes as much memory as possible when it is decoded.
func nested(bytes int) string {
	const one = `{"":{"":0}},`
	return "[" + strings.Repeat(one, bytes/len(one)) + "0]"
}

// at runs something so many times at once.
func at(once int, run func(i int)) {
	var all sync.WaitGroup
	for i := range once {
		all.Go(func() { run(i) })
	}
	all.Wait()
}

// TestStrangersCannotTakeTheOperatorDown attacks the API without a token, as anybody can who reaches its port.
func TestStrangersCannotTakeTheOperatorDown(t *testing.T) {
	a := newTarget(t, "shop")
	a.honest("shop", "before")
	a.survives("nothing")

	body := fmt.Sprintf(`{"outcome":"Succeeded","body":%s}`, nested(1<<20))
	at(80, func(i int) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		a.send(client, "POST", fmt.Sprintf("/v1/callbacks/forged-%d", i), "", "", body)
	})
	a.survives("80 large answers by forged callbacks")

	held := a.connections(700, "POST /v1/callbacks/%d HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n")
	a.honest("shop", "while-connections-are-held")
	for _, c := range held {
		_ = c.Close()
	}
	a.survives("700 requests that never end")
	a.honest("shop", "afterwards")
}

// connections opens connections that say something, if the operator lets them.
func (a *target) connections(n int, says string) (held []net.Conn) {
	a.Helper()
	for i := range n {
		c, err := new(net.Dialer).DialContext(a.Context(), "tcp", a.address)
		if err != nil {
			a.Fatal(err)
		}
		a.Cleanup(func() { _ = c.Close() })
		_, _ = fmt.Fprintf(c, says, i) // who is not let in is told so by a closed connection
		held = append(held, c)
	}
	return held
}

// TestAUserOfTheAPICannotTakeTheOperatorDown attacks the API with the rights of somebody who may edit the sagas of one namespace.
func TestAUserOfTheAPICannotTakeTheOperatorDown(t *testing.T) {
	a := newTarget(t, "shop", "hostile")
	a.honest("shop", "before")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	steps := `"suspend":true,"steps":[{"name":"a","http":{"method":"POST","url":"http://127.0.0.1:1/"}}]`
	create := func(name, input string) int {
		return a.send(client, "POST", "/v1/namespaces/hostile/sagas", "hostile", name, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{%s,"input":{"x":%s}}}`, name, steps, input))
	}
	for status := 0; status != http.StatusCreated; { // 50,000 values are the most
		if status = create("large", nested(100<<10)); status == http.StatusBadRequest || status == http.StatusUnprocessableEntity || status == http.StatusForbidden {
			t.Fatalf("a large saga is answered with %d", status)
		}
	}
	at(90, func(i int) { create(fmt.Sprintf("larger-%d", i), nested(1<<20)) })
	a.survives("90 sagas of a megabyte")
	at(90, func(i int) {
		for range 5 {
			a.send(client, "GET", "/v1/namespaces/hostile/sagas/large", "hostile", "", "")
			a.send(client, "GET", "/v1/namespaces/hostile/sagas?limit=500", "hostile", "", "")
		}
	})
	a.survives("900 readings of large sagas")

	slow := a.connections(300, "POST /v1/namespaces/hostile/sagas HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+a.tokens["hostile"]+
		"\r\nContent-Type: application/json\r\nIdempotency-Key: k-%d\r\nContent-Length: 1000000\r\n\r\n{")
	a.honest("shop", "while-bodies-are-slow")
	a.survives("300 bodies that never end")
	for _, c := range slow {
		_ = c.Close()
	}
}

// pause is how often something is looked at that is waited for.
func pause() { <-time.After(100 * time.Millisecond) }

// service is a participant that answers each request with the same JSON.
func (a *target) service(body string) string {
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

// saga creates a saga of some steps side by side.
func (a *target) saga(namespace, name string, steps ...v1.Step) {
	a.Helper()
	s := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.SagaSpec{Steps: steps}}
	err := a.admin.Create(a.Context(), s)
	for apierrors.IsServiceUnavailable(err) { // admission learns of a new kind a little later than the storage
		pause()
		err = a.admin.Create(a.Context(), s)
	}
	if err != nil {
		a.Fatal(err)
	}
}

// stepAt is a step whose output is that of an expression.
func stepAt(url, name, output string) v1.Step {
	undo := &v1.Effect{HTTP: &v1.HTTPRequest{Method: http.MethodDelete, URL: url}}
	return v1.Step{Name: name, Effect: v1.Effect{HTTP: &v1.HTTPRequest{Method: http.MethodPost, URL: url}}, Compensation: undo, Output: map[string]v1.OutputTemplate{"x": v1.OutputTemplate(output)}}
}

// end waits until all sagas of a namespace have ended, and counts how.
func (a *target) end(namespace string) map[v1.SagaPhase]int {
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
			a.Fatalf("the sagas are %v; the operator says\n%s", phases, a.process.Tail())
		}
	}
}

// TestAnswersCannotTakeTheOperatorDown has many large answers come at once, each of which takes as much memory as possible when it is decoded.
func TestAnswersCannotTakeTheOperatorDown(t *testing.T) {
	a := newTarget(t, "hostile")
	url := a.service(nested(1<<20 - 100))
	for i := range 10 {
		steps := make([]v1.Step, 20)
		for j := range steps {
			steps[j] = stepAt(url, fmt.Sprintf("s%d", j), "${size(response.body)}")
		}
		a.saga("hostile", fmt.Sprintf("large-%d", i), steps...)
	}
	phases := a.end("hostile")
	a.survives(fmt.Sprintf("200 large answers at once (%v)", phases))
}

// TestOutputsCannotTakeTheOperatorDown has sagas keep as much as they can, and the operator start again while they are unfinished.
func TestOutputsCannotTakeTheOperatorDown(t *testing.T) {
	a := newTarget(t, "hostile")
	url := a.service(`{"x":"` + strings.Repeat("x", 250<<10) + `"}`)
	const sagas = 10
	never := a.service(`{"x":1}`)
	for i := range sagas {
		steps := make([]v1.Step, 16)
		for j := range 15 {
			steps[j] = stepAt(url, fmt.Sprintf("s%d", j), "${response.body.x}")
		}
		steps[15] = stepAt(never, "waits", "${response.body.y}") // it never succeeds, and is tried for long
		steps[15].Retry = &v1.Retry{MaxAttempts: 100, InitialBackoff: &metav1.Duration{Duration: time.Hour}, MaxBackoff: &metav1.Duration{Duration: time.Hour}}
		a.saga("hostile", fmt.Sprintf("large-%d", i), steps...)
	}
	settled := func(s *v1.Saga) bool { return s.Status.Progress == "15/16" }
	for deadline := time.Now().Add(patience); ; pause() {
		var all v1.SagaList
		if err := a.admin.List(t.Context(), &all, client.InNamespace("hostile")); err != nil {
			t.Fatal(err)
		}
		n := 0
		for i := range all.Items {
			if settled(&all.Items[i]) {
				n++
			}
		}
		if n == len(all.Items) {
			break
		}
		if !a.process.Running() || time.Now().After(deadline) {
			t.Fatalf("%d sagas have come as far as they can; the operator says\n%s", n, a.process.Tail())
		}
	}
	a.survives("sagas of 15 large outputs")
	a.restart()
	for i := range sagas {
		s := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: "hostile", Name: fmt.Sprintf("large-%d", i)}}
		if err := a.admin.Patch(t.Context(), s, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"cancel":true}}`))); err != nil {
			t.Fatal(err)
		}
	}
	if phases := a.end("hostile"); phases[v1.PhaseCompensated] != sagas {
		t.Errorf("the sagas are %v", phases)
	}
	a.survives("sagas of 15 large outputs, after a restart")
}
