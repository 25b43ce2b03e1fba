package controllers

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// shared is the API server of this package's tests, started by the first that needs it. Each test has a namespace of its own.
var shared struct {
	once    sync.Once
	cluster *cluster.Cluster
	err     error
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard()) // each operator logs to its test
	klog.SetLogger(logr.Discard())
	code := throwaway.Main(m)
	if shared.cluster != nil {
		if err := shared.cluster.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

func apiServer(t testing.TB) *rest.Config {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patienceOfTests)
		defer cancel()
		shared.cluster, shared.err = cluster.Start(ctx, cluster.Options{})
	})
	if shared.err != nil {
		t.Fatalf("starting the API server: %v", shared.err)
	}
	return rest.CopyConfig(shared.cluster.Config)
}
