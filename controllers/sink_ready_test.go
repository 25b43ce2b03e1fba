package controllers

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/twmb/franz-go/pkg/kfake"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/ports"
)

// natsServer is a NATS server with JetStream and no streams, for whoever shows the password.
func natsServer(t *testing.T, username, password string) (url string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true, Username: username, Password: password,
		AuthTimeout: patienceOfTests.Seconds(), WriteDeadline: patienceOfTests,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(patienceOfTests) {
		t.Fatal("the NATS server does not start")
	}
	return s.ClientURL()
}

// nobody returns an address at which nobody listens, but for the test itself if it wants to.
func nobody(t *testing.T) string {
	t.Helper()
	return ports.ForTest(t)
}

func TestASinkIsReadyWhenItsDestinationTakesMessages(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "s3cr3t-token")
	r.secret("token", "127.0.0.1", map[string]string{"token": "s3cr3t-token"})
	r.start()
	o := r.sink("good", fmt.Sprintf(`{http: {url: "%s"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: token}}}`, good.url))
	got := r.waitReady("good", metav1.ConditionTrue, "Ready")
	if got.Status.Kind != v1.SinkHTTP {
		t.Errorf("the status is %+v", got.Status)
	}
	s := r.waitSet(o, nil)
	if s.Name != r.ns+"/good" || s.Timeout != 10*time.Second || s.Retry != (outbox.Retry{MaxAttempts: 20, InitialBackoff: time.Second, MaxBackoff: 5 * time.Minute}) {
		t.Errorf("the relay was given %+v", s)
	}
}

func TestTheLastErrorIsOneThatASinkHasHadAndNotThatItIsSuspended(t *testing.T) {
	t.Parallel()
	r := &SinkReconciler{Clock: func() time.Time { return ended }}
	failure := &sinkProblem{outbox.ReasonUnauthorized, "401"}
	var status v1.SinkStatus
	for _, step := range []struct {
		what string
		e    sinkEntry
		want string
	}{
		{"ready", sinkEntry{}, ""},
		{"suspended", sinkEntry{problem: &sinkProblem{v1.SinkReasonSuspended, "it is"}}, ""},
		{"failing", sinkEntry{failure: failure}, outbox.ReasonUnauthorized},
		{"ready again", sinkEntry{}, outbox.ReasonUnauthorized},
		{"suspended again", sinkEntry{problem: &sinkProblem{v1.SinkReasonSuspended, "it is"}}, outbox.ReasonUnauthorized},
	} {
		status = *r.statusOf(&step.e, &status)
		got := ""
		if status.LastError != nil {
			got = status.LastError.Reason
		}
		if got != step.want {
			t.Errorf("%s: the last error is %q, want %q", step.what, got, step.want)
		}
	}
}

func TestASecretIsGoodForAHostByItsName(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	r.secret("by-name", "localhost", map[string]string{"username": "saga", "password": "right-password"})
	r.start()
	byName := func(url string) string { return strings.Replace(url, "127.0.0.1", "localhost", 1) }
	r.sink("http", fmt.Sprintf(`{http: {url: "%s"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: by-name}}}`, byName(good.url)))
	r.sink("nats", fmt.Sprintf(`{nats: {servers: ["%s"], subject: s}, allowPlaintextCredentials: true, credentials: {secretRef: {name: by-name}}}`, byName(natsServer(t, "saga", "right-password"))))
	r.waitReady("http", metav1.ConditionTrue, "Ready")
	r.waitReady("nats", metav1.ConditionFalse, outbox.ReasonNotFound) // it is let in, and there is no stream
}

func TestASinkTrustsWhomItsSecretNames(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	encrypted := httptest.NewUnstartedServer(&receiver{})
	encrypted.Config.ErrorLog = log.New(io.Discard, "", 0)
	encrypted.StartTLS()
	t.Cleanup(encrypted.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: encrypted.Certificate().Raw})
	r.secret("ca", "127.0.0.1", map[string]string{"ca.crt": string(ca)})
	r.start()
	r.sink("stranger", fmt.Sprintf(`{http: {url: "%s"}}`, encrypted.URL))
	r.sink("trusted", fmt.Sprintf(`{http: {url: "%s"}, tls: {secretRef: {name: ca}}}`, encrypted.URL))
	r.sink("other-name", fmt.Sprintf(`{http: {url: "%s"}, tls: {secretRef: {name: ca}, serverName: shop.test}}`, encrypted.URL))
	r.waitReady("trusted", metav1.ConditionTrue, "Ready")
	r.waitReady("stranger", metav1.ConditionFalse, outbox.ReasonTLSFailed)
	r.waitReady("other-name", metav1.ConditionFalse, outbox.ReasonTLSFailed)
}

