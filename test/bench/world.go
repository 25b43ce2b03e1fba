package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
	"github.com/vextrus/saga-operator/test/operator"
)

// world is everything that a saga which is an object needs: an API server, PostgreSQL, participants, and the operator as a process of its own.
type world struct {
	workshop *operator.Workshop
	cluster  *cluster.Cluster
	server   *throwaway.Server
	dsn      string
	parts    *participants
	clients  []client.Client
	watcher  client.WithWatch
	operator *operator.Process
}

// clientConnections is how many clients with connections of their own there are; more share them.
const clientConnections = 8

func startWorld(ctx context.Context) (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if w.workshop, err = operator.NewWorkshop(ctx); err != nil {
		return w, err
	}
	if w.server, err = throwaway.Start(ctx, throwaway.Options{Durable: true}); err != nil {
		return w, err
	}
	if w.dsn, _, err = w.server.NewDatabase(ctx); err != nil {
		return w, err
	}
	if w.cluster, err = cluster.Start(ctx, cluster.Options{Durable: true, Manifests: admission()}); err != nil {
		return w, err
	}
	if w.parts, err = startParticipants(); err != nil {
		return w, err
	}
	if err := w.connect(); err != nil {
		return w, err
	}
	return w, w.awaitAdmission(ctx)
}

// awaitAdmission waits until the API server applies the policy: it learns the types that a policy writes a while after they were installed.
func (w *world) awaitAdmission(ctx context.Context) error {
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		probe := objectSaga(metav1.NamespaceDefault, "probe", w.parts.url)
		err := w.clients[0].Create(ctx, probe, client.DryRunAll)
		return err == nil && len(probe.Finalizers) > 0, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the admission policy to take effect: %w", err)
	}
	return nil
}

// admission lists the policies as they are deployed: they put the finalizer on at creation, also in the measurement of the limit.
func admission() []string {
	files, _ := filepath.Glob("config/admission/*_policy.yaml") // the pattern is well formed
	return files
}

func (w *world) connect() (err error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1.AddToScheme(scheme)); err != nil {
		return err
	}
	if w.clients, err = newClients(w.cluster.Config, scheme, clientConnections); err != nil {
		return err
	}
	cfg := rest.CopyConfig(w.cluster.Config)
	cfg.WarningHandler = rest.NoWarnings{}
	w.watcher, err = client.NewWithWatch(cfg, client.Options{Scheme: scheme})
	return err
}

func (w *world) stop() error {
	errs := []error{w.stopOperator()}
	if w.parts != nil {
		errs = append(errs, w.parts.stop())
	}
	if w.cluster != nil {
		errs = append(errs, w.cluster.Stop())
	}
	if w.server != nil {
		errs = append(errs, w.server.Close())
	}
	if w.workshop != nil {
		errs = append(errs, w.workshop.Close())
	}
	return errors.Join(errs...)
}

// startOperator starts the operator as it is deployed, and waits until it is ready.
func (w *world) startOperator(ctx context.Context) (err error) {
	if w.operator != nil {
		return nil
	}
	if w.operator, err = w.workshop.Start(ctx, operator.Options{Config: w.cluster.Config, DatabaseURL: w.dsn}); err != nil {
		return err
	}
	return w.operator.AwaitReady(ctx)
}

func (w *world) stopOperator() error {
	if w.operator == nil {
		return nil
	}
	op := w.operator
	w.operator = nil
	return op.Stop()
}

func (w *world) namespace(ctx context.Context, name string) error {
	err := w.clients[0].Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil {
		return fmt.Errorf("making namespace %s: %w", name, err)
	}
	return nil
}
