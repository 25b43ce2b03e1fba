package operator_test

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// annotate sets an annotation of a Namespace as an administrator does; a value of null removes it.
func (a *target) annotate(namespace, annotation, value string) {
	a.Helper()
	o := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
	o.Name = namespace
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, annotation, value)
	if err := a.admin.Patch(a.Context(), o, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		a.Fatal(err)
	}
}

// standings counts the sagas of a namespace that run, and those that wait for its quota.
func (a *target) standings(namespace string) (running, waiting int) {
	a.Helper()
	var all v1.SagaList
	if err := a.admin.List(a.Context(), &all, client.InNamespace(namespace)); err != nil {
		a.Fatal(err)
	}
	for i := range all.Items {
		status := &all.Items[i].Status
		for _, c := range status.Conditions {
			switch {
			case c.Type == v1.ConditionProgressing && c.Reason == "QuotaExceeded":
				waiting++
			case c.Type == v1.ConditionProgressing && c.Reason == "Running":
				running++
			}
		}
	}
	return running, waiting
}

// TestOperatorKeepsNamespacesWithinQuotas has a namespace that may have two unfinished sagas by annotation,
// and others that have as many as the flag says.
func TestOperatorKeepsNamespacesWithinQuotas(t *testing.T) {
	a := newTargetWith(t, []string{"--max-attempt-timeout", "1h", "--max-unfinished-sagas", "3"}, "hostile", "shop")
	p := a.startHangingParticipant()
	a.annotate("hostile", v1.MaxUnfinishedSagasAnnotation, `"2"`)
	awaitStandings := func(namespace string, wantRunning, wantWaiting int) {
		t.Helper()
		a.await(fmt.Sprintf("%d sagas of %s run and %d wait", wantRunning, namespace, wantWaiting), func() bool {
			running, waiting := a.standings(namespace)
			return running == wantRunning && waiting == wantWaiting
		}, func() any {
			running, waiting := a.standings(namespace)
			return fmt.Sprintf("%d run and %d wait", running, waiting)
		})
	}
	a.restart() // it starts no saga before it has read the annotations
	for i := range 4 {
		a.createHanging(p, "hostile", fmt.Sprint("s", i), 1, hangTimeout)
		a.createHanging(p, "shop", fmt.Sprint("s", i), 1, hangTimeout)
	}
	awaitStandings("hostile", 2, 2)
	awaitStandings("shop", 3, 1)
	a.restart() // the new process counts what the old one has started
	awaitStandings("hostile", 2, 2)
	if hanging, _ := p.byNamespace(); hanging["hostile"] > 4 { // two of the old process, two that were sent again
		t.Errorf("%d calls of the namespace hang", hanging["hostile"])
	}
	a.annotate("hostile", v1.MaxUnfinishedSagasAnnotation, `"-1"`)
	awaitStandings("hostile", 4, 0)
	awaitStandings("shop", 3, 1)
}
