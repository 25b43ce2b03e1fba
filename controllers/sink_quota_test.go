package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/quota"
)

// TestSinksBeyondTheQuotaAreNotPublishedTo has a namespace with one Sink more than it may have.
func TestSinksBeyondTheQuotaAreNotPublishedTo(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	limits := quota.None()
	limits.Sinks = 2
	table := quota.NewTable(limits)
	spec := fmt.Sprintf(`{http: {url: "%s"}}`, newReceiver(t, "").url)
	var order []*v1.Sink
	for _, name := range []string{"a", "b", "c"} {
		order = append(order, r.sink(name, spec))
	}
	slices.SortFunc(order, func(a, b *v1.Sink) int { return placeOf(a).compare(placeOf(b)) })
	oldest, last := order[0].Name, order[2]
	r.start(func(s *SinkReconciler, _ *ctrl.Options) { s.Quotas = table })
	o := r.waitReady(last.Name, metav1.ConditionFalse, v1.SinkReasonQuotaExceeded)
	message := condition(o.Status.Conditions, v1.ConditionReady).Message
	for _, part := range []string{r.ns, "may have 2 Sinks", v1.MaxSinksAnnotation} {
		if !strings.Contains(message, part) {
			t.Errorf("the message lacks %q: %s", part, message)
		}
	}
	r.waitReady(oldest, metav1.ConditionTrue, v1.SinkReasonReady)
	if r.relay.hasBegun(string(last.UID)) {
		t.Error("the outbox keeps messages for a sink beyond the quota")
	}
	if err := table.Set(r.ns, map[string]string{v1.MaxSinksAnnotation: "3"}); err != nil {
		t.Fatal(err)
	}
	r.waitReady(last.Name, metav1.ConditionTrue, v1.SinkReasonReady)
	if err := table.Set(r.ns, nil); err != nil {
		t.Fatal(err)
	}
	r.waitReady(last.Name, metav1.ConditionFalse, v1.SinkReasonQuotaExceeded)
	if _, published := r.relay.get(string(last.UID)); published {
		t.Error("a sink is published to although the quota was lowered")
	}
	if err := r.kube.Delete(t.Context(), order[0]); err != nil {
		t.Fatal(err)
	}
	r.waitReady(last.Name, metav1.ConditionTrue, v1.SinkReasonReady)
}

// TestSinkOrderQueuesTheOneAtTheQuota has every replica look at the sink for which that has changed.
func TestSinkOrderQueuesTheOneAtTheQuota(t *testing.T) {
	t.Parallel()
	limits := quota.None()
	limits.Sinks = 2
	r := &SinkReconciler{Quotas: quota.NewTable(limits)}
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer q.ShutDown()
	sinks := make([]*v1.Sink, 4)
	for i := range sinks {
		sinks[i] = &v1.Sink{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i))}}
	}
	expect := func(doing string, want ...string) {
		t.Helper()
		var got []string
		for q.Len() > 0 {
			k, _ := q.Get()
			q.Done(k)
			got = append(got, k.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: queued are %v, want %v", doing, got, want)
		}
	}
	r.orderGains(sinks[1], q)
	r.orderGains(sinks[2], q)
	expect("within the quota")
	r.orderGains(sinks[0], q) // of the same second
	expect("an older one comes", "2")
	r.orderGains(sinks[3], q)
	expect("a newer one comes", "2")
	r.orderLoses(sinks[1], q)
	expect("one goes", "2")
	r.orderLoses(sinks[0], q)
	expect("another goes", "3")
	r.orderLoses(sinks[2], q)
	expect("fewer than the quota are left")
}

func TestSinkOrderGoesByAgeAndUID(t *testing.T) {
	t.Parallel()
	var o sinkOrder
	at := func(uid string, second int64) *v1.Sink {
		return &v1.Sink{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s" + uid, UID: types.UID(uid), CreationTimestamp: metav1.NewTime(time.Unix(second, 0))}}
	}
	newest, second, first := at("1", 9), at("3", 5), at("2", 5)
	for _, s := range []*v1.Sink{newest, second, first, second} {
		o.add(s)
	}
	for want, s := range []*v1.Sink{first, second, newest} {
		if got := o.rank(s); got != want {
			t.Errorf("%d sinks are older than %s, want %d", got, s.Name, want)
		}
	}
	o.remove(second)
	o.remove(second)
	if got := o.rank(newest); got != 1 {
		t.Errorf("when one has gone, %d are older than the newest, want 1", got)
	}
	o.remove(first)
	o.remove(newest)
	if len(o.namespaces) != 0 {
		t.Errorf("the order keeps %v", o.namespaces)
	}
}
