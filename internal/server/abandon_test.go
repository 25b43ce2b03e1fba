package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/saga"
)

// fakeAbandoner records calls and fails with its err. It knows no saga by its uid alone.
type fakeAbandoner struct {
	mu   sync.Mutex
	fail error
	all  []engine.Abandonment
	keys []engine.Key
}

func (a *fakeAbandoner) Abandon(_ context.Context, k engine.Key, how engine.Abandonment) (saga.State, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all, a.keys = append(a.all, how), append(a.keys, k)
	return saga.State{Phase: saga.Abandoned}, a.fail
}

func (a *fakeAbandoner) Recorded(context.Context, uuid.UUID) (engine.Key, string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return engine.Key{}, "", a.fail
	}
	return engine.Key{}, "", engine.ErrNotStarted
}

func (a *fakeAbandoner) failWith(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

// withEngine makes the API abandon sagas in the database of the rig.
func withEngine(o *operations.Options, _ *Options) {
	machine, err := engine.New(engine.Options{Store: storepg.New(o.Database), Notify: func(engine.Key) {}})
	if err != nil {
		panic(err)
	}
	o.Abandoner = machine
}

// record puts a saga with an action under way into the database. More events may follow, which only
// have a type.
func (r *rig) record(uid, ns, name string, more ...string) {
	r.Helper()
	effect := saga.Effect{Kind: "http", With: json.RawMessage(`{}`), Retry: saga.Retry{MaxAttempts: 3}, AttemptTimeout: time.Minute}
	undo := effect
	in := r.namespaceUID(ns)
	started := saga.SagaStarted{At: at(0), UID: uid, Namespace: ns, NamespaceUID: in, Name: name}
	started.Definition = saga.Definition{Steps: []saga.Step{{Name: "reserve", Do: effect, Compensation: &undo}, {Name: "ship", DependsOn: []string{"reserve"}, Do: effect}}}
	var events []eventstore.Event
	for _, e := range []saga.Event{started, attempted(1)} {
		kind, schema, data, err := saga.Marshal(e)
		r.ok(err)
		events = append(events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: kind, SchemaVersion: schema, Data: data})
	}
	for _, kind := range more {
		events = append(events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: kind, SchemaVersion: 1, Data: json.RawMessage(`{}`)})
	}
	row := eventstore.SagaState{UID: uuid.MustParse(uid), Namespace: ns, Name: name, Phase: "Running", Version: int64(len(events)), State: fmt.Appendf(nil, `{"namespaceUid":%q}`, in)}
	_, err := r.store.Append(context.Background(), eventstore.Append{Stream: engine.StreamOf(uid), Events: events, State: &row})
	r.ok(err)
}

// lastEvents returns the types of the events of a saga after those of record.
func (r *rig) lastEvents(uid string) (types []string) {
	r.Helper()
	events, err := r.store.Load(context.Background(), engine.StreamOf(uid), 3, 100)
	r.ok(err)
	for _, e := range events {
		types = append(types, e.Type)
	}
	return types
}

// administrator returns a token that may create, read and abandon sagas in the namespace of the rig.
func (r *rig) administrator() string {
	return r.token(r.account("admin", r.ns, "saga-viewer", "saga-editor", "saga-abandoner"), audience)
}

func (r *rig) abandon(token, name, body string) answer {
	r.Helper()
	return r.do(call{method: "POST", path: sagas + "/" + name + "/abandon", token: token, body: body})
}

func abandonBody(uid string) string {
	if uid == "" {
		return `{"reason":"the warehouse is gone"}`
	}
	return fmt.Sprintf(`{"reason":"the warehouse is gone","uid":%q}`, uid)
}

func TestAbandonReportsWhatMayRemain(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	token := r.administrator()
	uid := string(r.create(token, "order-1").UID)
	r.record(uid, r.ns, "order-1")
	want := fmt.Sprintf(`{"uid":%q,"phase":"Abandoned","mayRemain":["reserve"]}`, uid)
	for _, body := range []string{abandonBody(""), abandonBody(uid), abandonBody(strings.ToUpper(uid))} { // repeated, it is the same
		if a := r.abandon(token, "order-1", body); a.status != http.StatusOK || strings.TrimSpace(string(a.body)) != want {
			t.Fatalf("%s: %d %s, want %s", body, a.status, a.body, want)
		}
	}
	if got := r.lastEvents(uid); !slices.Equal(got, []string{"SagaAbandoned"}) {
		t.Errorf("recorded %v", got)
	}
	user := "system:serviceaccount:" + r.ns + ":admin"
	r.until("the history says who abandoned the saga, and why", func() bool {
		page := r.history(token, "order-1", "")
		if len(page.Events) < 3 {
			return false
		}
		last := page.Events[len(page.Events)-1]
		if !page.Finished || last.Type != "SagaAbandoned" || last.Actor != user || last.Message != "the warehouse is gone" {
			t.Fatalf("the history ends with %+v", last)
		}
		return true
	})
	for _, part := range []string{"a saga was abandoned through the API", "saga=" + r.ns + "/order-1", "uid=" + uid, "user=" + user} {
		if !strings.Contains(r.log.String(), part) {
			t.Errorf("the log does not have %q", part)
		}
	}
}

