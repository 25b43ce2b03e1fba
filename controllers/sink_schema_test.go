package controllers

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// many returns n texts in YAML, each different.
func many(n int, format string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return strings.Join(all, ", ")
}

func TestASinkThatCannotBeMeantIsRefused(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	const http = `http: {url: "http://shop"}`
	long := strings.Repeat("x", 5000)
	for name, c := range map[string]struct{ spec, says string }{
		"no-kind":               {`{}`, "exactly one kind of destination"},
		"two-kinds":             {`{` + http + `, nats: {servers: [nats], subject: s}}`, "exactly one kind of destination"},
		"userinfo":              {`{http: {url: "https://me:hunter2@shop"}}`, "without user or password"},
		"userinfo-in-amqp":      {`{rabbitmq: {url: "amqp://me@shop", routingKey: k}}`, "without user or password"},
		"userinfo-in-nats":      {`{nats: {servers: ["nats://me:x@n"], subject: s}}`, "spec.nats.servers"},
		"userinfo-in-kafka":     {`{kafka: {brokers: ["me@k:9092"], topic: t}}`, "spec.kafka.brokers"},
		"backslash":             {`{http: {url: "http://shop\\@evil"}}`, "without user or password"},
		"fragment":              {`{http: {url: "http://shop/#a"}}`, "without a fragment"},
		"other-scheme":          {`{http: {url: "file:///etc/passwd"}}`, "http://"},
		"no-host":               {`{http: {url: "http:///path"}}`, "with a host"},
		"amqp-parameters":       {`{rabbitmq: {url: "amqps://r?cacertfile=/etc/x", routingKey: k}}`, "virtual host"},
		"long-url":              {`{http: {url: "http://` + long + `"}}`, "2048"},
		"bad-type":              {`{` + http + `, types: ["a b"]}`, "spec.types"},
		"empty-type":            {`{` + http + `, types: [""]}`, "spec.types"},
		"long-type":             {`{` + http + `, types: [` + long + `]}`, "spec.types"},
		"many-types":            {`{` + http + `, types: [` + many(65, "t%d") + `]}`, "64"},
		"many-servers":          {`{nats: {servers: [` + many(17, "n%d") + `], subject: s}}`, "16"},
		"many-brokers":          {`{kafka: {brokers: [` + many(17, "k%d") + `], topic: t}}`, "16"},
		"no-brokers":            {`{kafka: {topic: t}}`, "spec.kafka.brokers"},
		"bad-topic":             {`{kafka: {brokers: [k], topic: "a/b"}}`, "spec.kafka.topic"},
		"bad-mechanism":         {`{kafka: {brokers: [k], topic: t, mechanism: GSSAPI}, credentials: {secretRef: {name: a}}}`, "GSSAPI"},
		"mechanism-alone":       {`{kafka: {brokers: [k], topic: t, mechanism: PLAIN}}`, "needed together"},
		"no-mechanism":          {`{kafka: {brokers: [k], topic: t}, credentials: {secretRef: {name: a}}}`, "needed together"},
		"bad-subject":           {`{nats: {servers: [nats], subject: "a.>"}}`, "spec.nats.subject"},
		"no-routing-key":        {`{rabbitmq: {url: "amqp://r"}}`, "routingKey"},
		"many-headers":          {`{http: {url: "http://shop", headers: {` + many(33, "h%d: x") + `}}}`, "32"},
		"long-header":           {`{http: {url: "http://shop", headers: {a: ` + long + `}}}`, "4096"},
		"line-break-in-header":  {`{http: {url: "http://shop", headers: {a: "b\r\nc: d"}}}`, "headers"},
		"bad-header-name":       {`{http: {url: "http://shop", headers: {"a b": x}}}`, "name of a header"},
		"secret-in-header":      {`{http: {url: "http://shop", headers: {authorization: x}}}`, "come from a Secret"},
		"our-header":            {`{http: {url: "http://shop", headers: {Ce-Id: x}}}`, "cannot be given"},
		"our-key":               {`{http: {url: "http://shop", headers: {idempotency-Key: x}}}`, "cannot be given"},
		"our-agent":             {`{http: {url: "http://shop", headers: {User-Agent: x}}}`, "cannot be given"},
		"tls-over-http":         {`{` + http + `, tls: {}}`, "https://"},
		"tls-over-amqp":         {`{rabbitmq: {url: "amqp://r", routingKey: k}, tls: {}}`, "amqps://"},
		"short-timeout":         {`{` + http + `, timeout: 10ms}`, "between 1s and 5m"},
		"long-timeout":          {`{` + http + `, timeout: 6m}`, "between 1s and 5m"},
		"many-attempts":         {`{` + http + `, retry: {maxAttempts: 101}}`, "100"},
		"backoff":               {`{` + http + `, retry: {initialBackoff: 2m, maxBackoff: 1m}}`, "maxBackoff must not be shorter"},
		"bad-mode":              {`{` + http + `, mode: Batched}`, "Batched"},
		"no-secret-name":        {`{` + http + `, credentials: {secretRef: {}}}`, "spec.credentials.secretRef"},
		"secret-of-others":      {`{` + http + `, credentials: {secretRef: {name: a, namespace: kube-system}}}`, "namespace"},
		"plaintext-http":        {`{` + http + `, credentials: {secretRef: {name: a}}}`, "allowPlaintextCredentials"},
		"plaintext-amqp":        {`{rabbitmq: {url: "amqp://r", routingKey: k}, credentials: {secretRef: {name: a}}}`, "allowPlaintextCredentials"},
		"plaintext-nats":        {`{nats: {servers: ["nats://n", n0], subject: s}, credentials: {secretRef: {name: a}}}`, "allowPlaintextCredentials"},
		"plaintext-kafka":       {`{kafka: {brokers: [k], topic: t, mechanism: PLAIN}, credentials: {secretRef: {name: a}}}`, "allowPlaintextCredentials"},
		"plaintext-not-allowed": {`{` + http + `, credentials: {secretRef: {name: a}}, allowPlaintextCredentials: false}`, "allowPlaintextCredentials"},
		"many-labels":           {`{` + http + `, sagaSelector: {matchLabels: {` + many(33, "l%d: x") + `}}}`, "at most 32 labels"},
		"many-expressions":      {`{` + http + `, sagaSelector: {matchExpressions: [` + many(33, "{key: k%d, operator: Exists}") + `]}}`, "at most 32 expressions"},
		"selector-of-a-cluster": {`{` + http + `, namespaceSelector: {}}`, "namespaceSelector"},
	} {
		o := &unstructured.Unstructured{Object: map[string]any{}}
		o.SetGroupVersionKind(v1.GroupVersion.WithKind("Sink"))
		o.SetNamespace(r.ns)
		o.SetName(name)
		spec := map[string]any{}
		if err := yaml.Unmarshal([]byte(c.spec), &spec); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		o.Object["spec"] = spec
		err := r.kube.Create(t.Context(), o, client.FieldValidation("Strict"))
		if err == nil || !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: the API server says %v, want a refusal that says %q", name, err, c.says)
		}
	}
}

