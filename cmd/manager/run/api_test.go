package run

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

func TestAWrongSettingOfTheAPIIsNamed(t *testing.T) {
	t.Parallel()
	env := environ("DATABASE_URL", databaseURL)
	for want, args := range map[string][]string{
		"belong together":        {"--api-tls-cert-file=tls.crt"},
		"loopback":               {"--api-insecure-http"},
		"no use for":             {"--api-insecure-http", "--api-bind-address=127.0.0.1:1", "--api-tls-cert-file=a", "--api-tls-key-file=b"},
		"--api-user-rate has to": {"--api-user-rate=0"},
	} {
		if _, err := Parse(args, env, t.Output()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want one that says %q", args, err, want)
		}
	}
	c, err := Parse(nil, env, t.Output())
	if err != nil || c.API.Address != ":8443" || len(c.API.Audiences) != 1 || c.API.Audiences[0] != "saga-operator" {
		t.Errorf("by default: %+v, %v", c.API, err)
	}
	if c, err := Parse([]string{"--api-audiences=", "--api-bind-address=0"}, env, t.Output()); err != nil || len(c.API.Audiences) != 0 || !c.API.off() {
		t.Errorf("without audiences: %+v, %v", c.API, err)
	}
}

// apiClient speaks to the API of an operator.
type apiClient struct {
	*testing.T
	base, token string
	http        *http.Client
}

