package controllers

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
)

func message(namespace, typ string, labels map[string]string) *outbox.Message {
	m := &outbox.Message{}
	m.Message = eventstore.Message{Namespace: namespace, Type: typ, Labels: labels}
	return m
}

// publishable is a message with everything that one has to have.
func publishable(namespace string) *outbox.Message {
	m := message(namespace, completed, nil)
	m.ID, m.Source, m.Subject, m.Key, m.Data, m.RecordedAt = uuid.New(), "/tests", "order", "order", []byte(`{}`), time.Now()
	return m
}

const completed = "saga.vextrus.io/v1.SagaCompleted"

func TestASinkTakesWhatItsNamespaceTypesAndLabelsSay(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	other := r.namespace(nil)
	r.start()
	o := r.sink("s", fmt.Sprintf(`{http: {url: "%s"}, types: ["saga.vextrus.io/*.SagaComp*"], sagaSelector: {matchLabels: {team: a}}}`, good.url))
	s := r.waitSet(o, nil)
	team := map[string]string{"team": "a", "more": "x"}
	for _, c := range []struct {
		what string
		m    *outbox.Message
		want bool
	}{
		{"its own", message(r.ns, completed, team), true},
		{"another namespace's", message(other, completed, team), false},
		{"nobody's", message("", completed, team), false},
		{"another type", message(r.ns, "saga.vextrus.io/v1.SagaStarted", team), false},
		{"another team's", message(r.ns, completed, map[string]string{"team": "b"}), false},
		{"one without labels", message(r.ns, completed, nil), false},
	} {
		if got := s.Wants(c.m); got != c.want {
			t.Errorf("%s: wanted %t, want %t", c.what, got, c.want)
		}
	}
	all := r.waitSet(r.sink("all", fmt.Sprintf(`{http: {url: "%s"}}`, good.url)), nil)
	if !all.Wants(message(r.ns, completed, nil)) || all.Wants(message(other, completed, nil)) {
		t.Error("a sink without selectors does not take just what is its namespace's")
	}
}

func TestAClusterSinkTakesWhatItsNamespaceSelectorMatchesAtTheTime(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	labelled, plain := r.namespace(map[string]string{"warehouse": "true"}), r.namespace(nil)
	r.start()
	s := r.waitSet(r.clusterSink(fmt.Sprintf(`{http: {url: "%s"}, namespaceSelector: {matchLabels: {warehouse: "true"}}}`, good.url)), nil)
	wants := func(namespace string) bool { return s.Wants(message(namespace, completed, nil)) }
	if !wants(labelled) || wants(plain) || wants("") || wants("unknown") {
		t.Errorf("labelled %t, plain %t, none %t, unknown %t", wants(labelled), wants(plain), wants(""), wants("unknown"))
	}
	late := r.namespace(map[string]string{"warehouse": "true"})
	r.eventually(func() error {
		if !wants(late) {
			return fmt.Errorf("a namespace that was made later is not taken")
		}
		return nil
	})
}

