package services_test

import (
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/ports"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// api is the operator's API, as far as orders need it: it makes a saga of each name once.
type api struct {
	mu    sync.Mutex
	lose  int // so many answers get lost
	made  []string
	asked int
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	var saga struct{ Metadata struct{ Name string } }
	if err := json.NewDecoder(r.Body).Decode(&saga); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	a.asked++
	if !slices.Contains(a.made, saga.Metadata.Name) { // by its idempotency key, or by its name
		a.made = append(a.made, saga.Metadata.Name)
	}
	if a.lose > 0 {
		a.lose--
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusCreated)
}

func (a *api) sagas() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.made)
}

// credentials are files with the certificate of test servers, and with a token.
func credentials(t *testing.T) (ca, token string) {
	t.Helper()
	certified := httptest.NewTLSServer(http.NotFoundHandler())
	defer certified.Close()
	dir := t.TempDir()
	ca, token = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	for file, text := range map[string][]byte{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate().Raw}), token: []byte("t")} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca, token
}

func TestAnOrderStartsItsSagaByItselfAlsoWhenTheOperatorIsAway(t *testing.T) {
	t.Parallel()
	a := &api{lose: 2}
	address := ports.ForTest(t) // nobody is there
	ca, token := credentials(t)
	r := startWith(t, services.Options{
		DatabaseURL: throwaway.EmptyDatabase(t),
		Operator:    &services.Operator{URL: "https://" + address, CAFile: ca, TokenFile: token, Namespace: "shop"},
	})
	r.do("1", "place")
	r.do("2", "place")
	at := r.URLs().Orders
	r.check(r.send("PUT", at+"/orders/3", "k", r.step("3", "place").body).Status, 400) // not a saga
	r.eventually("somebody has found out that it is away", func() bool {
		var n int
		err := r.Pool().QueryRow(t.Context(), `SELECT count(*) FROM outbox_readers WHERE error IS NOT NULL`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(a)
	_ = server.Listener.Close()
	server.Listener = l
	server.StartTLS()
	defer server.Close()
	r.eventually("both sagas are there", func() bool { return len(a.sagas()) == 2 })
	r.do("4", "place")
	r.eventually("the third one, too", func() bool { return len(a.sagas()) == 3 })
	made := a.sagas()
	slices.Sort(made)
	r.check(made, []string{"order-1", "order-2", "order-4"})
	r.eventually("it is asked again where the answer got lost", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.asked >= 5
	})
	r.check(len(a.sagas()), 3)
}

func TestPaymentsCallsNobodyBackButTheOperator(t *testing.T) {
	t.Parallel()
	ca, token := credentials(t)
	const url = "https://127.0.0.1:1"
	r := startWith(t, services.Options{
		DatabaseURL: throwaway.EmptyDatabase(t), Only: []string{services.Payments},
		Operator: &services.Operator{URL: url, CAFile: ca, TokenFile: token, Namespace: "shop"},
	})
	r.do("1", "authorize")
	for callback, status := range map[string]int{
		"https://127.0.0.1:2/v1/callbacks/x": 400, "http://169.254.169.254/": 400, url + ".example.com/v1/callbacks/x": 400, url + "/v1/callbacks/x": 202,
	} {
		if got := r.later("1", "k-"+strconv.Itoa(status), callback); got.Status != status {
			t.Errorf("%s: %v", callback, got)
		}
	}
}

func TestOptionsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	ca, token := credentials(t)
	api := services.Operator{URL: "https://127.0.0.1:1", CAFile: ca, TokenFile: token, Namespace: "shop"}
	http, noCA := api, api
	http.URL, noCA.CAFile = "http://127.0.0.1:1", token
	dsn := throwaway.EmptyDatabase(t)
	for name, o := range map[string]services.Options{
		"no database":              {},
		"a service nobody knows":   {DatabaseURL: dsn, Only: []string{"payment"}},
		"a service twice":          {DatabaseURL: dsn, Only: []string{"orders", "orders"}},
		"an API without TLS":       {DatabaseURL: dsn, Operator: &http},
		"a CA that is none":        {DatabaseURL: dsn, Operator: &noCA},
		"sagas to who knows where": {DatabaseURL: dsn, Only: []string{"orders"}, Operator: &api},
		"a limit that is no money": {DatabaseURL: dsn, PaymentsLimit: "much"},
	} {
		s, err := services.Start(t.Context(), o)
		if err == nil {
			t.Errorf("%s was taken", name)
			_ = s.Stop(t.Context())
		}
	}
}
