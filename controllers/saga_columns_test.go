package controllers

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

func TestKubectlGetShowsWhereSagasStand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.svc.on("POST /decline", answer(http.StatusPaymentRequired, `{"detail":"card declined"}`))
	r.create("good", order)
	r.create("declined", `
steps:
- {name: reserve, http: {method: POST, url: "SERVICE/reserve"}, compensation: {http: {method: DELETE, url: "SERVICE/reserve"}}}
- {name: charge, http: {method: POST, url: "SERVICE/decline"}}
`)
	r.waitPhase("good", v1.PhaseCompleted)
	r.waitPhase("declined", v1.PhaseCompensated)
	columns, rows := r.table()
	if diff := cmp.Diff([]string{"Name", "Phase", "Steps", "Step", "Age", "Reason"}, columns); diff != "" {
		t.Errorf("the columns (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"good Completed 3/3  ", "declined Compensated 0/2 charge card declined (402)"}, []string{rows["good"], rows["declined"]}); diff != "" {
		t.Errorf("the rows without their age (-want +got):\n%s", diff)
	}
}

// table asks for the sagas as kubectl does.
func (r *rig) table() (columns []string, rows map[string]string) {
	r.Helper()
	s := scheme(r.T)
	if err := metav1.AddMetaToScheme(s); err != nil {
		r.Fatal(err)
	}
	cfg := apiServer(r.T)
	cfg.GroupVersion, cfg.APIPath = &v1.GroupVersion, "/apis"
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(s).WithoutConversion()
	c, err := rest.RESTClientFor(cfg)
	if err != nil {
		r.Fatal(err)
	}
	var table metav1.Table
	err = c.Get().Namespace(r.ns).Resource("sagas").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(r.Context()).Into(&table)
	if err != nil {
		r.Fatal(err)
	}
	for _, c := range table.ColumnDefinitions {
		if c.Priority == 0 {
			columns = append(columns, c.Name)
		}
	}
	rows = map[string]string{}
	for _, row := range table.Rows {
		cell := func(i int) any {
			if row.Cells[i] == nil {
				return ""
			}
			return row.Cells[i]
		}
		rows[fmt.Sprint(cell(0))] = fmt.Sprintf("%v %v %v %v %v", cell(0), cell(1), cell(2), cell(3), cell(5))
	}
	return columns, rows
}
