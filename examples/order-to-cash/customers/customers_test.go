package customers_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/examples/order-to-cash/customers"
	"github.com/vextrus/saga-operator/internal/kernel"
)

func TestTheSameSeedMakesTheSameOrdersAndAllKindsAreAmongThem(t *testing.T) {
	t.Parallel()
	const n = 100
	all, err := customers.Make(7, "x", n)
	if err != nil {
		t.Fatal(err)
	}
	again, err := customers.Make(7, "x", n)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, again, cmp.Comparer(func(a, b kernel.Money) bool { return a == b })); diff != "" {
		t.Errorf("(-first +second):\n%s", diff)
	}
	count := map[customers.Kind]int{}
	for i, o := range all {
		count[o.Kind]++
		if slices.ContainsFunc(all[:i], func(other customers.Order) bool { return other.Order == o.Order }) {
			t.Errorf("order %s is there twice", o.Order)
		}
		if o.Total.Sign() <= 0 || len(o.Lines) == 0 || len(o.Ends()) == 0 {
			t.Errorf("%+v is no order", o)
		}
	}
	for _, k := range customers.Kinds {
		if count[k] == 0 {
			t.Errorf("no order %s", k)
		}
	}
	if count[customers.GoesThrough] < n/2 {
		t.Errorf("only %d go through", count[customers.GoesThrough])
	}
}