func TestTheSamplesOfSinksAreAccepted(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	files, err := filepath.Glob("../config/samples/sink-*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("there are not enough samples: %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range strings.Split(string(text), "\n---\n") {
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(part), &o.Object); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if o.GetKind() != "ClusterSink" {
				o.SetNamespace(r.ns)
			}
			if err := r.kube.Create(t.Context(), o, client.FieldValidation("Strict"), client.DryRunAll); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

func TestKubectlGetShowsHowSinksAre(t *testing.T) {
	t.Parallel()
	r := newSinkRig(t)
	good := newReceiver(t, "")
	r.start()
	o := r.sink("good", fmt.Sprintf(`{http: {url: "%s"}}`, good.url))
	r.sink("bad", `{nats: {servers: [nats], subject: s}, allowPlaintextCredentials: true, credentials: {secretRef: {name: missing}}}`)
	r.waitReady("bad", metav1.ConditionFalse, v1.SinkReasonSecretNotFound)
	r.relay.stands(outbox.Status{ID: string(o.UID), Backlog: 7, Published: 1234, DeadLetters: 2, OldestAge: 90*60*1e9 + 1})
	want := []string{"Name Ready Kind Backlog Oldest Published Dead", "good True HTTP 7 1h30m0s 1234 2 Ready", "bad False NATS 0  0 0 SecretNotFound"}
	r.eventually(func() error {
		if diff := cmp.Diff(want, r.table("sinks", "good", "bad")); diff != "" {
			return fmt.Errorf("the table without the age (-want +got):\n%s", diff)
		}
		return nil
	})
	if got := r.table("clustersinks"); got[0] != want[0] {
		t.Errorf("the columns of ClusterSinks are %s", got[0])
	}
}

// table asks for objects as kubectl does, and returns the columns and some rows, without the age. Rows have the column Reason too, which kubectl shows with -o wide.
func (r *sinkRig) table(resource string, names ...string) []string {
	r.Helper()
	s := scheme(r.T)
	if err := metav1.AddMetaToScheme(s); err != nil {
		r.Fatal(err)
	}
	cfg := apiServer(r.T)
	cfg.GroupVersion, cfg.APIPath = &v1.GroupVersion, "/apis"
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(s).WithoutConversion()
	c, err := rest.RESTClientFor(cfg)
	if err != nil {
		r.Fatal(err)
	}
	request := c.Get().Resource(resource)
	if len(names) > 0 {
		request = request.Namespace(r.ns)
	}
	text, err := request.SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(r.Context()).Raw()
	if err != nil {
		r.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(text, &table); err != nil {
		r.Fatal(err)
	}
	var columns, age []string
	for _, c := range table.ColumnDefinitions {
		if c.Priority == 0 && c.Name != "Age" {
			columns = append(columns, c.Name)
		}
		age = append(age, c.Name)
	}
	lines := []string{strings.Join(columns, " ")}
	for _, name := range names {
		for _, row := range table.Rows {
			if row.Cells[0] != name {
				continue
			}
			var cells []string
			for i, cell := range row.Cells {
				if cell == nil {
					cell = ""
				}
				if age[i] != "Age" {
					cells = append(cells, fmt.Sprint(cell))
				}
			}
			lines = append(lines, strings.Join(cells, " "))
		}
	}
	return lines
}
