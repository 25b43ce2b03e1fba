package operator_test

import (
	"encoding/json"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// TestOperatorSurvivesManyDefinitions has sagas that each have a definition of their own, which takes
// several hundred kilobytes once compiled. Their participant responds to no action, so that attempts of all
// are under way or wait for a place.
func TestOperatorSurvivesManyDefinitions(t *testing.T) {
	a := newTarget(t, "hostile", "shop")
	p := a.startHangingParticipant()
	const sagas, expressions = 2000, 20
	for i := range sagas {
		body := map[string]string{}
		for k := range expressions {
			body[fmt.Sprint("k", k)] = fmt.Sprintf("${string([%d, %d][1]) + saga.name}", i, k)
		}
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		s := stepAt(p.url+"/hostile/many", "a", "${response.status}")
		s.HTTP.Body = &v1.JSON{Raw: data}
		s.AttemptTimeout = &metav1.Duration{Duration: hangTimeout}
		a.createSaga("hostile", fmt.Sprintf("many-%d", i), s)
	}
	last := fmt.Sprintf("many-%d", sagas-1)
	a.await("the last saga runs", func() bool { return a.saga("hostile", last).Status.Phase == v1.PhaseRunning }, func() any { return a.saga("hostile", last).Status })
	url := a.startParticipant(`{"x":1}`)
	a.createSaga("shop", "honest", stepAt(url, "a", "${response.body.x}"))
	if phases := a.awaitEnd("shop"); phases[v1.PhaseCompleted] != 1 {
		t.Errorf("sagas of the other namespace by phase: %v, want 1 Completed", phases)
	}
	a.checkMemory(fmt.Sprintf("%d sagas with definitions of their own", sagas))
	a.process.Kill() // a clean stop would record of each attempt that waits that it was not sent
}
