package run

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// TestTheLeaderOutlivesAnAPIServerThatIsAway runs the whole operator, as leader, and stops the API server for longer than a lease lasts.
func TestTheLeaderOutlivesAnAPIServerThatIsAway(t *testing.T) {
	t.Parallel()
	kubernetes := cluster.New(t, cluster.Options{})
	log := &lockedBuffer{}
	dsn := throwaway.Database(t)
	service := newSlowService(t)
	health := freeAddress(t)
	const lease = 5 * time.Second
	stop := operatorProcess(t, log, dsn, "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--lease-duration", lease.String(),
		"--health-address", health, "--metrics-address=0", "--api-bind-address=0", "--egress-allow=127.0.0.0/8", "--log-format=text")
	defer func() {
		_ = stop() // it has ended by itself when all is well
		if t.Failed() {
			t.Logf("the operator's log:\n%s", log.String())
		}
	}()
	eventually(t, func() error { return ready(t, health, http.StatusOK, "[+] apiserver: ok") })
	kube := newClient(t, kubernetes)
	o := create(t, kube, "slow", service.URL+"/slow")
	service.awaitRequest()

	if err := kubernetes.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	away := time.After(2 * lease) // nothing is waited for here: nothing must happen
	eventually(t, func() error {
		return ready(t, health, http.StatusServiceUnavailable, "[-] apiserver: reading sagas at the API server: ")
	})
	service.answer()
	eventually(t, func() error { return recorded(t, dsn, o, "SagaCompleted") })
	<-away
	if err := ready(t, health, http.StatusServiceUnavailable, "[-] apiserver: "); err != nil {
		t.Fatalf("the operator ended while the API server was away: %v", err)
	}
	if err := kubernetes.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return ready(t, health, http.StatusOK, "[+] apiserver: ok") })
	waitCompleted(t, kube, o)
	waitCompleted(t, kube, create(t, kube, "after", service.URL+"/after"))

	// Somebody else who has the lease, and keeps it, is another matter.
	taken := &coordinationv1.Lease{}
	taken.Namespace, taken.Name = "saga-system", "saga-operator"
	admin, err := client.New(kubernetes.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.Patch(t.Context(), taken, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"holderIdentity":"another","leaseDurationSeconds":3600}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !strings.Contains(log.String(), "leader election lost") {
			return errors.New("the operator leads although another has the lease")
		}
		return nil
	})
}

func TestReadinessWaitsUntilTheSagasHaveBeenRead(t *testing.T) {
	t.Parallel()
	kubernetes := cluster.New(t, cluster.Options{})
	mgr, err := newManager(Config{LeaseDuration: time.Minute, ShutdownGrace: patience}, kubernetes.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := cachesSynced(t.Context(), mgr); err == nil || !strings.Contains(err.Error(), "not been read") {
		t.Errorf("before anything was read it says %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	eventually(t, func() error { return cachesSynced(t.Context(), mgr) })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := sagasReadable(t.Context(), Config{Namespaces: list{"shop"}}, mgr.GetAPIReader()); err != nil {
		t.Error(err)
	}
	nobody, err := kubernetes.User("nobody")
	if err != nil {
		t.Fatal(err)
	}
	blind, err := client.New(nobody, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sagasReadable(t.Context(), Config{}, blind); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("who may not read sagas is told %v", err)
	}
}

// TestALeaseIsKeptOnlyByWhoHadIt asks a real API server, and then one that has stopped.
func TestALeaseIsKeptOnlyByWhoHadIt(t *testing.T) {
	t.Parallel()
	kubernetes := cluster.New(t, cluster.Options{})
	locks := make([]resourcelock.Interface, 2)
	for i := range locks {
		lock, err := leaseLock(Config{LeaseSpace: "default", LeaseName: "lease"}, kubernetes.Config, patience)
		if err != nil {
			t.Fatal(err)
		}
		locks[i] = lock
	}
	mine := func(l resourcelock.Interface) resourcelock.LeaderElectionRecord {
		return resourcelock.LeaderElectionRecord{HolderIdentity: l.Identity(), LeaseDurationSeconds: 60}
	}
	leader, other := locks[0], locks[1]
	if err := leader.Create(t.Context(), mine(leader)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := kubernetes.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := leader.Update(t.Context(), mine(leader)); err != nil {
		t.Errorf("the leader loses its lease to an API server that is away: %v", err)
	}
	if record, _, err := leader.Get(t.Context()); err != nil || record.HolderIdentity != leader.Identity() {
		t.Errorf("the leader that asks an API server that is away whose its lease is hears %+v, %v", record, err)
	}
	if _, _, err := other.Get(t.Context()); err == nil {
		t.Error("somebody else knows whose the lease is although the API server is away")
	}
	if err := leader.Update(t.Context(), resourcelock.LeaderElectionRecord{}); err == nil {
		t.Error("a lease was given back to an API server that is away")
	}
	if err := other.Update(t.Context(), mine(other)); err == nil {
		t.Error("somebody took the lease at an API server that is away")
	}
	if err := kubernetes.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := other.Update(t.Context(), mine(other)); err != nil {
		t.Fatal(err)
	}
	if err := leader.Update(t.Context(), mine(leader)); err == nil {
		t.Error("the leader keeps a lease that another has taken")
	}
	if record, _, err := leader.Get(t.Context()); err != nil || record.HolderIdentity != other.Identity() {
		t.Errorf("the lease that another has taken is %+v, %v", record, err)
	}
}
