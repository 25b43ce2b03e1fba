package controllers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
)

func TestAChangedSpecTakesEffectAndAnUnchangedOneKeepsItsConnection(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	r.start()
	o := r.sink("s", fmt.Sprintf(`{http: {url: "http://%s"}}`, nobody(t)))
	r.waitReady("s", metav1.ConditionFalse, outbox.ReasonConnectionFailed)
	before, _ := r.waitSet(o, nil).Publisher.(*countingPublisher)
	r.eventually(func() error { // it is looked at again and again
		if checks, closed := before.counts(); checks < 3 || closed {
			return fmt.Errorf("the publisher was checked %d times, closed: %t", checks, closed)
		}
		return nil
	})
	if s, _ := r.relay.get(string(o.UID)); s.Publisher != outbox.Publisher(before) {
		t.Error("a sink that has not changed has got another publisher")
	}
	r.patch(o, fmt.Sprintf(`{"spec":{"timeout":"4m","mode":"Structured","http":{"url":"%s"}}}`, good.url))
	r.waitReady("s", metav1.ConditionTrue, "Ready")
	if s := r.waitSet(o, before); s.Timeout != 4*time.Minute {
		t.Errorf("the timeout is %s", s.Timeout)
	}
	if _, closed := before.counts(); !closed {
		t.Error("the publisher of the old spec is still open")
	}
}

func TestARotatedSecretTakesEffect(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "second-token")
	secret := r.secret("token", "127.0.0.1", map[string]string{"token": "first-token"})
	r.start()
	o := r.sink("s", fmt.Sprintf(`{http: {url: "%s"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: token}}}`, good.url))
	r.waitReady("s", metav1.ConditionFalse, outbox.ReasonUnauthorized)
	before := r.waitSet(o, nil).Publisher
	r.patch(secret, `{"stringData":{"token":"second-token"}}`)
	r.waitReady("s", metav1.ConditionTrue, "Ready")
	r.waitSet(o, before)
	if !good.shown("first-token") || !good.shown("second-token") {
		t.Error("the tokens were not shown to the destination")
	}
	// A Secret that is not for the host any more is not used any more.
	r.patch(secret, `{"metadata":{"annotations":{"saga.vextrus.io/hosts":"elsewhere.example.com"}}}`)
	r.waitReady("s", metav1.ConditionFalse, v1.SinkReasonSecretNotForHost)
	r.waitRemoved(o)
	if err := r.kube.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	r.waitReady("s", metav1.ConditionFalse, v1.SinkReasonSecretNotFound)
	r.secret("token", "127.0.0.1", map[string]string{"token": "second-token"})
	r.waitReady("s", metav1.ConditionTrue, "Ready")
}

// A cluster of brokers names its members itself. None of them gets what the Secret is not for.
func TestASecretGoesToNoOtherHostThanThoseItLists(t *testing.T) {
	t.Parallel()
	all := &sinkSecrets{lists: []hostList{newHostList(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Annotations: map[string]string{v1.SecretHostsAnnotation: " Kafka.example.com., *.brokers.example.com,[2001:db8::1], *, *., 10.0.0.1"},
	}})}}
	errConnected := errors.New("connected")
	dial := all.guarded(func(context.Context, string, string) (net.Conn, error) { return nil, errConnected })
	for address, want := range map[string]bool{
		"kafka.example.com:9092": true, "KAFKA.example.com.:9092": true, "a.brokers.example.com:1": true, "a.b.brokers.example.com:1": true, "[2001:db8::1]:9092": true,
		"10.0.0.1:1": true, "brokers.example.com:1": false, ".brokers.example.com:1": false, "evilbrokers.example.com:1": false, "example.com:1": false,
		"10.0.0.2:1": false, "kafka.example.com.evil.org:1": false, "[2001:db8::2]:1": false, "anything:1": false,
	} {
		_, err := dial(t.Context(), "tcp", address)
		var host *hostError
		if errors.Is(err, errConnected) != want || !want && !errors.As(err, &host) {
			t.Errorf("connecting to %s: %v, want it allowed: %t", address, err, want)
		}
	}
}

func TestAPublisherThatHidesSecretsCanStillBeListenedTo(t *testing.T) {
	t.Parallel()
	secrets := newHidden("saga", canary, "")
	listening := secrets.around(listener{})
	l, ok := listening.(outbox.Listener)
	if !ok {
		t.Fatal("it cannot be listened to")
	}
	if err := l.Listen(t.Context(), "a", "g", nil); err == nil || strings.Contains(err.Error(), canary) || !errors.Is(err, errAway) {
		t.Errorf("listening: %v", err)
	}
	if _, ok := secrets.around(listener{}.Publisher).(outbox.Listener); ok {
		t.Error("one that cannot listen says that it can")
	}
}

// listener is a publisher that can be listened to, and says too much.
type listener struct{ outbox.Publisher }

func (listener) Listen(context.Context, string, string, func(context.Context, outbox.Incoming) error) error {
	return fmt.Errorf("the password %s is wrong: %w", canary, errAway)
}

