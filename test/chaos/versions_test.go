package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/operator"
)

// versionBefore is the commit that stands for the version before this one. Each release moves it to the
// release before, and only a change of what is stored that is made on purpose moves it otherwise.
const versionBefore = "3cc9ded48d0d278fa412e31b29cf803ad89bd97e"

// before is the binary of the version before.
const before = "manager-before"

var buildBefore = sync.OnceValue(func() error {
	return workshop.BuildAt(context.Background(), versionBefore, "./cmd/manager", before)
})

// needsBefore makes sure that there is a binary of the version before.
func needsBefore(t *testing.T) {
	t.Helper()
	if err := buildBefore(); errors.Is(err, operator.ErrNoCommit) {
		t.Skipf("fetch the whole history of the repository to run this: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// TestVersionsGoOnWithEachOthersSagas upgrades, and goes back.
func TestVersionsGoOnWithEachOthersSagas(t *testing.T) {
	needsBefore(t)
	for name, binaries := range map[string][2]string{"next": {before, ""}, "before": {"", before}} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, throwaway.Database(t))
			s.shop.refuse = func(request string) bool {
				return strings.HasPrefix(request, "POST /undone") && strings.HasSuffix(request, "/c")
			}
			s.shop.busy = func(request string) bool { return request == "POST /retried/b" }
			acts, undoes, waits := newGate(), newGate(), newGate()
			act, undo, wait := acts.hold("/acting/b", false), undoes.hold("DELETE /undone/b", false), waits.hold("/suspended/b", true)
			s.shop.on(func(ctx context.Context, request string) bool {
				return act(ctx, request) && wait(ctx, request)
			}, undo)

			first := s.operatorOf(binaries[0])
			s.apply("done", "acting", "undone", "undone-before", "suspended")
			s.applyPatient("retried")
			acts.await(t, 1)
			undoes.await(t, 1)
			waits.await(t, 1)
			s.suspend("suspended", true)
			s.recorded("SagaSuspended", "")
			waits.release()
			s.recorded("AttemptFailed", "b")
			s.ended(v1.PhaseCompleted, "done")
			s.ended(v1.PhaseCompensated, "undone-before")
			first.Kill()
			s.shop.onBusy(nil)
			s.shop.on(nil, nil)
			acts.release()
			undoes.release()

			s.operatorOf(binaries[1])
			s.ended(v1.PhaseCompleted, "acting", "retried")
			s.ended(v1.PhaseCompensated, "undone")
			s.suspend("suspended", false)
			s.ended(v1.PhaseCompleted, "suspended")
			s.apply("new")
			s.ended(v1.PhaseCompleted, "new")
			s.verify(7)
		})
	}
}

// applyPatient creates a saga that is retried for some minutes.
func (s *scene) applyPatient(name string) {
	s.t.Helper()
	o := s.saga(name)
	for i := range o.Spec.Steps {
		pause := &metav1.Duration{Duration: 5 * time.Second}
		o.Spec.Steps[i].Retry = &v1.Retry{MaxAttempts: 100, InitialBackoff: pause, MaxBackoff: pause}
	}
	if err := k8s.Create(s.t.Context(), o); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) suspend(name string, suspend bool) {
	s.t.Helper()
	patch := `{"spec": {"suspend": false}}`
	if suspend {
		patch = `{"spec": {"suspend": true}}`
	}
	if err := k8s.Patch(s.t.Context(), s.get(name), client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		s.t.Fatal(err)
	}
}

// newerSaga is what a newer version has recorded: a saga that has done its first step, and whose second one it means to leave out.
const newerSaga = `{"at": "2030-01-02T03:04:05Z", "needs": {"Step.when": "99.0.0"}, "uid": "UID", "namespace": "NAMESPACE", "name": "newer",
	"definition": {"steps": [
		{"name": "a", "do": EFFECT, "compensation": EFFECT},
		{"name": "b", "dependsOn": ["a"], "when": "${false}", "do": EFFECT, "compensation": EFFECT}]}}`

// recordNewer records a saga of a newer version for an object.
func (s *scene) recordNewer(o *v1.Saga) (stream string) {
	s.t.Helper()
	effect := `{"kind": "http", "with": {"method": "POST", "url": "` + s.shop.url + `/newer/b"}, "retry": {"maxAttempts": 3, "initialBackoff": 1000, "maxBackoff": 1000}, "attemptTimeout": 1000000000}`
	started := strings.NewReplacer("UID", string(o.UID), "NAMESPACE", o.Namespace, "EFFECT", effect).Replace(newerSaga)
	const attempt = `{"at": "2030-01-02T03:04:05Z", "step": "a", "direction": "action", "number": 1}`
	a := eventstore.Append{Stream: engine.StreamOf(string(o.UID)), State: &eventstore.SagaState{
		UID: uuid.MustParse(string(o.UID)), Namespace: o.Namespace, Name: o.Name, Phase: "Running", State: []byte(`{"needs": {"Step.when": "99.0.0"}}`),
	}}
	for _, e := range [][2]string{{"SagaStarted", started}, {"AttemptStarted", attempt}, {"AttemptSucceeded", attempt}} {
		a.Events = append(a.Events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: e[0], SchemaVersion: 1, Data: json.RawMessage(e[1])})
	}
	if _, err := storepg.New(s.pool).Append(s.t.Context(), a); err != nil {
		s.t.Fatal(err)
	}
	return a.Stream
}

func (s *scene) forgetStatus(name string) {
	s.t.Helper()
	if err := k8s.Status().Patch(s.t.Context(), s.get(name), client.RawPatch(types.MergePatchType, []byte(`{"status": null}`))); err != nil {
		s.t.Fatal(err)
	}
	if c := s.get(name).Status.Conditions; len(c) > 0 {
		s.t.Fatalf("the status still has %+v", c)
	}
}

// TestASagaOfANewerVersionWaitsForIt has both versions meet a saga of one that is newer than either.
func TestASagaOfANewerVersionWaitsForIt(t *testing.T) {
	needsBefore(t)
	s := newScene(t, throwaway.Database(t))
	s.operatorOf("").Kill() // it has made the tables
	o := s.saga("newer")
	o.Finalizers = []string{v1.Finalizer}
	if err := k8s.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	stream := s.recordNewer(o)
	for name, binary := range map[string]string{"this": "", "before": before} {
		s.forgetStatus("newer") // or it would show what the other version has said
		op := s.operatorOf(binary)
		eventually(t, "the saga is stalled, and says which version it takes", func() error {
			c := meta.FindStatusCondition(s.get("newer").Status.Conditions, v1.ConditionStalled)
			if c == nil || c.Status != "True" || c.Reason != engine.ReasonDefinitionUnreadable || !strings.Contains(c.Message, "Step.when (since release 99.0.0)") {
				return fmt.Errorf("its condition is %+v", c)
			}
			return nil
		})
		s.apply("ordinary-" + name)
		s.ended(v1.PhaseCompleted, "ordinary-"+name)
		op.Kill()
	}
	var version int64
	if err := s.pool.QueryRow(t.Context(), `SELECT version FROM streams WHERE stream = $1`, stream).Scan(&version); err != nil || version != 3 {
		t.Errorf("the saga was touched: it is at version %d, %v", version, err)
	}
	if n := s.shop.sent(); n != 6 {
		t.Errorf("there were %d requests, and the ordinary sagas have six", n)
	}
	if err := k8s.Patch(t.Context(), s.get("newer"), client.RawPatch(types.MergePatchType, []byte(`{"metadata": {"finalizers": null}}`))); err != nil {
		t.Error(err)
	}
}