func (c *apiClient) do(method, path, body string, header ...string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(c.Context(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// ask repeats a request that was not answered, or not in time.
func (c *apiClient) ask(method, path, body string, header ...string) (status int, answer []byte) {
	c.Helper()
	eventually(c.T, func() (err error) {
		status, answer, err = c.do(method, path, body, header...)
		if err == nil && status == http.StatusServiceUnavailable {
			err = fmt.Errorf("answered with %d %s", status, answer)
		}
		return err
	})
	return status, answer
}

// TestASagaThatIsStartedThroughTheAPIRunsAndIsFollowedToItsEnd runs the whole operator, with no more rights than it is given: to the end, to a callback, to a decision, to being abandoned, and with participants that repeat tokens.
func TestASagaThatIsStartedThroughTheAPIRunsAndIsFollowedToItsEnd(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{Manifests: []string{"../../../config/admission/created_by_policy.yaml"}})
	address := freeAddress(t)
	participants := httptest.NewServer(newLateService(t))
	t.Cleanup(participants.Close)
	log := &lockedBuffer{}
	database := throwaway.Database(t)
	stop := operatorProcess(t, log, database, "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address=0", "--api-bind-address="+address, "--callback-url=https://"+address, "--egress-allow=127.0.0.0/8", "--log-format=text")
	c := &apiClient{T: t, base: "https://" + address, token: starter(t, kubernetes)}
	c.http = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer func() {
		if err := stop(); err != nil || t.Failed() || strings.Contains(log.String(), "forbidden") || strings.Contains(log.String(), c.token) || strings.Contains(log.String(), tokenPrefix) {
			t.Errorf("the operator ended: %v; its log, in which nothing should be forbidden, and no token:\n%s", err, log)
		}
	}()
	c.awaitCreators(participants.URL)
	c.start("order-1042", fmt.Sprintf(`{"name":"reserve","http":{"method":"POST","url":"%s/reserve"}}`, participants.URL))
	status, events := c.ask(http.MethodGet, "/v1/namespaces/shop/sagas/order-1042/history", "", "Accept", "text/event-stream")
	if status != http.StatusOK {
		t.Fatalf("following: %d %s", status, events)
	}
	if text := string(events); !strings.Contains(text, "event: SagaStarted") || strings.Count(text, "event: SagaCompleted") != 1 || !strings.Contains(text, "system:serviceaccount:shop:starter") {
		t.Errorf("what was followed:\n%s", text)
	}
	c.ends("order-1042", "Completed")
	if status, answer := c.ask(http.MethodPost, "/v1/namespaces/shop/sagas/order-1042/cancel", ""); status != http.StatusConflict || !bytes.Contains(answer, []byte("Finished")) {
		t.Errorf("cancelling afterwards: %d %s", status, answer)
	}
	c.answersLater(participants.URL)
	c.decides(participants.URL)
	c.abandons(participants.URL)
	c.redacts(database, participants.URL)
}

// awaitCreators starts sagas until one is younger than the admission policy, so that its creator is
// recorded.
func (c *apiClient) awaitCreators(participant string) {
	c.Helper()
	n := 0
	eventually(c.T, func() error {
		name := fmt.Sprintf("probe-%d", n)
		n++
		c.start(name, fmt.Sprintf(`{"name":"reserve","http":{"method":"POST","url":"%s/reserve"}}`, participant))
		c.ends(name, "Completed")
		_, events := c.ask(http.MethodGet, "/v1/namespaces/shop/sagas/"+name+"/history", "", "Accept", "text/event-stream")
		if !bytes.Contains(events, []byte("system:serviceaccount:shop:starter")) {
			return fmt.Errorf("the history names no creator: %s", events)
		}
		return nil
	})
}

// answersLater has a participant accept a step and say by callback what became of it.
func (c *apiClient) answersLater(participant string) {
	c.Helper()
	c.start("order-1043", fmt.Sprintf(`{"name":"capture","http":{"method":"POST","url":"%[1]s/later","completion":"Callback","callbackTimeout":"1h"},"attemptTimeout":"30m","output":{"id":"${response.body.id}"}},
		{"name":"say","http":{"method":"POST","url":"%[1]s/say","body":{"id":"${steps.capture.output.id}"}}}`, participant))
	c.ends("order-1043", "Completed")
}

// tokenPrefix begins every callback token.
const tokenPrefix = "sagacallback_"

// redacts has participants repeat their callback's URL: in a reply that outputs read and the next step is
// sent, and in a rejection. The token must be recorded nowhere.
func (c *apiClient) redacts(database, participant string) {
	c.Helper()
	c.start("order-1046", fmt.Sprintf(`{"name":"capture","http":{"method":"POST","url":"%[1]s/echo-later","completion":"Callback","callbackTimeout":"1h"},"attemptTimeout":"30m","output":{"url":"${response.body.url}"}},
		{"name":"say","http":{"method":"POST","url":"%[1]s/accept","body":{"url":"${steps.capture.output.url}"}}},
		{"name":"refuse","http":{"method":"POST","url":"%[1]s/echo","completion":"Callback","callbackTimeout":"1h"}}`, participant))
	c.ends("order-1046", "Compensated")
	_, object := c.ask(http.MethodGet, "/v1/namespaces/shop/sagas/order-1046", "")
	if !bytes.Contains(object, []byte("callbacks/[redacted]")) || bytes.Contains(object, []byte(tokenPrefix)) {
		c.Errorf("the status has to show the message of the rejection without the token: %s", object)
	}
	eventually(c.T, func() error { // the history is a projection, and follows the events
		_, history, err := c.do(http.MethodGet, "/v1/namespaces/shop/sagas/order-1046/history", "")
		if err == nil && !bytes.Contains(history, []byte("SagaCompensated")) {
			err = fmt.Errorf("the history has no end: %s", history)
		}
		if bytes.Contains(history, []byte(tokenPrefix)) {
			c.Errorf("the history has the token: %s", history)
		}
		return err
	})
	pool, err := pgxpool.New(c.Context(), database)
	if err != nil {
		c.Fatal(err)
	}
	defer pool.Close()
	var events, redacted int
	if err := pool.QueryRow(c.Context(), `SELECT count(*) FILTER (WHERE e::text LIKE '%' || $1 || '%'), count(*) FILTER (WHERE e::text LIKE '%/v1/callbacks/[redacted]%')
		FROM event_store e`, tokenPrefix).Scan(&events, &redacted); err != nil {
		c.Fatal(err)
	}
	if events != 0 || redacted != 3 { // the output, the end of the attempt, and the cause of the rollback
		c.Errorf("%d events have a token, and %d have the place of one, want 0 and 3", events, redacted)
	}
}

// decides parks a saga, because its undo is refused once, and has a person decide that it is tried again.
func (c *apiClient) decides(participant string) {
	c.Helper()
	c.start("order-1044", fmt.Sprintf(`{"name":"charge","http":{"method":"POST","url":"%[1]s/charge"},"compensation":{"attemptTimeout":"30m","http":{"method":"POST","url":"%[1]s/refused-once"}}},
		{"name":"ship","http":{"method":"POST","url":"%[1]s/refused"}}`, participant))
	c.ends("order-1044", "CompensationFailed")
	status, answer := c.ask(http.MethodPost, "/v1/namespaces/shop/sagas/order-1044/decide", `{"step":"charge","verdict":"Retry","reason":"payments is repaired"}`, "Content-Type", "application/json")
	if status != http.StatusOK {
		c.Fatalf("deciding: %d %s", status, answer)
	}
	c.ends("order-1044", "Compensated")
	eventually(c.T, func() error { // the history is a projection, and follows the events
		_, history, err := c.do(http.MethodGet, "/v1/namespaces/shop/sagas/order-1044/history", "")
		if err == nil && (!bytes.Contains(history, []byte(`"DecisionMade"`)) || !bytes.Contains(history, []byte("payments is repaired"))) {
			err = fmt.Errorf("the history does not contain the decision and its reason: %s", history)
		}
		return err
	})
}

// abandons abandons a saga whose undo is refused again and again.
func (c *apiClient) abandons(participant string) {
	c.Helper()
	c.start("order-1045", fmt.Sprintf(`{"name":"charge","http":{"method":"POST","url":"%[1]s/charge"},"compensation":{"attemptTimeout":"30m","http":{"method":"POST","url":"%[1]s/refused"}}},
		{"name":"ship","http":{"method":"POST","url":"%[1]s/refused"}}`, participant))
	c.ends("order-1045", "Compensating")
	for range 2 { // again is the same
		status, answer := c.ask(http.MethodPost, "/v1/namespaces/shop/sagas/order-1045/abandon", `{"reason":"payments is gone"}`, "Content-Type", "application/json")
		if status != http.StatusOK || !bytes.Contains(answer, []byte(`"phase":"Abandoned","mayRemain":["charge"]`)) {
			c.Fatalf("abandoning: %d %s", status, answer)
		}
	}
	eventually(c.T, func() error { // the history is a projection, and follows the events
		_, history, err := c.do(http.MethodGet, "/v1/namespaces/shop/sagas/order-1045/history", "")
		if err == nil && (bytes.Count(history, []byte(`"SagaAbandoned"`)) != 1 || !bytes.Contains(history, []byte("payments is gone"))) {
			err = fmt.Errorf("the history does not contain the end once, with its reason: %s", history)
		}
		return err
	})
}

// start creates a saga as soon as the operator answers.
func (c *apiClient) start(name, steps string) {
	c.Helper()
	manifest := fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"steps":[%s]}}`, name, steps)
	eventually(c.T, func() error {
		status, answer, err := c.do(http.MethodPost, "/v1/namespaces/shop/sagas", manifest, "Content-Type", "application/json", "Idempotency-Key", name)
		if err == nil && status != http.StatusCreated {
			err = fmt.Errorf("answered with %d %s", status, answer)
		}
		return err
	})
}

// ends waits until a saga is in a phase.
func (c *apiClient) ends(name, phase string) {
	c.Helper()
	eventually(c.T, func() error {
		_, answer, err := c.do(http.MethodGet, "/v1/namespaces/shop/sagas/"+name, "")
		var s struct{ Status struct{ Phase string } }
		if err == nil {
			err = json.Unmarshal(answer, &s)
		}
		if err == nil && s.Status.Phase != phase {
			err = fmt.Errorf("it is %s", answer)
		}
		return err
	})
}

// newLateService does everything at once, but for /later, which is accepted and answered by callback, /refused, and /refused-once, by path.
func newLateService(t *testing.T) http.Handler {
	var refused atomic.Bool
	back := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"id":"1"}`) })
	mux.HandleFunc("/refused", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) })
	mux.HandleFunc("/refused-once", func(w http.ResponseWriter, _ *http.Request) {
		if refused.CompareAndSwap(false, true) {
			w.Header().Set("Saga-Outcome", "Rejected") // else it is retried
			w.WriteHeader(http.StatusConflict)
		}
	})
	mux.HandleFunc("/later", func(w http.ResponseWriter, r *http.Request) { // the callback comes before the 202
		if err := callBack(r.Context(), back, r.Header.Get("Saga-Callback"), `{"outcome":"Succeeded","body":{"id":"capture-7"}}`); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("/accept", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/echo-later", func(w http.ResponseWriter, r *http.Request) {
		url := r.Header.Get("Saga-Callback")
		if err := callBack(r.Context(), back, url, fmt.Sprintf(`{"outcome":"Succeeded","body":{"url":%q}}`, url)); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = fmt.Fprintf(w, `{"detail":"not understood: Saga-Callback: %s"}`, r.Header.Get("Saga-Callback"))
	})
	mux.HandleFunc("/say", func(_ http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err != nil || string(body) != `{"id":"capture-7"}` {
			t.Errorf("the next step was told %s, %v", body, err)
		}
	})
	return mux
}

