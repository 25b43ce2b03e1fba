package starter_test

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/starter"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// api is the operator's API, as far as it matters here.
type api struct {
	*starter.Publisher
	token, ca string // files

	mu   sync.Mutex
	got  []string // method, path, key and token of each request
	body []byte   // of the last POST
	post http.HandlerFunc
	get  http.HandlerFunc
}

func answers(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func start(t *testing.T) *api {
	t.Helper()
	a := &api{token: filepath.Join(t.TempDir(), "token"), ca: filepath.Join(t.TempDir(), "ca.crt"), post: answers(http.StatusCreated, "{}"), get: answers(http.StatusNotFound, "{}")}
	server := httptest.NewUnstartedServer(a)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	server.StartTLS()
	t.Cleanup(server.Close)
	for file, text := range map[string][]byte{a.token: []byte("first\n"), a.ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	definition, err := ordertocash.OrderToCash(ordertocash.DefaultURLs)
	if err != nil {
		t.Fatal(err)
	}
	a.Publisher, err = starter.New(starter.Config{URL: server.URL, Namespace: "shop", TokenFile: a.token, CAFile: a.ca, Definition: definition, Timeout: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.got = append(a.got, strings.Join([]string{r.Method, r.URL.Path, r.Header.Get("Idempotency-Key"), r.Header.Get("Authorization")}, " "))
	if r.Method == http.MethodGet {
		a.get(w, r)
		return
	}
	var body json.RawMessage
	if json.NewDecoder(r.Body).Decode(&body) == nil {
		a.body = body
	}
	a.post(w, r)
}

const placed = `{"customer":"c-7","lines":[{"sku":"B-1","quantity":2},{"sku":"A-7","quantity":3}],"total":{"amount":"129.90","currency":"EUR"},"card":"card-1","country":"DE"}`

func message(data string) outbox.Message {
	var m outbox.Message
	m.Message = eventstore.Message{ID: uuid.MustParse("0193a5f0-0000-7000-8000-000000000001"), Type: "com.example.orders.OrderPlaced", Key: "1042", Subject: "1042", Data: json.RawMessage(data)}
	return m
}

func (a *api) publish(t *testing.T, data string) *outbox.Error {
	t.Helper()
	err := a.Publish(t.Context(), []outbox.Message{message(data)})[0]
	var failed *outbox.Error
	if err != nil && !errors.As(err, &failed) {
		t.Fatalf("an error of another kind: %v", err)
	}
	return failed
}

func TestAnOrderThatIsPlacedIsGivenItsSaga(t *testing.T) {
	t.Parallel()
	a := start(t)
	if failed := a.publish(t, placed); failed != nil {
		t.Fatal(failed)
	}
	if err := os.WriteFile(a.token, []byte("second"), 0o600); err != nil { // the kubelet has renewed it
		t.Fatal(err)
	}
	if failed := a.publish(t, placed); failed != nil {
		t.Fatal(failed)
	}
	const request = "POST /v1/namespaces/shop/sagas 0193a5f0-0000-7000-8000-000000000001 Bearer "
	if diff := cmp.Diff([]string{request + "first", request + "second"}, a.got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var got struct {
		APIVersion, Kind string
		Metadata         struct {
			Name, Namespace string
			Labels          map[string]string
		}
		Spec struct {
			Input map[string]any
			Steps []struct{ Name string }
		}
	}
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Fatal(err)
	}
	if got.Kind != "Saga" || got.APIVersion != "saga.vextrus.io/v1" || got.Metadata.Name != "order-1042" || got.Metadata.Namespace != "shop" || got.Metadata.Labels[ordertocash.OrderLabel] != "1042" || len(got.Spec.Steps) != 10 {
		t.Errorf("asked was for %+v", got)
	}
	want := map[string]any{
		"orderId": "1042", "customer": "c-7", "card": "card-1", "country": "DE", "pieces": 5.0, "total": map[string]any{"amount": "129.90", "currency": "EUR"},
		"lines": []any{map[string]any{"sku": "B-1", "quantity": 2.0}, map[string]any{"sku": "A-7", "quantity": 3.0}},
	}
	if diff := cmp.Diff(want, got.Spec.Input); diff != "" {
		t.Errorf("the input (-want +got):\n%s", diff)
	}
}

func TestWhatTheAnswersOfTheAPIMean(t *testing.T) {
	t.Parallel()
	const mine, others = `{"metadata":{"labels":{"order-to-cash.example.com/order":"1042"}}}`, `{"metadata":{"labels":{}}}`
	started := outbox.Kind(-1)
	for name, c := range map[string]struct {
		status, look int
		saga         string
		want         outbox.Kind
	}{
		"started":                        {status: 201, want: started},
		"started before":                 {status: 200, want: started},
		"it exists":                      {status: 409, look: 200, saga: mine, want: started},
		"it exists, otherwise":           {status: 422, look: 200, saga: mine, want: started},
		"the name is somebody else's":    {status: 409, look: 200, saga: others, want: outbox.Rejected},
		"the same is on its way":         {status: 409, look: 404, want: outbox.Failed},
		"it exists, but who may look":    {status: 409, look: 403, want: outbox.Unavailable},
		"it cannot be":                   {status: 422, look: 404, want: outbox.Rejected},
		"malformed":                      {status: 400, want: outbox.Rejected},
		"too large":                      {status: 413, want: outbox.Rejected},
		"who are you":                    {status: 401, want: outbox.Unavailable},
		"you may not":                    {status: 403, want: outbox.Unavailable},
		"no such namespace":              {status: 404, want: outbox.Unavailable},
		"too many":                       {status: 429, want: outbox.Unavailable},
		"away":                           {status: 503, want: outbox.Unavailable},
		"broken":                         {status: 500, want: outbox.Failed},
		"a redirect, to who knows where": {status: 307, want: outbox.Rejected},
	} {
		a := start(t)
		a.post = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.Header().Set("Location", "https://127.0.0.1:1/")
			answers(c.status, "it says\n why")(w, r)
		}
		if c.look != 0 {
			a.get = answers(c.look, c.saga)
		}
		got, failed := started, a.publish(t, placed)
		if failed != nil {
			got = failed.Kind
		}
		if got != c.want {
			t.Errorf("%s: %v, %v", name, got, failed)
		}
		if failed != nil && c.look == 0 && (failed.RetryAfter != 7*time.Second || !strings.Contains(failed.Error(), "it says why")) {
			t.Errorf("%s: after %s: %v", name, failed.RetryAfter, failed)
		}
	}
}

func TestNothingIsStartedWithoutAConnectionOrAToken(t *testing.T) {
	t.Parallel()
	a := start(t)
	if err := a.Check(t.Context()); err != nil {
		t.Errorf("the check: %v", err)
	}
	a.get = answers(http.StatusForbidden, "")
	var failed *outbox.Error
	if err := a.Check(t.Context()); !errors.As(err, &failed) || failed.Kind != outbox.Unavailable || failed.Reason != outbox.ReasonUnauthorized {
		t.Errorf("the check of somebody who may not: %v", err)
	}
	if failed := a.publish(t, `{"lines": 7}`); failed == nil || failed.Kind != outbox.Rejected {
		t.Errorf("an event that cannot be read: %v", failed)
	}
	if err := os.Remove(a.token); err != nil {
		t.Fatal(err)
	}
	if failed := a.publish(t, placed); failed == nil || failed.Kind != outbox.Unavailable {
		t.Errorf("without a token: %v", failed)
	}
	other := start(t)
	definition, err := ordertocash.OrderToCash(ordertocash.DefaultURLs)
	if err != nil {
		t.Fatal(err)
	}
	config := starter.Config{URL: "https://localhost:1", Namespace: "shop", TokenFile: other.token, CAFile: other.ca, Definition: definition}
	p, err := starter.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(t.Context(), []outbox.Message{message(placed)})[0]; !errors.As(err, &failed) || failed.Kind != outbox.Unavailable {
		t.Errorf("nobody is there: %v", err)
	}
	for name, spoil := range map[string]func(*starter.Config){
		"http": func(c *starter.Config) { c.URL = "http://localhost" }, "no namespace": func(c *starter.Config) { c.Namespace = "" },
		"no CA": func(c *starter.Config) { c.CAFile = other.token }, "no file": func(c *starter.Config) { c.CAFile += "x" },
	} {
		bad := config
		spoil(&bad)
		if _, err := starter.New(bad); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestOnlyOrdersOfCustomersAreGivenASaga(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		typ, data string
		want      bool
	}{
		"placed by a customer": {"com.example.orders.OrderPlaced", placed, true}, "placed by a saga": {"com.example.orders.OrderPlaced", `{"saga":"s-1"}`, false},
		"something else": {"com.example.orders.OrderCancelled", `{}`, false}, "unreadable": {"com.example.orders.OrderPlaced", `{"lines":1}`, true},
	} {
		m := message(c.data)
		m.Type = c.typ
		if starter.Wants(&m) != c.want {
			t.Errorf("%s: %t", name, !c.want)
		}
	}
}
