package services_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/customers"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/manifest"
	"github.com/vextrus/saga-operator/internal/participant"
	httpparticipant "github.com/vextrus/saga-operator/internal/participant/http"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/testenv/driver"
)

// callbacks is where participants call back, as the operator's API has it.
type callbacks struct {
	engine.Callbacks
	url   string
	taken func()
}

func (c *callbacks) Issue(ctx context.Context, call participant.Call, within time.Duration) (string, error) {
	token, err := c.Callbacks.Issue(ctx, call, within)
	return c.url + "/v1/callbacks/" + token, err
}

func (c *callbacks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var said struct {
		Outcome, Reason, Message string
		Body                     any
	}
	if err := json.NewDecoder(r.Body).Decode(&said); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	err := c.Answer(r.Context(), r.PathValue("token"), engine.CallbackAnswer{
		Rejected: said.Outcome == "Rejected", Reason: said.Reason, Message: said.Message,
		Response: map[string]any{"status": 200, "headers": map[string]any{}, "body": said.Body},
	})
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
		c.taken()
	case errors.Is(err, engine.ErrNoCallback):
		w.WriteHeader(http.StatusNotFound)
	case errors.Is(err, engine.ErrCallbackUsed):
		w.WriteHeader(http.StatusConflict)
	case errors.Is(err, engine.ErrCallbackExpired), errors.Is(err, engine.ErrCallbackOver):
		w.WriteHeader(http.StatusGone)
	default:
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// TestOrdersFailAtEachStepAndGoThroughAndTheBalanceIsZero drives the saga from order to cash with the engine alone, without a cluster: one order of each kind, and some more.
func TestOrdersFailAtEachStepAndGoThroughAndTheBalanceIsZero(t *testing.T) {
	t.Parallel()
	r := start(t)
	const seed, n = 7, 24
	all, err := customers.Make(seed, "o", n)
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range services.Names {
		if err := r.SetFaults(service, services.Faults{Lose: 0.2, Requests: 100}); err != nil {
			t.Fatal(err)
		}
	}
	// Customers and the demo's own requests are spared: a lost answer is asked for again.
	for i := range all {
		if err := all[i].Delay(t.Context(), http.DefaultClient, r.URLs().Shipping); err != nil {
			t.Fatal(err)
		}
		r.eventually("order "+all[i].Order+" is placed", func() bool { return all[i].Place(t.Context(), http.DefaultClient, r.URLs().Orders) == nil })
	}
	phases := r.driveOrders(all)
	at := map[string]string{}
	for _, o := range r.ledger().Orders {
		at[o.Order] = o.Status
	}
	for _, o := range all {
		if !slices.Contains(o.Ends(), at[o.Order]) {
			t.Errorf("order %s, which %s, is %s, and its saga %s", o.Order, o.Kind, at[o.Order], phases[o.Order])
		}
		if (at[o.Order] == "fulfilled") != (phases[o.Order] == saga.Completed) {
			t.Errorf("order %s is %s, and its saga %s", o.Order, at[o.Order], phases[o.Order])
		}
	}
	r.balances()
}

// driveOrders runs the sagas of orders to their ends.
func (r rig) driveOrders(all []customers.Order) map[string]saga.Phase {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	loopback, err := egress.New([]string{"127.0.0.0/8"}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	store := memory.New()
	back := &callbacks{Callbacks: engine.Callbacks{Store: store}}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/callbacks/{token}", back)
	server := httptest.NewServer(mux)
	defer server.Close()
	back.url = server.URL
	kinds := participant.Registry{httpparticipant.Kind: httpparticipant.New(httpparticipant.Options{Egress: loopback, Callbacks: back})}

	runner := &driver.Runner{Workers: 4}
	if runner.Engine, err = engine.New(engine.Options{Store: store, Participants: kinds, Notify: runner.Enqueue}); err != nil {
		r.t.Fatal(err)
	}
	seen := map[engine.Key]engine.Observation{}
	for _, o := range all {
		def, input := r.sagaOf(o, kinds)
		seen[engine.Key{Namespace: "shop", Name: o.Order, UID: uuid.NewString()}] = engine.Observation{Definition: &def, Input: input}
	}
	back.taken = func() {
		for k := range seen {
			runner.Enqueue(k)
		}
	}
	var mu sync.Mutex
	phases := map[string]saga.Phase{}
	runner.Observe = func(k engine.Key) engine.Observation { return seen[k] }
	runner.Finished = func(k engine.Key, result engine.Result) {
		mu.Lock()
		defer mu.Unlock()
		if phases[k.Name] = result.State.Phase; len(phases) == len(all) {
			cancel()
		}
	}
	for k := range seen {
		runner.Enqueue(k)
	}
	if err := runner.Run(ctx); err != nil {
		r.t.Error(err)
	}
	ending, end := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer end()
	if err := runner.Engine.Shutdown(ending); err != nil {
		r.t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	return phases
}

// sagaOf is the saga that an order is given.
func (r rig) sagaOf(o customers.Order, kinds participant.Registry) (saga.Definition, json.RawMessage) {
	r.t.Helper()
	definition, err := ordertocash.OrderToCash(r.URLs())
	if err != nil {
		r.t.Fatal(err)
	}
	var pieces int64
	for _, l := range o.Lines {
		pieces += l.Quantity
	}
	input := map[string]any{"orderId": o.Order, "customer": o.Customer, "card": o.Card, "country": o.Country, "lines": o.Lines, "pieces": pieces, "total": o.Total}
	object, err := definition.Saga("shop", "order-"+o.Order, o.Order, input)
	if err != nil {
		r.t.Fatal(err)
	}
	if strings.Contains(string(object), "127.0.0.1:1808") {
		r.t.Errorf("the saga still leads to a default address: %s", object)
	}
	var s v1.Saga
	if err := yaml.UnmarshalStrict(object, &s); err != nil {
		r.t.Fatal(err)
	}
	def, in, problems := manifest.Definition(&s, kinds)
	if problems != nil {
		r.t.Fatal(problems)
	}
	return def, in
}