// callBack says at a callback's URL what became of a step, until it is taken.
func callBack(ctx context.Context, client *http.Client, url, outcome string) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(outcome))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		switch res.StatusCode {
		case http.StatusNoContent:
			return nil
		case http.StatusServiceUnavailable: // not in time
		default:
			return fmt.Errorf("the callback was answered with %s", res.Status)
		}
	}
}

// starter is the token of somebody who may start sagas in the namespace shop.
func starter(t *testing.T, kubernetes *cluster.Cluster) string {
	t.Helper()
	for _, file := range []string{"saga_viewer_role.yaml", "saga_editor_role.yaml", "saga_decider_role.yaml", "saga_abandoner_role.yaml"} {
		manifest, err := os.ReadFile("../../../config/rbac/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if err := kubernetes.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kubernetes.ServiceAccount(t.Context(), "shop", "starter"); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"saga-viewer", "saga-editor", "saga-decider", "saga-abandoner"} {
		binding := fmt.Sprintf(`{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: %[1]s, namespace: shop},
			roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}, subjects: [{kind: ServiceAccount, name: starter, namespace: shop}]}`, role)
		if err := kubernetes.Apply(t.Context(), []byte(binding)); err != nil {
			t.Fatal(err)
		}
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"saga-operator"}}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "starter"}}
	if err := newClient(t, kubernetes).SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}
