package controllers

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

func TestSinkSchemaAcceptsEncryptedCredentials(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	for name, spec := range map[string]string{
		"https":     `{http: {url: "https://shop"}, %s}`,
		"amqps":     `{rabbitmq: {url: "amqps://r", routingKey: k}, %s}`,
		"nats-tls":  `{nats: {servers: [n0], subject: s}, tls: {}, %s}`,
		"tls-nats":  `{nats: {servers: ["tls://n"], subject: s}, %s}`,
		"kafka-tls": `{kafka: {brokers: [k], topic: t, mechanism: PLAIN}, tls: {}, %s}`,
		"allowed":   `{http: {url: "http://shop"}, allowPlaintextCredentials: true, %s}`,
	} {
		if _, err := r.trySink(name, fmt.Sprintf(spec, `credentials: {secretRef: {name: a}}`)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// waitJudged waits until a sink has the condition Ready, whatever it says.
func (r *sinkRig) waitJudged(name string) *metav1.Condition {
	r.Helper()
	var c *metav1.Condition
	r.eventually(func() error {
		o := &v1.Sink{}
		if err := r.kube.Get(r.Context(), client.ObjectKey{Namespace: r.ns, Name: name}, o); err != nil {
			return err
		}
		if c = meta.FindStatusCondition(o.Status.Conditions, v1.ConditionReady); c == nil {
			return fmt.Errorf("sink %s has no condition", name)
		}
		return nil
	})
	return c
}

// withoutConsent shows sinks as they were stored before the schema asked for consent to plaintext
// credentials.
type withoutConsent struct{ client.Client }

func (c withoutConsent) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	err := c.Client.Get(ctx, key, o, options...)
	if s, ok := o.(*v1.Sink); ok {
		s.Spec.AllowPlaintextCredentials = false
	}
	return err
}

func TestSinkKeepsCredentialsOffPlaintext(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	const token = "s3cr3t-token"
	good := newReceiver(t, token)
	r.secret("token", "127.0.0.1, r, n0, k", map[string]string{"token": token})
	r.secret("password", "127.0.0.1, r, n0, k", map[string]string{"username": "saga", "password": "s3cr3t-password"})
	r.start(func(s *SinkReconciler, _ *ctrl.Options) { s.Client = withoutConsent{r.kube} })
	for name, c := range map[string]struct{ spec, remedy string }{
		"http":     {fmt.Sprintf(`http: {url: "%s"}, credentials: {secretRef: {name: token}}`, good.url), "https://"},
		"rabbitmq": {`rabbitmq: {url: "amqp://r", routingKey: k}, credentials: {secretRef: {name: password}}`, "amqps://"},
		"nats":     {`nats: {servers: [n0], subject: s}, credentials: {secretRef: {name: password}}`, "spec.tls"},
		"kafka":    {`kafka: {brokers: [k], topic: t, mechanism: PLAIN}, credentials: {secretRef: {name: password}}`, "spec.tls"},
	} {
		o := r.sink(name, `{allowPlaintextCredentials: true, `+c.spec+`}`)
		got := r.waitJudged(name)
		if got.Status != metav1.ConditionFalse || got.Reason != v1.SinkReasonNotEncrypted {
			t.Errorf("%s: the condition is %+v", name, got)
		}
		for _, says := range []string{c.remedy, "spec.allowPlaintextCredentials"} {
			if !strings.Contains(got.Message, says) {
				t.Errorf("%s: the message does not say %q: %s", name, says, got.Message)
			}
		}
		if _, set := r.relay.get(string(o.UID)); set {
			t.Errorf("%s is published to", name)
		}
		if !r.relay.hasBegun(string(o.UID)) {
			t.Errorf("%s: its messages are not kept", name)
		}
	}
	if good.shown(token) {
		t.Error("the token was shown in plain text")
	}
}

// TestDestinationIgnoresTLSOfPlainURL has a spec that the schema refuses today.
func TestDestinationIgnoresTLSOfPlainURL(t *testing.T) {
	t.Parallel()
	spec := &v1.SinkSpec{HTTP: &v1.HTTPSink{URL: "http://shop"}, TLS: &v1.SinkTLS{}, Credentials: &v1.SinkCredentials{}}
	d, err := destinationOf(spec)
	if err != nil {
		t.Fatal(err)
	}
	if d.plaintextProblem(spec) == nil {
		t.Error("credentials are sent to an http:// URL because the spec has tls")
	}
}
