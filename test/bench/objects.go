package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// objectSaga is the saga of the engine's benchmark as a user would write it.
func objectSaga(namespace, name, url string) *v1.Saga {
	s := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	s.Spec.Input = &v1.JSON{Raw: []byte(sagaInput)}
	for i, step := range []string{"reserve", "charge", "ship"} {
		body := `{"order":"${input.orderId}","lines":"${input.lines}"}`
		if i > 0 {
			previous := s.Spec.Steps[i-1].Name
			body = `{"order":"${input.orderId}","lines":"${input.lines}","previous":"${steps.` + previous + `.output.id}"}`
		}
		s.Spec.Steps = append(s.Spec.Steps, v1.Step{
			Name:   step,
			Effect: v1.Effect{HTTP: &v1.HTTPRequest{Method: "POST", URL: url + "/" + step, Body: &v1.JSON{Raw: []byte(body)}}},
			Output: map[string]v1.OutputTemplate{"id": "${response.body.id}"},
			Compensation: &v1.Effect{
				HTTP: &v1.HTTPRequest{Method: "DELETE", URL: url + "/" + step + "/${input.orderId}"},
			},
		})
	}
	return s
}

// measureObjects sends sagas through objects, and compares with what the API server does when it only stores them: one create and one status write each.
func measureObjects(ctx context.Context, s settings) (rows []Row, err error) {
	w, err := startWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	var ours, bare []float64
	for round := range s.rounds {
		limit, err := w.bareObjects(ctx, s, "bare-"+strconv.Itoa(round))
		if err != nil {
			return nil, err
		}
		rate, err := w.sagas(ctx, s, "sagas-"+strconv.Itoa(round), s.objects)
		if err != nil {
			return nil, err
		}
		bare, ours = append(bare, limit), append(ours, rate)
	}
	return []Row{row("objects.sagas", median(ours), "sagas/s", median(bare),
		"three HTTP steps, each saga an object, from create to Completed in its status; limit: bare creates and one status write each")}, nil
}

// measureMemory looks at the operator's memory with many finished sagas in the cluster.
func measureMemory(ctx context.Context, s settings) (rows []Row, err error) {
	w, err := startWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	if err := w.startOperator(ctx); err != nil {
		return nil, err
	}
	if _, err := w.sagas(ctx, s, "finished", s.finished); err != nil {
		return nil, err
	}
	now, peak, err := w.operatorMemory()
	if err != nil {
		return nil, err
	}
	return []Row{
		row("operator.memory", now, "MiB", 150, fmt.Sprintf("resident memory after %d sagas have finished and are still in the cluster; limit: the mark", s.finished)),
		row("operator.memory.peak", peak, "MiB", 0, "its highest value on the way"),
	}, nil
}

// bareObjects creates objects and writes each one's status once, with the operator stopped.
func (w *world) bareObjects(ctx context.Context, s settings, namespace string) (float64, error) {
	if err := w.stopOperator(); err != nil {
		return 0, err
	}
	if err := w.namespace(ctx, namespace); err != nil {
		return 0, err
	}
	began := time.Now()
	err := w.each(ctx, s, s.objects, func(ctx context.Context, c client.Client, i int) error {
		obj := objectSaga(namespace, "saga-"+strconv.Itoa(i), w.parts.url)
		if err := c.Create(ctx, obj); err != nil {
			return err
		}
		obj.Status = finishedStatus()
		return c.Status().Update(ctx, obj)
	})
	return float64(s.objects) / time.Since(began).Seconds(), err
}