func TestWhatHappensBeforeASinkCanStartWaitsForIt(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	r.start()
	for name, c := range map[string]struct{ spec, reason string }{
		"suspended": {`{suspend: true, http: {url: "%s"}}`, v1.SinkReasonSuspended},
		"no-secret": {`{http: {url: "%s"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: later}}}`, v1.SinkReasonSecretNotFound},
		"invalid":   {`{http: {url: "%s"}, sagaSelector: {matchExpressions: [{key: a, operator: Near}]}}`, v1.SinkReasonInvalid},
	} {
		o := r.sink(name, fmt.Sprintf(c.spec, good.url))
		r.waitReady(name, metav1.ConditionFalse, c.reason)
		if _, set := r.relay.get(string(o.UID)); set || !r.relay.hasBegun(string(o.UID)) {
			t.Errorf("%s: published to: %t, known to the outbox: %t", name, set, r.relay.hasBegun(string(o.UID)))
		}
	}
}

func TestASuspendedSinkIsNotPublishedToUntilItGoesOn(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	r.start()
	o := r.sink("s", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	r.waitReady("s", metav1.ConditionTrue, "Ready")
	r.patch(o, `{"spec":{"suspend":true}}`)
	r.waitReady("s", metav1.ConditionFalse, v1.SinkReasonSuspended)
	r.waitRemoved(o)
	r.patch(o, `{"spec":{"suspend":false}}`)
	r.waitReady("s", metav1.ConditionTrue, "Ready")
	if r.relay.wasForgotten(string(o.UID)) {
		t.Error("what waited for it was dropped")
	}
}

func TestWhatIsKeptOfASinkGoesOnlyWhenTheSinkIsReallyGone(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	elsewhere := r.namespace(nil)
	// One in a namespace that is not watched, one whose object is not in any cache, one that is no object's, and one that was deleted while nobody looked.
	other := &v1.Sink{}
	other.Namespace, other.Name = elsewhere, "other"
	other.Spec.HTTP = &v1.HTTPSink{URL: good.url}
	if err := r.kube.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	cluster := r.clusterSink(fmt.Sprintf(`{suspend: true, http: {url: "%s"}}`, good.url))
	gone := uuid.NewString()
	for _, id := range []string{string(other.UID), string(cluster.UID), "replies", gone} {
		r.relay.stands(outbox.Status{ID: id, Name: id})
	}
	r.start()
	o := r.sink("s", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	r.waitReady("s", metav1.ConditionTrue, "Ready")
	if err := r.kube.Delete(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.waitRemoved(o)
	r.eventually(func() error {
		if !r.relay.wasForgotten(string(o.UID)) || !r.relay.wasForgotten(gone) {
			return errors.New("what is gone is not forgotten")
		}
		return nil
	})
	for _, id := range []string{string(other.UID), string(cluster.UID), "replies"} {
		if r.relay.wasForgotten(id) {
			t.Errorf("%s is forgotten, and is not gone", id)
		}
	}
	if _, ok := r.relay.get(string(other.UID)); ok {
		t.Error("a sink of a namespace that is not watched is published to")
	}
}

func TestASinkThatSomebodyStillPublishesToIsNotSaidToBeForgotten(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	s := r.reconciler()
	s.Client, s.Live, s.Elected = r.kube, r.kube, make(chan struct{})
	s.setDefaults(nil)
	gone := uuid.NewString()
	r.relay.stands(outbox.Status{ID: gone, Name: "gone"})
	r.relay.setBusy(true)
	if err := s.forget(t.Context()); err != nil || strings.Contains(r.log.String(), "forgot") {
		t.Errorf("error %v, the log is %s", err, r.log.String())
	}
	r.relay.setBusy(false)
	if err := s.forget(t.Context()); err != nil || !r.relay.wasForgotten(gone) || !strings.Contains(r.log.String(), "forgot") {
		t.Errorf("error %v, forgotten: %t, the log is %s", err, r.relay.wasForgotten(gone), r.log.String())
	}
}

func TestNothingIsForgottenWhileTheAPIServerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	s := r.reconciler()
	s.Client, s.Elected = r.kube, make(chan struct{})
	inner, err := client.NewWithWatch(apiServer(t), client.Options{Scheme: scheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.Live = interceptor.NewClient(inner, interceptor.Funcs{List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
		return errors.New("the API server is away")
	}})
	s.setDefaults(nil)
	gone := uuid.NewString()
	r.relay.stands(outbox.Status{ID: gone, Name: "gone"})
	if err := s.forget(t.Context()); err == nil || r.relay.wasForgotten(gone) {
		t.Errorf("error %v, forgotten: %t", err, r.relay.wasForgotten(gone))
	}
}

func TestASinkThatIsMadeAgainUnderItsNameIsAnotherOne(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	spec := fmt.Sprintf(`{http: {url: "%s"}}`, good.url)
	r.start()
	first := r.sink("s", spec)
	r.waitReady("s", metav1.ConditionTrue, "Ready")
	if err := r.kube.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	second := r.sink("s", spec)
	r.waitSet(second, nil)
	r.waitRemoved(first)
	r.waitReady("s", metav1.ConditionTrue, "Ready")
}

func TestOnlyTheLeaderWritesStatusAndEveryReplicaPublishes(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	ends := newRecordingRelay() // of the replica that does not lead at first
	elect := func(o *ctrl.Options) {
		lease, renew, retry := 2*time.Minute, 100*time.Second, 200*time.Millisecond // who stops lets go of it at once
		o.LeaderElection, o.LeaderElectionNamespace, o.LeaderElectionID = true, r.ns, "sinks"
		o.LeaderElectionReleaseOnCancel, o.LeaseDuration, o.RenewDeadline, o.RetryPeriod = true, &lease, &renew, &retry
	}
	_, stop := r.start(func(_ *SinkReconciler, o *ctrl.Options) { elect(o) })
	first := r.sink("first", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	r.waitReady("first", metav1.ConditionTrue, "Ready") // somebody leads
	other, _ := r.start(func(s *SinkReconciler, o *ctrl.Options) {
		elect(o)
		s.Relay = ends
	})
	following := &sinkRig{T: t, ns: r.ns, kube: r.kube, relay: ends}
	p, _ := following.waitSet(first, nil).Publisher.(*countingPublisher)
	if checks, _ := p.counts(); checks != 0 || other.leads() {
		t.Errorf("a replica that does not lead checks destinations (%d times)", checks)
	}
	stop()
	second := r.sink("second", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	following.waitSet(second, nil)
	r.waitReady("second", metav1.ConditionTrue, "Ready") // the other one has taken over
	r.eventually(func() error {
		if checks, _ := p.counts(); checks == 0 {
			return errors.New("the new leader does not look at the sinks that it had already")
		}
		return nil
	})
}

// canary is what no text of the operator's may show.
const canary = "canary-5e1f"

func TestASecretIsShownNowhere(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	echo := newReceiver(t, "another") // which says what it was shown
	natsURL := natsServer(t, "saga", "another")
	r.secret("token", "127.0.0.1", map[string]string{"token": canary + "-token"})
	r.secret("password", "127.0.0.1, no-such-host.invalid", map[string]string{"username": "saga", "password": canary + "-password"})
	r.secret("unlisted", "", map[string]string{"token": canary + "-unlisted"})
	r.secret("certificate", "127.0.0.1", map[string]string{"tls.crt": canary, "tls.key": canary})
	r.start()
	reasons := map[string]string{"echo": outbox.ReasonUnauthorized, "nats": outbox.ReasonUnauthorized, "rabbit": outbox.ReasonConnectionFailed, "unlisted": v1.SinkReasonSecretNotForHost,
		"certificate": v1.SinkReasonSecretInvalid}
	made := map[string]*v1.Sink{}
	made["echo"] = r.sink("echo", fmt.Sprintf(`{http: {url: "%s"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: token}}}`, echo.url))
	made["nats"] = r.sink("nats", fmt.Sprintf(`{nats: {servers: ["%s"], subject: s}, allowPlaintextCredentials: true, credentials: {secretRef: {name: password}}}`, natsURL))
	r.sink("rabbit", `{rabbitmq: {url: "amqp://no-such-host.invalid", routingKey: k}, allowPlaintextCredentials: true, credentials: {secretRef: {name: password}}}`)
	r.sink("unlisted", fmt.Sprintf(`{http: {url: "%s"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: unlisted}}}`, echo.url))
	r.sink("certificate", fmt.Sprintf(`{nats: {servers: ["%s"], subject: s}, tls: {secretRef: {name: certificate}}}`, natsURL))
	for name, reason := range reasons {
		o := r.waitReady(name, metav1.ConditionFalse, reason)
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), canary) {
			t.Errorf("sink %s shows a secret:\n%s", name, text)
		}
	}
	for _, name := range []string{"echo", "nats"} { // what publishing fails with goes into the database
		r.eventually(func() error {
			err := r.waitSet(made[name], nil).Publisher.Publish(t.Context(), []outbox.Message{*publishable(r.ns)})[0]
			if err == nil || strings.Contains(err.Error(), canary) {
				t.Fatalf("publishing to %s: %v, want an error that shows no secret", name, err)
			}
			var known *outbox.Error
			if !errors.As(err, &known) || known.Kind != outbox.Unavailable || known.Reason != outbox.ReasonUnauthorized {
				return fmt.Errorf("publishing to %s: %w", name, err)
			}
			return nil
		})
	}
	if !echo.shown(canary + "-token") {
		t.Error("the test is about nothing: the token was not shown to the destination")
	}
	if strings.Contains(r.log.String(), canary) {
		t.Error("the log shows a secret")
	}
	var events eventsv1.EventList
	if err := r.kube.List(t.Context(), &events, client.InNamespace(r.ns)); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool { return strings.Contains(e.Note, canary) }) {
		t.Error("a Kubernetes event shows a secret")
	}
}
