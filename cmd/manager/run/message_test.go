package run

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// natsServer is a broker with one stream, for what sagas tell and for the answers.
func natsServer(t *testing.T) (url string, js jetstream.JetStream) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("NATS does not start")
	}
	conn, err := natsgo.Connect(s.ClientURL(), natsgo.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if js, err = jetstream.New(conn, jetstream.WithDefaultTimeout(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "SHOP", Subjects: []string{"shop.>"}, Duplicates: time.Hour}); err != nil {
		t.Fatal(err)
	}
	return s.ClientURL(), js
}

// payments is a service that takes charges from the broker and answers there. It declines those of customer c-0.
func payments(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	consumer, err := js.CreateConsumer(t.Context(), "SHOP", jetstream.ConsumerConfig{FilterSubject: "shop.events"})
	if err != nil {
		t.Fatal(err)
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		_ = m.Ack()
		if m.Headers().Get("ce-type") != "com.example.charge.requested" {
			return
		}
		var data struct{ Customer string }
		if err := json.Unmarshal(m.Data(), &data); err != nil {
			t.Errorf("a charge is %s: %v", m.Data(), err)
		}
		answer := &natsgo.Msg{Subject: "shop.answers", Data: []byte(`{"id":"p-` + data.Customer + `"}`), Header: natsgo.Header{}}
		for name, value := range map[string]string{
			"ce-specversion": "1.0", "ce-id": "answer-" + m.Headers().Get("ce-id"), "ce-type": "com.example.charged", "ce-source": "/payments",
			"ce-correlationid": m.Headers().Get("ce-correlationid"),
		} {
			answer.Header.Set(name, value)
		}
		if data.Customer == "c-0" {
			answer.Header.Set("ce-sagarejected", "true")
			answer.Data = []byte(`{"reason":"Declined","message":"no money"}`)
		}
		if _, err := js.PublishMsg(t.Context(), answer); err != nil && t.Context().Err() == nil {
			t.Errorf("answering: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(consuming.Stop)
}

// charge is a saga that asks for money by a message, and says by another what it got.
func charge(t *testing.T, kube client.Client, name, customer string) *v1.Saga {
	t.Helper()
	o := &v1.Saga{}
	o.Namespace, o.Name = "default", name
	o.Spec.Input = &v1.JSON{Raw: []byte(`{"customer":"` + customer + `"}`)}
	o.Spec.Steps = []v1.Step{
		{Name: "charge", Output: map[string]v1.OutputTemplate{"id": "${response.body.id}"}, Effect: v1.Effect{Message: &v1.MessageRequest{
			Sink: "events", Type: "com.example.charge.requested", Data: &v1.JSON{Raw: []byte(`{"customer":"${input.customer}"}`)},
			Reply: &v1.MessageReply{Timeout: &metav1.Duration{Duration: time.Hour}},
		}}},
		{Name: "say", Effect: v1.Effect{Message: &v1.MessageRequest{Sink: "events", Type: "com.example.said", Data: &v1.JSON{Raw: []byte(`"${steps.charge.output.id}"`)}}}},
	}
	if err := kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return o
}

// told returns what the stream has about a saga: the type of each message, with its sequence or its data.
func told(t *testing.T, js jetstream.JetStream, o *v1.Saga) (all []string) {
	t.Helper()
	stream, err := js.Stream(t.Context(), "SHOP")
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= stream.CachedInfo().State.LastSeq; n++ {
		m, err := stream.GetMsg(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get("ce-partitionkey") != string(o.UID) {
			continue
		}
		what := strings.TrimPrefix(m.Header.Get("ce-type"), "io.vextrus.saga.")
		if sequence := m.Header.Get("ce-sequence"); sequence != "" {
			what += " " + strings.TrimLeft(sequence, "0")
		} else {
			what += " " + string(m.Data)
		}
		all = append(all, what)
	}
	return all
}

// TestASagaPublishesAMessageAndGoesOnWithItsAnswer runs the whole operator with a real broker: the answer makes one saga complete and the other roll back, and what both did is told in
// order, and counted without a gap. It is not parallel: what the libraries log goes where the latest operator of the process logs.
func TestASagaPublishesAMessageAndGoesOnWithItsAnswer(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{})
	url, js := natsServer(t)
	payments(t, js)
	log := &lockedBuffer{}
	stop := operatorProcess(t, log, throwaway.Database(t), "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address=0", "--api-bind-address=0", "--egress-allow=127.0.0.0/8", "--log-format=text", "--log-level=debug", "--outbox-shards=1")
	defer func() {
		if err := stop(); err != nil || t.Failed() || strings.Contains(log.String(), "forbidden") {
			t.Errorf("the operator ended: %v; its log, in which nothing should be forbidden:\n%s", err, log)
		}
	}()
	kube := newClient(t, kubernetes)
	s := &v1.Sink{}
	s.Namespace, s.Name = "default", "events"
	s.Spec = v1.SinkSpec{NATS: &v1.NATSSink{Servers: []string{"nats://" + strings.TrimPrefix(url, "nats://")}, Subject: "shop.events"}, Replies: "shop.answers"}
	if _, _, err := net.SplitHostPort(strings.TrimPrefix(url, "nats://")); err != nil {
		t.Fatal(err)
	}
	if err := kube.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	waitSink(t, kube, s, func(st *v1.SinkStatus) bool { return holds(st, "Ready", "Ready") })

	good, bad := charge(t, kube, "good", "c-7"), charge(t, kube, "bad", "c-0")
	waitCompleted(t, kube, good)
	eventually(t, func() error {
		if err := kube.Get(t.Context(), client.ObjectKeyFromObject(bad), bad); err != nil {
			return err
		}
		if bad.Status.Phase != v1.PhaseCompensated {
			return fmt.Errorf("the phase is %s", bad.Status.Phase)
		}
		return nil
	})
	if f := bad.Status.Failure; f == nil || f.Reason != "Declined" || f.Message != "no money" {
		t.Errorf("the failure is %+v", f)
	}
	eventually(t, func() error {
		var lifecycle, own []string
		for _, what := range told(t, js, good) {
			if strings.HasPrefix(what, "com.example") {
				own = append(own, what)
			} else {
				lifecycle = append(lifecycle, what)
			}
		}
		got := strings.Join(lifecycle, ", ") + "; " + strings.Join(own, ", ")
		want := `Started 1, StepSucceeded 2, StepSucceeded 3, Completed 4; com.example.charge.requested {"customer":"c-7"}, com.example.said "p-c-7"`
		if got != want {
			return fmt.Errorf("told was\n%s, want\n%s", got, want)
		}
		return nil
	})
}