func TestABadSinkSaysWhatIsWrongWithIt(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	natsURL := natsServer(t, "saga", "right-password")
	brokers, err := kfake.NewCluster(kfake.SeedTopics(1, "there"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(brokers.Close)
	r.secret("wrong", "127.0.0.1", map[string]string{"username": "saga", "password": "wrong-password"})
	r.secret("right", "127.0.0.1", map[string]string{"username": "saga", "password": "right-password"})
	r.secret("unlisted", "", map[string]string{"username": "saga", "password": "right-password"})
	r.secret("elsewhere", "nats.example.com, *.0.0.1", map[string]string{"username": "saga", "password": "right-password"})
	r.secret("empty", "127.0.0.1", map[string]string{"user": "saga"})
	r.secret("broken", "127.0.0.1", map[string]string{"token": "one\ntwo"})
	r.secret("no-certificate", "127.0.0.1", map[string]string{"ca.crt": "this is no certificate"})
	r.start()
	withNATS := func(secret string) string {
		return fmt.Sprintf(`{nats: {servers: ["%s"], subject: "sagas.{type}"}, allowPlaintextCredentials: true, credentials: {secretRef: {name: %s}}}`, natsURL, secret)
	}
	for name, c := range map[string]struct {
		spec, reason, says string
		set                bool // messages wait in the relay
	}{
		"unknown-host":    {`{http: {url: "http://no-such-host.invalid/"}}`, outbox.ReasonConnectionFailed, "Check the host", true},
		"nobody-listens":  {fmt.Sprintf(`{http: {url: "http://%s"}}`, nobody(t)), outbox.ReasonConnectionFailed, "Check the host", true},
		"wrong-password":  {withNATS("wrong"), outbox.ReasonUnauthorized, "spec.credentials", true},
		"no-stream":       {withNATS("right"), outbox.ReasonNotFound, "Create it", true},
		"no-topic":        {fmt.Sprintf(`{kafka: {brokers: ["%s"], topic: missing}}`, brokers.ListenAddrs()[0]), outbox.ReasonNotFound, "Create it", true},
		"denied":          {`{http: {url: "http://127.0.0.2/"}}`, outbox.ReasonEgressDenied, "administrator", true},
		"no-secret":       {withNATS("missing"), v1.SinkReasonSecretNotFound, `"missing"`, false},
		"unlisted-secret": {withNATS("unlisted"), v1.SinkReasonSecretNotForHost, v1.SecretHostsAnnotation, false},
		"other-hosts":     {withNATS("elsewhere"), v1.SinkReasonSecretNotForHost, "127.0.0.1", false},
		"empty-secret":    {withNATS("empty"), v1.SinkReasonSecretInvalid, "username", false},
		"broken-secret":   {withNATS("broken"), v1.SinkReasonSecretInvalid, "line break", false},
		"no-certificate": {fmt.Sprintf(`{nats: {servers: ["%s"], subject: s}, tls: {secretRef: {name: no-certificate}}}`, natsURL), v1.SinkReasonSecretInvalid,
			"ca.crt", false},
		"forged-header": {`{http: {url: "http://127.0.0.1", headers: {X_Forwarded_For: "10.0.0.1"}}}`, v1.SinkReasonInvalid, "who the client is", false},
		"bad-selector":  {`{http: {url: "http://127.0.0.1"}, sagaSelector: {matchExpressions: [{key: a, operator: Near}]}}`, v1.SinkReasonInvalid, "sagaSelector", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &sinkRig{T: t, ns: r.ns, kube: r.kube, relay: r.relay}
			o := r.sink(name, c.spec)
			began := time.Now()
			got := r.waitReady(name, metav1.ConditionFalse, c.reason)
			t.Logf("after %s: %s", time.Since(began).Round(time.Millisecond), got.Status.Conditions[0].Message)
			if message := got.Status.Conditions[0].Message; !strings.Contains(message, c.says) {
				t.Errorf("the message does not say %q: %s", c.says, message)
			}
			if e := got.Status.LastError; e == nil || e.Reason != c.reason || e.Time.IsZero() {
				t.Errorf("the last error is %+v", e)
			}
			if _, set := r.relay.get(string(o.UID)); set != c.set {
				t.Errorf("the relay publishes to it: %t, want %t", set, c.set)
			}
		})
	}
}

func TestADestinationThatIsAwayIsNotCheckedInAHotLoop(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	now := time.Now()
	elected := make(chan struct{})
	close(elected)
	s := r.reconciler()
	s.Client, s.Live, s.Elected, s.Clock, s.pace = r.kube, r.kube, elected, func() time.Time { return now }, usualSinkPace
	s.setDefaults(nil)
	o := r.sink("away", fmt.Sprintf(`{http: {url: "http://%s"}}`, nobody(t)))
	// It is reconciled far more often than anything asks for, over an hour.
	var pauses []time.Duration
	looked := 0
	for began := now; now.Sub(began) < time.Hour; {
		var again time.Duration
		for range 3 {
			res, err := s.Reconcile(t.Context(), requestFor(o))
			if err != nil {
				t.Fatal(err)
			}
			again = res.RequeueAfter
			looked++
		}
		pauses = append(pauses, again)
		now = now.Add(again)
	}
	p, _ := r.waitSet(o, nil).Publisher.(*countingPublisher)
	if checks, _ := p.counts(); checks != looked/3 || checks > 65 {
		t.Errorf("the destination was checked %d times in an hour", checks)
	}
	if fmt.Sprint(pauses[:6]) != "[5s 10s 20s 40s 1m0s 1m0s]" {
		t.Errorf("the pauses are %v", pauses[:6])
	}
	if r.relay.sets != 1 {
		t.Errorf("the sink was set %d times", r.relay.sets)
	}
}

func TestASinkThatIsBackIsReadyAgain(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	address := nobody(t)
	r.start()
	r.sink("s", fmt.Sprintf(`{http: {url: "http://%s"}}`, address))
	r.waitReady("s", metav1.ConditionFalse, outbox.ReasonConnectionFailed)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l)
	got := r.waitReady("s", metav1.ConditionTrue, "Ready")
	if got.Status.LastError == nil {
		t.Error("the last error is not kept")
	}
}