// TestAbandonReportsNothingOfUnreadableStream has an event that this version does not know.
func TestAbandonReportsNothingOfUnreadableStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	token := r.administrator()
	uid := string(r.create(token, "order-1").UID)
	r.record(uid, r.ns, "order-1", "FromTheFuture")
	for range 2 {
		if a := r.abandon(token, "order-1", abandonBody("")); a.status != http.StatusOK || !strings.Contains(string(a.body), `"phase":"Abandoned","mayRemain":null`) {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}

// TestAbandonSaysThatNothingRemains tells an empty list from one that is not known.
func TestAbandonSaysThatNothingRemains(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	token := r.administrator()
	uid := string(r.create(token, "order-1").UID)
	r.record(uid, r.ns, "order-1")
	attempt := saga.Attempt{EffectID: saga.EffectID{Step: "reserve", Direction: saga.Action}, Number: 1}
	r.happened(uid, saga.AttemptFailed{At: at(2), Attempt: attempt, Outcome: saga.Retryable, Next: saga.NextRetry, RetryAt: at(3).At})
	if a := r.abandon(token, "order-1", abandonBody("")); a.status != http.StatusOK || !strings.Contains(string(a.body), `"mayRemain":[]`) {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestAbandonNeedsItsOwnRight(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	other := r.namespace()
	token := r.administrator()
	uid := string(r.create(token, "order-1").UID)
	orphan := uuid.NewString()
	r.record(uid, r.ns, "order-1")
	r.record(orphan, r.ns, "order-2")
	for who, account := range map[string]string{
		"an editor":                   r.token(r.account("editor", r.ns, "saga-viewer", "saga-editor"), audience),
		"a decider":                   r.token(r.account("decider", r.ns, "saga-viewer", "saga-editor", "saga-decider"), audience),
		"an abandoner in another one": r.token(r.account("stranger", other, "saga-abandoner"), audience),
		"a user without any right":    r.token(r.account("guest", r.ns), audience),
	} {
		for name, uid := range map[string]string{"order-1": uid, "order-2": orphan} {
			a := r.abandon(account, name, abandonBody(uid))
			if a.status != http.StatusForbidden || !strings.Contains(a.problem(t).Detail, "update on sagas/abandon.saga.vextrus.io in namespace "+r.ns) {
				t.Errorf("%s of %s: %d %s", who, name, a.status, a.body)
			}
			if got := r.lastEvents(uid); len(got) > 0 {
				t.Errorf("%s has recorded %v", who, got)
			}
		}
	}
}

func TestAbandonFindsSagaWithoutObjectByUID(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	token := r.administrator()
	orphan := uuid.NewString()
	r.record(orphan, r.ns, "order-1")
	if a := r.abandon(token, "order-1", abandonBody("")); a.status != http.StatusNotFound || !strings.Contains(a.problem(t).Detail, "give its uid") {
		t.Errorf("without the uid: %d %s", a.status, a.body)
	}
	r.create(token, "order-1") // another saga, which has not started
	if a := r.abandon(token, "order-1", abandonBody("")); a.status != http.StatusConflict || a.problem(t).Reason != "NotStarted" {
		t.Errorf("the saga that has the name now: %d %s", a.status, a.body)
	}
	if got := r.lastEvents(orphan); len(got) > 0 {
		t.Errorf("recorded %v before the uid was given", got)
	}
	want := fmt.Sprintf(`{"uid":%q,"phase":"Abandoned","mayRemain":["reserve"]}`, orphan)
	for range 2 {
		if a := r.abandon(token, "order-1", abandonBody(orphan)); a.status != http.StatusOK || strings.TrimSpace(string(a.body)) != want {
			t.Errorf("with the uid: %d %s, want %s", a.status, a.body, want)
		}
	}
	if got := r.lastEvents(orphan); !slices.Equal(got, []string{"SagaAbandoned"}) {
		t.Errorf("recorded %v", got)
	}
}

// TestAbandonHidesSagasOfOthers: the right is for a namespace, and the uid of a saga of another one
// must not be more than one that does not exist.
func TestAbandonHidesSagasOfOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	token := r.administrator()
	r.create(token, "order-1")
	elsewhere, otherName := uuid.NewString(), uuid.NewString()
	r.record(elsewhere, "elsewhere", "order-1")
	r.record(otherName, r.ns, "order-3")
	for _, name := range []string{"order-1", "order-2"} {
		for _, uid := range []string{elsewhere, otherName, uuid.NewString(), uuid.Nil.String()} {
			a := r.abandon(token, name, abandonBody(uid))
			want := fmt.Sprintf("saga %s/%s with uid %s does not exist", r.ns, name, uid)
			if a.status != http.StatusNotFound || a.problem(t).Detail != want {
				t.Errorf("%s: %d %s, want %s", name, a.status, a.body, want)
			}
		}
	}
	for _, uid := range []string{elsewhere, otherName} {
		if got := r.lastEvents(uid); len(got) > 0 {
			t.Errorf("recorded %v", got)
		}
	}
}

func TestAbandonErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.administrator()
	r.create(token, "order-1")
	for name, c := range map[string]struct {
		fail           error
		status         int
		reason, detail string
	}{
		"bad reason":  {&saga.AbandonError{Field: "reason", Message: "it is too long"}, http.StatusUnprocessableEntity, "Invalid", "it is too long"},
		"finished":    {fmt.Errorf("abandoning: %w", &saga.AbandonError{Message: "the saga is Completed"}), http.StatusConflict, "Finished", "the saga is Completed"},
		"not started": {fmt.Errorf("abandoning: %w", engine.ErrNotStarted), http.StatusConflict, "NotStarted", "delete it"},
		"no database": {fmt.Errorf("abandoning: %w", eventstore.ErrUnavailable), http.StatusServiceUnavailable, "Unavailable", "ask again"},
		"a mistake":   {errors.New("secret internals"), http.StatusInternalServerError, "Internal", "log"},
	} {
		r.abandoner.failWith(c.fail)
		a := r.abandon(token, "order-1", abandonBody(""))
		p := a.problem(t)
		if a.status != c.status || p.Reason != c.reason || !strings.Contains(p.Detail, c.detail) || strings.Contains(string(a.body), "internals") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if c.reason == "Invalid" && (len(p.Errors) != 1 || p.Errors[0].Location != "body.reason") {
			t.Errorf("%s: it does not name the field: %s", name, a.body)
		}
	}
	r.abandoner.failWith(eventstore.ErrUnavailable)
	if a := r.abandon(token, "order-2", abandonBody(uuid.NewString())); a.status != http.StatusServiceUnavailable {
		t.Errorf("looking for a saga: %d %s", a.status, a.body)
	}
}

// TestAbandonTrustsStatusThatEventsWereRecorded has a saga of which the store has lost everything.
func TestAbandonTrustsStatusThatEventsWereRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.administrator()
	s := r.create(token, "order-1")
	patch := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: "order-1"}}
	for _, recorded := range []bool{false, true} {
		if recorded {
			r.ok(r.admin.Status().Patch(t.Context(), patch, client.RawPatch("application/merge-patch+json", []byte(`{"status":{"recordedVersion":7}}`))))
		}
		uid := ""
		if recorded { // the letters of a uid do not matter
			uid = strings.ToUpper(string(s.UID))
		}
		if a := r.abandon(token, "order-1", abandonBody(uid)); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		want := engine.Abandonment{By: "system:serviceaccount:" + r.ns + ":admin", Reason: "the warehouse is gone", Recorded: recorded}
		last := len(r.abandoner.all) - 1
		if got := r.abandoner.all[last]; got != want || r.abandoner.keys[last] != (engine.Key{Namespace: r.ns, Name: "order-1", UID: string(s.UID)}) {
			t.Errorf("abandoned %+v for %+v, want %+v", r.abandoner.keys[last], got, want)
		}
	}
}

