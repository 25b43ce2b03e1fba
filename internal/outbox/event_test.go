package outbox_test

import (
	"encoding/json"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
)

func sample() outbox.Message {
	return outbox.Message{RecordedMessage: eventstore.RecordedMessage{
		Message: eventstore.Message{
			ID: uuid.MustParse("019391c5-0000-7000-8000-000000000001"), Type: "io.vextrus.saga.Completed", Key: "uid-1", Source: "/apis/saga.vextrus.io/v1/namespaces/shop/sagas",
			Subject: "order-1042", Namespace: "shop", Sequence: 7, Data: json.RawMessage(`{"b": 1,"a":"é"}`),
			Metadata: eventstore.Metadata{CorrelationID: "uid-1", CausationID: "c-1", TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		},
		RecordedAt: time.Date(2030, 1, 2, 3, 4, 5, 678_000_000, time.UTC),
	}}
}

func TestAMessageIsACloudEventInBothModes(t *testing.T) {
	t.Parallel()
	m := sample()
	for _, mode := range []outbox.Mode{outbox.Binary, outbox.Structured} {
		for _, prefix := range []string{"ce-", "ce_", "cloudEvents:"} {
			encoded, err := m.Encode(mode, prefix)
			if err != nil {
				t.Fatal(err)
			}
			got, err := outbox.Decode(encoded.Incoming())
			if err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
			checkSample(t, &got)
			if mode == outbox.Binary && string(encoded.Body) != string(m.Data) {
				t.Errorf("the body is %s", encoded.Body)
			}
		}
	}
}

func checkSample(t *testing.T, got *cloudevents.Event) {
	t.Helper()
	m := sample()
	for what, pair := range map[string][2]string{
		"id": {got.ID(), m.ID.String()}, "type": {got.Type(), m.Type}, "source": {got.Source(), m.Source}, "subject": {got.Subject(), m.Subject},
		"time": {got.Time().UTC().String(), m.RecordedAt.String()}, "version": {got.SpecVersion(), "1.0"}, "content type": {got.DataContentType(), "application/json"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("the %s is %q, want %q", what, pair[0], pair[1])
		}
	}
	for name, want := range map[string]string{
		"sequence": "0000000007", "partitionkey": "uid-1", "correlationid": "uid-1", "causationid": "c-1", "traceparent": m.Metadata.TraceParent,
	} {
		if got := got.Extensions()[name]; got != want {
			t.Errorf("the extension %s is %v, want %q", name, got, want)
		}
	}
	var data map[string]any
	if err := got.DataAs(&data); err != nil || data["a"] != "é" {
		t.Errorf("the data is %v, %v", data, err)
	}
}

func TestWhatIsNoCloudEventIsRejected(t *testing.T) {
	t.Parallel()
	m := sample()
	m.Source = "://" // no URI
	_, err := m.Encode(outbox.Binary, "ce-")
	if e, ok := err.(*outbox.Error); !ok || e.Kind != outbox.Rejected { //nolint:errorlint // it is returned as it is
		t.Errorf("the error is %v", err)
	}
}

func FuzzDecodeNeverPanics(f *testing.F) {
	f.Add("application/cloudevents+json", "ce-id", "1", []byte(`{"specversion":"1.0","id":"1","type":"t","source":"s"}`))
	f.Add("application/json", "ce_type", "t", []byte(`{}`))
	f.Fuzz(func(t *testing.T, contentType, name, value string, body []byte) {
		e, err := outbox.Decode(outbox.Incoming{Headers: map[string]string{"content-type": contentType, name: value}, Body: body})
		if err == nil && e.ID() == "" {
			t.Errorf("an event without an id: %v", e)
		}
	})
}
