package turns

import (
	"strings"
	"testing"
)

// pushed returns a queue of items, each the name of its group and a number.
func pushed(items string) (*Queue[string], map[string]*Item[string]) {
	q, all := &Queue[string]{}, map[string]*Item[string]{}
	for _, v := range strings.Fields(items) {
		all[v] = q.Push(v[:1], strings.HasSuffix(v, "!"), v)
	}
	return q, all
}

func drained(q *Queue[string], admits func(string) bool) string {
	var got []string
	for v, ok := q.Pop(admits); ok; v, ok = q.Pop(admits) {
		got = append(got, v)
	}
	return strings.Join(got, " ")
}

func TestQueueGroupsTakeTurns(t *testing.T) {
	t.Parallel()
	q, _ := pushed("a1 a2 a3 a4 b1 b2 c1")
	if got, want := drained(q, nil), "a1 b1 c1 a2 b2 a3 a4"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
	if q.Len() != 0 || len(q.groups) != 0 || q.order.Len() != 0 {
		t.Errorf("an empty queue holds %d items of %d groups", q.Len(), len(q.groups))
	}
}

func TestQueueNewGroupIsServedWithinARound(t *testing.T) {
	t.Parallel()
	q, _ := pushed("a1 a2 a3 b1 b2 b3")
	q.Pop(nil)
	q.Push("z", false, "z1")
	if got, want := drained(q, nil), "b1 a2 z1 b2 a3 b3"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
}

func TestQueueUrgentItemsComeFirstInTheirGroupOnly(t *testing.T) {
	t.Parallel()
	q, _ := pushed("a1 a2! a3! b1 b2!")
	if got, want := drained(q, nil), "a2! b2! a3! b1 a1"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
}

func TestQueueHastenedItemKeepsOnePlace(t *testing.T) {
	t.Parallel()
	q, all := pushed("a1 a2 a3")
	q.Hasten(all["a3"])
	q.Hasten(all["a3"])
	if got, want := drained(q, nil), "a3 a1 a2"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
	q.Hasten(all["a1"])
	if q.Len() != 0 {
		t.Error("an item that has left the queue is in it again")
	}
}

func TestQueueSkipsGroupThatIsNotAdmitted(t *testing.T) {
	t.Parallel()
	q, _ := pushed("a1 b1 a2 b2")
	if got, want := drained(q, func(g string) bool { return g != "a" }), "b1 b2"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
	if got, want := drained(q, nil), "a1 a2"; got != want {
		t.Errorf("then it is %q, want %q", got, want)
	}
	if q.Len() != 0 {
		t.Errorf("%d items are left", q.Len())
	}
}
