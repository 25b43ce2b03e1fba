package message

import (
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// TestDecodeBuildsNoTree is not parallel: it counts the allocations of the process.
func TestDecodeBuildsNoTree(t *testing.T) {
	values := strings.Repeat("{},", 300_000) + "{}"
	structured := func(name string) outbox.Incoming {
		return outbox.Incoming{Headers: map[string]string{"content-type": "application/cloudevents+json"}, Body: []byte(
			`{"specversion":"1.0","id":"a","type":"t","source":"/s","correlationid":"` + uid + `/charge/action","sagarejected":"true","` + name + `":[` + values + `]}`)}
	}
	for what, in := range map[string]outbox.Incoming{
		"an array": incoming(nil, "["+values+"]"), "a rejection": incoming(map[string]string{"ce-sagarejected": "true"}, `{"reason":[`+values+`]}`),
		"a structured event": structured("data"), "an attribute": structured("extra"),
	} {
		const most = 2_000 // the values are 300,000
		if n := testing.AllocsPerRun(1, func() { _, _, _ = decode(in) }); n > most {
			t.Errorf("%s: %.0f allocations, want at most %d", what, n, most)
		}
	}
}

// TestDecodeRefusesBeyondLimits is not parallel: it counts the allocations of the process.
func TestDecodeRefusesBeyondLimits(t *testing.T) {
	many := map[string]string{}
	for i := range 200 {
		many["ce-a"+strings.Repeat("x", i)] = "1"
	}
	structured := func(body string) outbox.Incoming {
		return outbox.Incoming{Headers: map[string]string{"content-type": "application/cloudevents+json"}, Body: []byte(body)}
	}
	for message, in := range map[string]outbox.Incoming{
		"its body is":     structured(`{"data":"` + strings.Repeat("x", outbox.MaxIncomingBytes) + `"}`),
		"headers, and":    incoming(many, `{}`),
		"headers are":     incoming(map[string]string{"ce-a": strings.Repeat("x", 64<<10)}, `{}`),
		"attributes":      structured(`{` + strings.Repeat(`"a":1,`, 200_000) + `"b":1}`),
		`"extra" is not`:  structured(`{"extra":{}}`),
		"not a JSON":      structured(`[]`),
		`"id" twice`:      incoming(map[string]string{"ce_id": "other"}, `{}`),
		"structured mode": structured(`{"a":`),
	} {
		_, _, err := decode(in)
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%v, want %q", err, message)
		}
		if n := testing.AllocsPerRun(1, func() { _, _, _ = decode(in) }); n > 1_000 {
			t.Errorf("%s: %.0f allocations to refuse it", message, n)
		}
	}
}

func TestDecodeKeepsDataAsSent(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		` {"n": 12345678901234567890, "a": "<"} `: `{"n":12345678901234567890,"a":"\u003c"}`,
		"{\"a\": \"\xff\"}":                       `{"a":"\uFFFD"}`,
		"\xff":                                    `"\uFFFD"`,
		"  ":                                      `null`,
	} {
		a, _, err := decode(incoming(nil, body))
		if err != nil || !strings.Contains(strings.ReplaceAll(string(a.Response), "\uFFFD", `\uFFFD`), `"body":`+want) {
			t.Errorf("%q: %s, %v, want %s", body, a.Response, err, want)
		}
	}
	reason := strings.Repeat("x", 2*eventstore.MaxAnswerTextBytes)
	for body, want := range map[string]string{`{"reason":"Declined"}`: "Declined", `{"reason":1}`: "Rejected", `[]`: "Rejected", `"x"`: "Rejected",
		`{"Reason":"x"}`: "Rejected", `{"reason":"` + reason + `"}`: reason[:eventstore.MaxAnswerTextBytes]} {
		if a, _, err := decode(incoming(map[string]string{"ce-sagarejected": "true"}, body)); err != nil || a.Reason != want {
			t.Errorf("%.40q: %.40q, %v, want %.40q", body, a.Reason, err, want)
		}
	}
}