func TestWhatPublishingMeetsIsShown(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	r.start()
	o := r.sink("s", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	r.waitReady("s", metav1.ConditionTrue, "Ready")
	r.relay.stands(outbox.Status{ID: string(o.UID), Backlog: 2, Trouble: "it says no", Reason: outbox.ReasonUnauthorized})
	r.waitReady("s", metav1.ConditionFalse, outbox.ReasonUnauthorized)
	r.relay.stands(outbox.Status{ID: string(o.UID), Published: 2})
	r.waitReady("s", metav1.ConditionTrue, "Ready")
}

// TestADestinationThatTakesMessagesIsReadyWhateverItSaysToACheck has one that lets nobody ask what may be done there.
func TestADestinationThatTakesMessagesIsReadyWhateverItSaysToACheck(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodOptions {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	r.start()
	o := r.sink("s", fmt.Sprintf(`{http: {url: "%s"}}`, server.URL))
	r.waitReady("s", metav1.ConditionFalse, outbox.ReasonUnauthorized) // which is all that is known of it
	p, _ := r.waitSet(o, nil).Publisher.(*countingPublisher)
	published := int64(0)
	publishes := func() { // once more each time: where a check goes unanswered for once, what was published before it counts no more
		r.eventually(func() error {
			published++
			r.relay.stands(outbox.Status{ID: string(o.UID), Published: published})
			return r.ready("s", metav1.ConditionTrue, "Ready", &v1.Sink{})
		})
	}
	publishes()
	since, _ := p.counts()
	r.eventually(func() error {
		if now, _ := p.counts(); now < since+3 {
			return fmt.Errorf("it was checked %d times since", now-since)
		}
		return nil
	})
	publishes()
	r.relay.stands(outbox.Status{ID: string(o.UID), Published: published, Backlog: 1, Trouble: "401 Unauthorized", Reason: outbox.ReasonUnauthorized})
	r.waitReady("s", metav1.ConditionFalse, outbox.ReasonUnauthorized)
}

func TestADatabaseThatIsAwayIsSaidAndWaitedFor(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	r.relay.setAway(true)
	r.start()
	r.sink("s", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	r.waitReady("s", metav1.ConditionFalse, v1.SinkReasonOutboxUnavailable)
	r.relay.setAway(false)
	r.waitReady("s", metav1.ConditionTrue, "Ready")
}

func TestAPanicOverOneSinkHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	panicked := make(chan struct{}, 100)
	r.start(func(s *SinkReconciler, _ *ctrl.Options) {
		s.around = func(p outbox.Publisher) outbox.Publisher { return panicking{p, panicked} }
	})
	r.sink("bad", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	select {
	case <-panicked:
	case <-time.After(patienceOfTests):
		t.Fatal("nothing has panicked")
	}
	r.sink("good", fmt.Sprintf(`{suspend: true, http: {url: "%s"}}`, good.url))
	r.waitReady("good", metav1.ConditionFalse, v1.SinkReasonSuspended)
}

// panicking is a publisher with an error in it.
type panicking struct {
	outbox.Publisher
	panicked chan<- struct{}
}

func (p panicking) Check(context.Context) error {
	select {
	case p.panicked <- struct{}{}:
	default:
	}
	panic("a publisher with an error in it")
}