func TestAbandonChecksItsBody(t *testing.T) {
	t.Parallel()
	r := newRig(t, withEngine)
	token := r.administrator()
	uid := string(r.create(token, "order-1").UID)
	r.record(uid, r.ns, "order-1")
	for body, location := range map[string]string{
		`{}`:                    "body",
		`{"reason":""}`:         "body.reason",
		`{"reason":" \n"}`:      "body.reason",
		`{"reason":"a\u0000b"}`: "body.reason",
		`{"reason":"` + strings.Repeat("x", 1025) + `"}`: "body.reason",
		`{"reason":"` + strings.Repeat("é", 1000) + `"}`: "body.reason", // 2,000 bytes
		`{"reason":"x","uid":""}`:                        "body.uid",    // a variable that was not set, and not any saga
		`{"reason":"x","uid":"7"}`:                       "body.uid",
		`{"reason":"x","by":"root"}`:                     "body.by",
	} {
		a := r.abandon(token, "order-1", body)
		if a.status != http.StatusUnprocessableEntity {
			t.Errorf("%.40s: %d %s", body, a.status, a.body)
			continue
		}
		if p := a.problem(t); len(p.Errors) == 0 || p.Errors[0].Location != location {
			t.Errorf("%.40s: it does not say that %s is wrong: %s", body, location, a.body)
		}
	}
	if got := r.lastEvents(uid); len(got) > 0 {
		t.Errorf("recorded %v", got)
	}
}

// TestAbandonIsInNoAggregatedRole: an administrator of the cluster gives the right on purpose.
func TestAbandonIsInNoAggregatedRole(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../config/rbac/*_role.yaml")
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal(data, &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			if slices.ContainsFunc(rule.Resources, func(s string) bool { return s == "sagas/abandon" || strings.Contains(s, "*") }) {
				has[role.Name] = true
				if len(role.Labels) > 0 {
					t.Errorf("role %s is aggregated: %v", role.Name, role.Labels)
				}
			}
		}
	}
	if len(has) != 1 || !has["saga-abandoner"] {
		t.Errorf("the roles with the right are %v", has)
	}
}