// finishedStatus is about as much as the operator writes for a saga of three steps.
func finishedStatus() v1.SagaStatus {
	now := metav1.Now()
	st := v1.SagaStatus{Phase: v1.PhaseCompleted, Progress: "3/3", RecordedVersion: 8, StartedAt: &now, EndedAt: &now}
	for _, name := range []string{"reserve", "charge", "ship"} {
		st.Steps = append(st.Steps, v1.StepStatus{Name: name, Phase: v1.StepSucceeded, Attempts: 1, StartedAt: &now, EndedAt: &now})
	}
	for _, typ := range []string{v1.ConditionReady, v1.ConditionProgressing, v1.ConditionStalled, v1.ConditionCompleted} {
		st.Conditions = append(st.Conditions, metav1.Condition{Type: typ, Status: metav1.ConditionTrue, Reason: "Completed",
			Message: "Every action has succeeded.", LastTransitionTime: now, ObservedGeneration: 1})
	}
	return st
}

// sagas creates sagas and waits until the last one's status says Completed.
func (w *world) sagas(ctx context.Context, s settings, namespace string, n int) (float64, error) {
	if err := w.startOperator(ctx); err != nil {
		return 0, err
	}
	if err := w.namespace(ctx, namespace); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	finished := make(chan error, 1)
	go func() { finished <- w.awaitCompleted(ctx, namespace, n) }()
	began := time.Now()
	err := w.each(ctx, s, n, func(ctx context.Context, c client.Client, i int) error {
		return c.Create(ctx, objectSaga(namespace, "saga-"+strconv.Itoa(i), w.parts.url))
	})
	if err != nil {
		return 0, err
	}
	if err := <-finished; err != nil {
		return 0, err
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// awaitCompleted watches a namespace until so many sagas are Completed.
func (w *world) awaitCompleted(ctx context.Context, namespace string, n int) error {
	completed := map[string]bool{}
	for len(completed) < n {
		watcher, err := w.watcher.Watch(ctx, &v1.SagaList{}, client.InNamespace(namespace))
		if err != nil {
			return fmt.Errorf("watching sagas: %w", err)
		}
		err = countCompleted(ctx, watcher, completed, n)
		watcher.Stop()
		if err != nil {
			return err
		}
	}
	return nil
}

func countCompleted(ctx context.Context, watcher watch.Interface, completed map[string]bool, n int) error {
	for len(completed) < n {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for sagas: %d of %d are completed: %w", len(completed), n, ctx.Err())
		case e, ok := <-watcher.ResultChan():
			if !ok {
				return nil // the API server ends watches now and then; the next one begins with what is there
			}
			saga, isSaga := e.Object.(*v1.Saga)
			if !isSaga {
				continue
			}
			switch saga.Status.Phase {
			case v1.PhaseCompleted:
				completed[saga.Name] = true
			case v1.PhaseCompensating, v1.PhaseCompensated, v1.PhaseCompensationFailed:
				return fmt.Errorf("saga %s is %s: %+v", saga.Name, saga.Status.Phase, saga.Status.Failure)
			}
		}
	}
	return nil
}

// each does n things with so many clients at once, each with connections of its own.
func (w *world) each(ctx context.Context, s settings, n int, do func(context.Context, client.Client, int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	failed := make([]error, s.clients)
	for k := range s.clients {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				if err := do(ctx, w.clients[k%len(w.clients)], int(i)); err != nil {
					failed[k] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// operatorMemory reads the operator's resident memory, now and at its highest, in MiB.
func (w *world) operatorMemory() (now, peak float64, err error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(w.operator.PID()), "status"))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the operator's memory (this needs Linux): %w", err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64) // only the two lines below are used
		switch fields[0] {
		case "VmRSS:":
			now = kib / 1024
		case "VmHWM:":
			peak = kib / 1024
		}
	}
	return now, peak, nil
}

// newClients makes clients without a limit of their own.
func newClients(cfg *rest.Config, scheme *runtime.Scheme, n int) ([]client.Client, error) {
	clients := make([]client.Client, n)
	for i := range clients {
		c := rest.CopyConfig(cfg)
		c.QPS, c.WarningHandler = -1, rest.NoWarnings{}
		var err error
		if clients[i], err = client.New(c, client.Options{Scheme: scheme}); err != nil {
			return nil, fmt.Errorf("making a client: %w", err)
		}
	}
	return clients, nil
}