// TestNoMessageIsPassedOverBecauseOfANamespaceThatTheWatchHasNotShown has no watch at all.
func TestNoMessageIsPassedOverBecauseOfANamespaceThatTheWatchHasNotShown(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	labelled, plain := r.namespace(map[string]string{"warehouse": "true"}), r.namespace(nil)
	inner, err := client.NewWithWatch(apiServer(t), client.Options{Scheme: scheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	away := false
	s := r.reconciler()
	s.Client, s.Elected = r.kube, make(chan struct{})
	s.Live = interceptor.NewClient(inner, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		if away {
			return errAway
		}
		return c.Get(ctx, key, o, opts...)
	}})
	s.setDefaults(nil)
	sink, err := s.sinkOf(r.clusterSink(`{http: {url: "http://127.0.0.1"}, namespaceSelector: {matchLabels: {warehouse: "true"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	wants := func(namespace string) bool {
		t.Helper()
		m := message(namespace, completed, nil)
		if err := sink.Prepare(t.Context(), []outbox.Message{*m, *m}); err != nil {
			t.Fatalf("namespace %s: %v", namespace, err)
		}
		return sink.Wants(m)
	}
	away = true
	if err := sink.Prepare(t.Context(), []outbox.Message{*message(labelled, completed, nil)}); !errors.Is(err, errAway) {
		t.Errorf("while the API server is away: %v", err)
	}
	away = false
	if !wants(labelled) || wants(plain) || wants("") {
		t.Errorf("labelled %t, plain %t, none %t", wants(labelled), wants(plain), wants(""))
	}
	const gone = "gone-before-anybody-looked"
	if !wants(gone) {
		t.Error("the last messages of a namespace of which nothing is known are passed over")
	}
	s.namespaces.put(gone, nil) // it is made again, without the label
	if wants(gone) {
		t.Error("a namespace that does not match is taken")
	}
	s.namespaces.end(labelled)
	away = true
	if !wants(labelled) {
		t.Error("the last messages of a namespace whose labels are known are passed over")
	}
}

// sinkOf is what the relay is given for a ClusterSink.
func (r *SinkReconciler) sinkOf(o *v1.ClusterSink) (outbox.Sink, error) {
	p, problem, err := r.plan(context.Background(), &sinkObject{Object: o, title: o.Name, spec: &o.Spec.SinkSpec, cluster: &o.Spec, status: &o.Status})
	if problem != nil {
		err = errors.New(problem.message)
	}
	if err != nil {
		return outbox.Sink{}, err
	}
	return p.sink, nil
}

func TestAClusterSinkWithoutASelectorTakesAllNamespaces(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "token-of-the-operator")
	r.secret("token", "127.0.0.1", map[string]string{"token": "token-of-the-operator"}) // in the operator's namespace
	r.start()
	o := r.clusterSink(fmt.Sprintf(`{http: {url: "%s"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: token}}}`, good.url))
	s := r.waitSet(o, nil)
	if s.Name != o.Name || !s.Wants(message("anything", completed, nil)) || s.Wants(message("", completed, nil)) {
		t.Errorf("sink %s", s.Name)
	}
	r.eventually(func() error {
		if !good.shown("token-of-the-operator") {
			return fmt.Errorf("the Secret of the operator's namespace was not used")
		}
		return nil
	})
}

func TestAStarInATypeIsAnyText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, typ string
		want         bool
	}{
		{"*", "", true},
		{"*", completed, true},
		{completed, completed, true},
		{completed, completed + "2", false},
		{"saga.vextrus.io/*", completed, true},
		{"*Completed", completed, true},
		{"*.Saga*ed", completed, true},
		{"saga*v1*Comp*", completed, true},
		{"a*a", "a", false},
		{"ab*ba", "aba", false},
		{"a**b", "ab", true},
		{"*a*b*", "xxbxxa", false},
		{"Saga*", completed, false},
		{"", completed, false},
	} {
		if got := matches(c.pattern, c.typ); got != c.want {
			t.Errorf("matches(%q, %q) is %t", c.pattern, c.typ, got)
		}
	}
}

func TestTheLabelsOfANamespaceThatIsGoneAreKeptForItsLastMessages(t *testing.T) {
	t.Parallel()
	var n namespaceLabels
	all, err := selector(nil)
	if err != nil {
		t.Fatal(err)
	}
	n.put("again", nil)
	n.end("again")
	n.put("again", nil)
	for i := range maxGone + 1 {
		name := fmt.Sprint("gone-", i)
		n.put(name, nil)
		n.end(name)
	}
	if n.match("gone-0", all) || !n.match("gone-1", all) || !n.match("again", all) || len(n.all) != maxGone+1 {
		t.Errorf("%d namespaces are known", len(n.all))
	}
}
