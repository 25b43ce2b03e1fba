package services_test

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
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

func kinds(t *testing.T) participant.Registry {
	t.Helper()
	loopback, err := egress.New([]string{"127.0.0.0/8"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return participant.Registry{httpparticipant.Kind: httpparticipant.New(httpparticipant.Options{Egress: loopback})}
}

// compile reads one of the example's sagas.
func compile(t *testing.T, name string, at ordertocash.URLs, kinds participant.Registry) (saga.Definition, json.RawMessage) {
	t.Helper()
	text, err := ordertocash.Manifest(name, at)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{ordertocash.DefaultURLs.Orders, ordertocash.DefaultURLs.Inventory, ordertocash.DefaultURLs.Payments, ordertocash.DefaultURLs.Shipping, ordertocash.DefaultURLs.Invoicing} {
		if bytes.Contains(text, []byte(url)) {
			t.Errorf("%s still leads to %s", name, url)
		}
	}
	var s v1.Saga
	if err := yaml.UnmarshalStrict(text, &s); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	def, input, problems := manifest.Definition(&s, kinds)
	if problems != nil {
		t.Fatalf("%s: %v", name, problems)
	}
	return def, input
}

// TestTheSagasEndAsTheyAreDescribed drives them with the engine alone, without a cluster. Every service loses an answer.
func TestTheSagasEndAsTheyAreDescribed(t *testing.T) {
	t.Parallel()
	r := start(t)
	if err := r.Outage(services.Outage{Order: "1044", Requests: 1}); err != nil {
		t.Fatal(err)
	}
	for _, service := range services.Names {
		if err := r.SetFaults(service, services.Faults{Lose: 1, Requests: 1}); err != nil {
			t.Fatal(err)
		}
	}
	phases := r.drive(ordertocash.Sagas())
	r.check(phases, map[string]saga.Phase{"completes.yaml": saga.Completed, "declined.yaml": saga.Compensated, "shipping-down.yaml": saga.Completed})
	r.balances()
	left := r.ledger().Orders
	slices.SortFunc(left, func(a, b ledger.Order) int { return strings.Compare(a.Order, b.Order) })
	r.check(left, []ledger.Order{
		{Order: "1042", Status: "fulfilled", Gone: 2, Promised: "0", Taken: "129.90", Currency: "EUR", Labels: 1, PickedUp: 1, Invoiced: "129.90"},
		{Order: "1043", Status: "cancelled", Promised: "0", Taken: "0", Invoiced: "0"},
		{Order: "1044", Status: "fulfilled", Gone: 1, Promised: "0", Taken: "24.50", Currency: "EUR", Labels: 1, PickedUp: 1, Invoiced: "24.50"},
	})
}

// drive runs sagas to their ends and returns those.
func (r rig) drive(names []string) map[string]saga.Phase {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	kinds := kinds(r.t)
	runner := &driver.Runner{Workers: 2}
	var err error
	if runner.Engine, err = engine.New(engine.Options{Store: memory.New(), Participants: kinds, Notify: runner.Enqueue}); err != nil {
		r.t.Fatal(err)
	}
	seen := map[engine.Key]engine.Observation{}
	for _, name := range names {
		def, input := compile(r.t, name, r.URLs(), kinds)
		seen[engine.Key{Namespace: "shop", Name: name, UID: uuid.NewString()}] = engine.Observation{Definition: &def, Input: input}
	}
	var mu sync.Mutex
	phases := map[string]saga.Phase{}
	runner.Observe = func(k engine.Key) engine.Observation { return seen[k] }
	runner.Finished = func(k engine.Key, result engine.Result) {
		mu.Lock()
		defer mu.Unlock()
		if phases[k.Name] = result.State.Phase; len(phases) == len(names) {
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
