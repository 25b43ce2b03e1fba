package quota_test

import (
	"slices"
	"testing"

	"github.com/vextrus/saga-operator/internal/quota"
)

// door is a Sagas with limits that can be changed, and what it has woken.
type door struct {
	*quota.Sagas[string]
	limits quota.Limits
	woken  []string
}

func newDoor(sagas, bytes int64) *door {
	d := &door{limits: quota.Limits{UnfinishedSagas: sagas, UnfinishedBytes: bytes}}
	d.Sagas = quota.NewSagas(func(string) quota.Limits { return d.limits }, func(k string) { d.woken = append(d.woken, k) })
	return d
}

func (d *door) expect(t *testing.T, namespace, saga string, bytes int64, want quota.Verdict) {
	t.Helper()
	if got := d.Admit(namespace, saga, bytes); got != want {
		t.Errorf("%s/%s gets the verdict %d, want %d", namespace, saga, got, want)
	}
}

func (d *door) expectWoken(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(d.woken, want) {
		t.Errorf("woken: %v, want %v", d.woken, want)
	}
	d.woken = nil
}

func TestSagasAdmitsUpToTheNumber(t *testing.T) {
	d := newDoor(2, quota.Unlimited)
	d.Counted()
	d.expect(t, "a", "1", 1, quota.Admitted)
	d.expect(t, "a", "2", 1, quota.Admitted)
	d.expect(t, "a", "3", 1, quota.Full)
	d.expect(t, "a", "1", 1, quota.Admitted) // again
	d.expect(t, "b", "4", 1, quota.Admitted) // another namespace
}

func TestSagasAdmitsUpToTheBytes(t *testing.T) {
	d := newDoor(quota.Unlimited, 10)
	d.Counted()
	d.expect(t, "a", "1", 6, quota.Admitted)
	d.expect(t, "a", "2", 5, quota.Full)
	d.expect(t, "a", "3", 11, quota.TooLarge)
	d.Ended("a", "1")
	d.expectWoken(t, "2")
}

func TestSagasStartInTheOrderOfTheirArrival(t *testing.T) {
	d := newDoor(1, 10)
	d.Counted()
	d.expect(t, "a", "1", 10, quota.Admitted)
	for _, k := range []string{"2", "3", "4"} {
		d.expect(t, "a", k, 10, quota.Full)
	}
	d.expect(t, "a", "2", 10, quota.Full) // keeps its place
	d.Ended("a", "3")                     // deleted
	d.expectWoken(t)
	d.Ended("a", "1")
	d.expectWoken(t, "2")
	d.expect(t, "a", "5", 10, quota.Full) // 2 counts already
	d.expect(t, "a", "2", 10, quota.Admitted)
	d.Ended("a", "2")
	d.expectWoken(t, "4")
	d.Ended("a", "4") // it did not start after all
	d.expectWoken(t, "5")
	if d.Ended("a", "5"); d.Waiting() != 0 {
		t.Errorf("%d wait", d.Waiting())
	}
}

func TestSagasSmallOnesDoNotOvertake(t *testing.T) {
	d := newDoor(quota.Unlimited, 10)
	d.Counted()
	d.expect(t, "a", "1", 6, quota.Admitted)
	d.expect(t, "a", "large", 8, quota.Full)
	d.expect(t, "a", "small", 1, quota.Full)
	d.Ended("a", "1")
	d.expectWoken(t, "large", "small")
}

func TestSagasWaitUntilTheyAreCounted(t *testing.T) {
	d := newDoor(2, quota.Unlimited)
	d.expect(t, "a", "new1", 1, quota.Uncounted)
	d.expect(t, "a", "new2", 1, quota.Uncounted)
	d.Started("a", "old", 1)
	d.Started("a", "old", 1)
	d.Ended("b", "unknown")
	d.expectWoken(t)
	d.Counted()
	d.expectWoken(t, "new1", "new2") // the second one waits for the quota now, and its status has to say so
	d.expect(t, "a", "new1", 1, quota.Admitted)
	d.expect(t, "a", "new2", 1, quota.Full)
	d.Counted()
	d.expectWoken(t)
}

func TestSagasCountThoseThatHaveStarted(t *testing.T) {
	d := newDoor(1, quota.Unlimited)
	d.Counted()
	d.Started("a", "1", 1)
	d.Started("a", "2", 1) // above the limit, which was higher
	d.expect(t, "a", "3", 1, quota.Full)
	d.Ended("a", "1")
	d.expectWoken(t)
	if !d.Counts("a", "2") || d.Counts("a", "1") || d.Counts("a", "3") {
		t.Error("it does not count 2 alone")
	}
	d.Ended("a", "2")
	d.expectWoken(t, "3")
}

func TestSagasReconsiderChangedLimits(t *testing.T) {
	d := newDoor(0, 10)
	d.Counted()
	for _, k := range []string{"1", "2", "3"} {
		d.expect(t, "a", k, 9, quota.Full)
	}
	d.limits.UnfinishedBytes = 8
	d.Reconsider("a")
	d.expectWoken(t, "1", "2", "3") // they are too large now, and ask again
	d.expect(t, "a", "1", 9, quota.TooLarge)
	d.limits = quota.None()
	d.expect(t, "a", "1", 9, quota.Admitted)
}
