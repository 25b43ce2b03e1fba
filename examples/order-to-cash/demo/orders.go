package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
)

// manifest reads a saga as a user would apply it.
func manifest(name string, at ordertocash.URLs) (*v1.Saga, error) {
	text, err := ordertocash.Manifest(name, at)
	if err != nil {
		return nil, err
	}
	saga := &v1.Saga{}
	if err := yaml.UnmarshalStrict(text, saga); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	saga.Namespace = namespace
	return saga, nil
}

// placeOrders applies the sagas and tells how each goes on until all have ended.
func (w *world) placeOrders(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	heading("Shipping is told to be unavailable for the next three requests of order 1044")
	if err := w.breakShipping(ctx); err != nil {
		return err
	}
	heading("Three orders are applied")
	for _, o := range orders {
		fmt.Printf("  kubectl apply -n %s -f examples/order-to-cash/sagas/%-20s # %s\n", namespace, o.manifest, o.about)
	}
	fmt.Println()
	watcher, err := w.client.Watch(ctx, &v1.SagaList{}, client.InNamespace(namespace))
	if err != nil {
		return fmt.Errorf("watching the sagas: %w", err)
	}
	defer watcher.Stop()
	began := time.Now()
	for _, o := range orders {
		saga, err := manifest(o.manifest, w.urls)
		if err != nil {
			return err
		}
		if err := w.client.Create(ctx, saga); err != nil {
			return fmt.Errorf("applying %s: %w", o.manifest, err)
		}
	}
	return follow(ctx, watcher, began, w.operator.Tail)
}

func (w *world) breakShipping(ctx context.Context) error {
	body := []byte(`{"order": "1044", "requests": 3}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.urls.Shipping+"/admin/outage", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("telling shipping to be unavailable: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("telling shipping to be unavailable: it answered %s", resp.Status)
	}
	return nil
}

// follow prints a line for each change that a person would see, until all orders have ended as they should.
func follow(ctx context.Context, watcher watch.Interface, began time.Time, log func() string) error {
	ended, last := map[string]v1.SagaPhase{}, map[string]string{}
	for len(ended) < len(orders) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the orders to end: %w; last seen: %v\n%s", ctx.Err(), last, log())
		case e, ok := <-watcher.ResultChan():
			if !ok {
				return errors.New("the API server ended the watch")
			}
			saga, isSaga := e.Object.(*v1.Saga)
			if !isSaga {
				continue
			}
			if line := progress(saga); line != last[saga.Name] {
				last[saga.Name] = line
				fmt.Printf("  %5.1fs  %s\n", time.Since(began).Seconds(), line)
			}
			switch p := saga.Status.Phase; p {
			case v1.PhaseCompleted, v1.PhaseCompensated, v1.PhaseCompensationFailed:
				ended[saga.Name] = p
			}
		}
	}
	var errs []error
	for _, o := range orders {
		if ended[o.name] != o.ends {
			errs = append(errs, fmt.Errorf("%s ended as %s, not as %s", o.name, ended[o.name], o.ends))
		}
	}
	return errors.Join(errs...)
}

func progress(s *v1.Saga) string {
	phase := s.Status.Phase
	if phase == "" {
		phase = v1.PhasePending
	}
	return strings.TrimRight(fmt.Sprintf("%-12s %-13s %-5s %-14s %s", s.Name, phase, s.Status.Progress, s.Status.Step, s.Status.Reason), " ")
}

// printTable asks the API server for the table that kubectl prints.
func (w *world) printTable(ctx context.Context) error {
	config := rest.CopyConfig(w.cluster.Config)
	config.GroupVersion, config.APIPath = &v1.GroupVersion, "/apis"
	config.NegotiatedSerializer = clientgoscheme.Codecs.WithoutConversion()
	c, err := rest.RESTClientFor(config)
	if err != nil {
		return fmt.Errorf("asking for the table of sagas: %w", err)
	}
	raw, err := c.Get().Namespace(namespace).Resource("sagas").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("asking for the table of sagas: %w", err)
	}
	var table metav1.Table
	if err := json.Unmarshal(raw, &table); err != nil {
		return fmt.Errorf("reading the table of sagas: %w", err)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprint(out, "  ")
	for _, c := range table.ColumnDefinitions {
		if c.Priority == 0 {
			fmt.Fprint(out, strings.ToUpper(c.Name), "\t")
		}
	}
	fmt.Fprintln(out)
	for _, row := range table.Rows {
		fmt.Fprint(out, "  ")
		for i, cell := range row.Cells {
			if table.ColumnDefinitions[i].Priority == 0 {
				if cell == nil {
					cell = ""
				}
				fmt.Fprint(out, cell, "\t")
			}
		}
		fmt.Fprintln(out)
	}
	return out.Flush()
}

// printHistory prints the events of one saga, as they were recorded.
func (w *world) printHistory(ctx context.Context, name string) error {
	saga := &v1.Saga{}
	if err := w.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, saga); err != nil {
		return fmt.Errorf("looking for %s: %w", name, err)
	}
	conn, err := pgx.Connect(ctx, w.database)
	if err != nil {
		return fmt.Errorf("reading the events of %s: %w", name, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, `SELECT version, recorded_at, type, data->>'direction', data->>'step', coalesce(data->>'message', data->>'createdBy', '')
		FROM event_store WHERE stream = $1 ORDER BY version`, "saga-"+string(saga.UID))
	if err != nil {
		return fmt.Errorf("reading the events of %s: %w", name, err)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	var version int64
	var at time.Time
	var typ, note string
	var direction, step *string
	if _, err := pgx.ForEachRow(rows, []any{&version, &at, &typ, &direction, &step, &note}, func() error {
		_, err := fmt.Fprintf(out, "  %d\t%s\t%s\t%s\t%s\t%s\n", version, at.Format("15:04:05.000"), typ, text(direction), text(step), note)
		return err
	}); err != nil {
		return fmt.Errorf("reading the events of %s: %w", name, err)
	}
	return out.Flush()
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// printLedger prints what the services' own tables say, and returns what does not add up.
func (w *world) printLedger(ctx context.Context) ([]string, error) {
	l, err := ledger.Read(ctx, w.shop)
	if err != nil {
		return nil, err
	}
	if err := l.Write(os.Stdout); err != nil {
		return nil, err
	}
	calls, err := ledger.Calls(ctx, w.shop)
	if err != nil {
		return nil, err
	}
	return append(l.Problems(), ledger.CheckCalls(calls)...), nil
}
