package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/world"
	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
)

// printTable asks the API server for the table that kubectl prints.
func (d *demo) printTable(ctx context.Context) error {
	config := rest.CopyConfig(d.Cluster.Config)
	config.GroupVersion, config.APIPath = &v1.GroupVersion, "/apis"
	config.NegotiatedSerializer = clientgoscheme.Codecs.WithoutConversion()
	c, err := rest.RESTClientFor(config)
	if err != nil {
		return fmt.Errorf("asking for the table of sagas: %w", err)
	}
	raw, err := c.Get().Namespace(world.Namespace).Resource("sagas").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(ctx)
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

// printHistory prints the events of an order's saga, as they were recorded.
func (d *demo) printHistory(ctx context.Context, order string) error {
	name := orders.SagaName(order)
	saga := &v1.Saga{}
	if err := d.Client.Get(ctx, client.ObjectKey{Namespace: world.Namespace, Name: name}, saga); err != nil {
		return fmt.Errorf("looking for %s: %w", name, err)
	}
	conn, err := pgx.Connect(ctx, d.Database)
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
