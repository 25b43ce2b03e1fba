package aggregate_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestApplyFoldsAndRemembers(t *testing.T) {
	t.Parallel()
	var c cart
	c.Apply(added{SKU: "A", Quantity: 2}, removed{SKU: "B"})
	c.Apply(added{SKU: "A", Quantity: 1})
	if got := c.State().Items["A"]; got != 3 {
		t.Errorf("%d items", got)
	}
	if diff := cmp.Diff([]any{added{SKU: "A", Quantity: 2}, removed{SKU: "B"}, added{SKU: "A", Quantity: 1}}, c.Uncommitted()); diff != "" {
		t.Error(diff)
	}
	if c.Version() != 0 || c.ID() != "" {
		t.Errorf("uncommitted events have moved it to version %d of %q", c.Version(), c.ID())
	}
	c.Uncommitted()[0] = nil
	if c.Uncommitted()[0] == nil {
		t.Error("what Uncommitted returns is the aggregate's own")
	}
}

func TestHistoryContinuesASnapshot(t *testing.T) {
	t.Parallel()
	var c cart
	c.LoadFromSnapshot("7", 40, cartState{Items: map[string]int{"A": 1}})
	if err := c.LoadFromHistory("7", added{SKU: "A", Quantity: 1}, added{SKU: "B", Quantity: 1}); err != nil {
		t.Fatal(err)
	}
	if c.ID() != "7" || c.Version() != 42 || len(c.Uncommitted()) != 0 || !cmp.Equal(c.State().Items, map[string]int{"A": 2, "B": 1}) {
		t.Errorf("%q at version %d, %d uncommitted: %v", c.ID(), c.Version(), len(c.Uncommitted()), c.State())
	}
}

func TestHistoryDoesNotGoBehindUncommittedEvents(t *testing.T) {
	t.Parallel()
	var c cart
	c.Apply(added{SKU: "A", Quantity: 2})
	if err := c.LoadFromHistory("7", added{SKU: "A", Quantity: 1}); err == nil || c.Version() != 0 || c.State().Items["A"] != 2 {
		t.Errorf("%v, version %d", err, c.Version())
	}
	c.LoadFromSnapshot("7", 1, cartState{})
	if len(c.Uncommitted()) != 0 {
		t.Error("a snapshot replaces everything")
	}
	if err := c.LoadFromHistory("8", removed{}); err == nil {
		t.Error("the history of 8 continued 7")
	}
}

func TestValidateStateReportsTheViolation(t *testing.T) {
	t.Parallel()
	var c cart
	c.Apply(added{SKU: "A", Quantity: maxQuantity})
	if err := c.ValidateState(); err != nil {
		t.Error(err)
	}
	c.Apply(added{SKU: "A", Quantity: 1})
	if c.ValidateState() == nil {
		t.Error("one too many is no violation")
	}
}
