package operator_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
	"github.com/vextrus/saga-operator/test/operator"
)

// patience bounds every wait. It is long because the machine may be busy, and the first may build kustomize.
const patience = 15 * time.Minute

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(throwaway.Main(m))
}

// TestUndeployingEndsAlthoughSagasAreThere deploys and undeploys as a person does. The operator has the rights of its ServiceAccount, and loses them when that goes.
func TestUndeployingEndsAlthoughSagasAreThere(t *testing.T) {
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("kubectl is not installed")
	}
	kubernetes := cluster.New(t, cluster.Options{CRDs: []string{}, ControllerManager: true})
	run(t, kubernetes, "deploy")
	account, err := kubernetes.ServiceAccount(t.Context(), "saga-system", "saga-operator")
	if err != nil {
		t.Fatal(err)
	}
	workshop, err := operator.NewWorkshop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = workshop.Close() }) // the operator has lost its rights, and may not end cleanly
	p, err := workshop.Start(t.Context(), operator.Options{Config: account, DatabaseURL: throwaway.EmptyDatabase(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	if err := p.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := v1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	k8s, err := client.New(kubernetes.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	finish(t, k8s)

	run(t, kubernetes, "undeploy")
	if err := k8s.List(t.Context(), &v1.SagaList{}); !apierrors.IsNotFound(err) {
		t.Errorf("listing sagas after undeploying: %v, want not found", err)
	}
	run(t, kubernetes, "undeploy") // where nothing is left, that is no error
}

// finish has a saga run to its end. Its finalizer stays on it.
func finish(t *testing.T, k8s client.Client) {
	t.Helper()
	service := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(service.Close)
	saga := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "finished"}}
	saga.Spec.Steps = []v1.Step{{Name: "a", Effect: v1.Effect{HTTP: &v1.HTTPRequest{Method: "POST", URL: service.URL}}}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	// The API server's admission learns of a new kind a little later than its storage, and answers 503 until then.
	err := k8s.Create(t.Context(), saga)
	for apierrors.IsServiceUnavailable(err) {
		select {
		case <-tick.C:
			err = k8s.Create(t.Context(), saga)
		case <-deadline:
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for saga.Status.Phase != v1.PhaseCompleted {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the saga is %s: %s", saga.Status.Phase, saga.Status.Reason)
		}
		if err := k8s.Get(t.Context(), client.ObjectKeyFromObject(saga), saga); err != nil {
			t.Fatal(err)
		}
	}
	if len(saga.Finalizers) == 0 {
		t.Error("the finished saga has no finalizer, so that nothing is shown here")
	}
}

// run runs a target of the Makefile against the cluster.
func run(t *testing.T, kubernetes *cluster.Cluster, target string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", "-C", "../..", target, "KUBECTL=kubectl --kubeconfig "+kubernetes.Kubeconfig())
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that kubectl ends with make
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, errors.Join(err, ctx.Err()), fmt.Sprint(&said))
	}
}
