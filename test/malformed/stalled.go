package malformed

import (
	"fmt"
	"strings"
)

// Stalled are the manifests that the API server accepts, because a schema cannot say what is wrong with them, and that the operator parks.
func Stalled() []Case {
	var all []Case
	for _, group := range [][]Case{stalledGraphs(), stalledExpressions(), stalledReads(), stalledHTTP(), stalledSizes()} {
		all = append(all, group...)
	}
	return all
}

func stalled(name string, change Edit, texts ...string) Case {
	return Case{Name: name, edits: edits(change), Stalled: texts}
}

func stalledGraphs() []Case {
	return []Case{
		stalled("a-circle-of-two", set("spec.steps.0.dependsOn", []any{"charge"}), "spec.steps[0].dependsOn", "circle", "reserve → charge → reserve"),
		stalled("a-circle-of-three", set("spec.steps.0.dependsOn", []any{"ship"}), "dependsOn", "circle"),
		{Name: "a-circle-that-not-all-are-part-of", Stalled: []string{"dependsOn", "circle", "charge → ship → charge"},
			edits: edits(set("spec.steps.1.dependsOn", []any{"reserve", "ship"}), set("spec.steps.2.dependsOn", []any{"charge"}))},
		{Name: "a-dependency-that-does-not-exist-among-100-steps", Stalled: []string{"spec.steps[99].dependsOn[0]", `"s100"`},
			edits: edits(set("spec.steps", many(100)), set("spec.steps.99.dependsOn", []any{"s100"}))},
	}
}

func stalledExpressions() []Case {
	const url, body = "spec.steps.0.http.url", "spec.steps.0.http.body"
	return []Case{
		stalled("an-expression-that-does-not-parse", set(url, "http://inventory/${input.}"), "spec.steps[0].http.url"),
		stalled("an-expression-that-is-not-closed", set(url, "http://inventory/${input.orderId"), "spec.steps[0].http.url"),
		stalled("an-empty-expression", set(url, "http://inventory/${}"), "spec.steps[0].http.url"),
		stalled("an-unknown-variable", set(url, "http://inventory/${order.id}"), "spec.steps[0].http.url", "order"),
		stalled("an-unknown-function", set(body, map[string]any{"at": "${now()}"}), "spec.steps[0].http.body.at", "now"),
		stalled("the-answer-in-an-action", set(body, map[string]any{"id": "${response.body.id}"}), "spec.steps[0].http.body.id", "response"),
		stalled("the-answer-in-a-compensation", set("spec.steps.0.compensation.http.url", "http://inventory/${response.body.id}"), "spec.steps[0].compensation.http.url", "response"),
		stalled("a-bad-expression-deep-in-a-body", set(body, map[string]any{"lines": []any{map[string]any{"sku": "${1 +}"}}}), "spec.steps[0].http.body.lines[0].sku"),
		stalled("a-bad-expression-in-a-header", set("spec.steps.1.http.headers.X-Order", "${input.orderId +}"), "spec.steps[1].http.headers.X-Order"),
		stalled("a-bad-expression-in-an-output", set("spec.steps.0.output.reservation", "${response.body.[0]}"), "spec.steps[0].output.reservation"),
		stalled("a-bad-expression-in-a-compensation", set("spec.steps.1.compensation.http.body.order", "${'a}"), "spec.steps[1].compensation.http.body.order"),
		stalled("types-that-do-not-fit", set(body, map[string]any{"n": "${1 + 'a'}"}), "spec.steps[0].http.body.n"),
		stalled("an-expression-of-5000-characters", set(body, map[string]any{"n": "${" + strings.Repeat("1+", 2500) + "1}"}), "spec.steps[0].http.body.n", "4096"),
		stalled("a-step-name-that-is-computed", set("spec.steps.2.http.body.charge", "${steps[input.orderId].output.charge}"), "spec.steps[2].http.body.charge"),
	}
}

func stalledReads() []Case {
	return []Case{
		stalled("reading-a-step-that-does-not-exist", set("spec.steps.2.http.body.charge", "${steps.pay.output.charge}"), "spec.steps[2].http", `"pay"`),
		stalled("reading-a-later-step", set("spec.steps.0.http.body.charge", "${steps.charge.output.charge}"), "spec.steps[0].http", "charge"),
		stalled("reading-the-step-itself", set("spec.steps.1.http.body.charge", "${steps.charge.output.charge}"), "spec.steps[1].http", "charge"),
		{Name: "reading-a-step-beside-it", Stalled: []string{"spec.steps[2].http", "charge"}, edits: edits(set("spec.steps.2.dependsOn", []any{"reserve"}))},
		stalled("a-compensation-that-reads-a-later-step", set("spec.steps.0.compensation.http.body", map[string]any{"charge": "${steps.charge.output.charge}"}), "spec.steps[0].compensation.http", "charge"),
		stalled("an-output-that-reads-a-later-step", set("spec.steps.0.output.charge", "${steps.charge.output.charge}"), "spec.steps[0].output", "charge"),
	}
}

func stalledHTTP() []Case {
	const url = "spec.steps.0.http.url"
	return []Case{
		stalled("a-url-without-a-host", set(url, "http:///reservations"), "spec.steps[0].http.url", "host"),
		stalled("a-url-with-a-password", set(url, "http://user:secret@inventory/"), "spec.steps[0].http.url", "password"),
		stalled("a-url-with-a-fragment", set(url, "http://inventory/#top"), "spec.steps[0].http.url", "fragment"),
		stalled("a-url-with-a-space", set(url, "http://inventory/a b"), "spec.steps[0].http.url", "percent-encoded"),
		stalled("a-url-with-a-bad-port", set(url, "http://inventory:99999/"), "spec.steps[0].http.url", "port"),
		stalled("a-url-with-dot-segments", set(url, "http://inventory/a/../b"), "spec.steps[0].http.url", "dot segment"),
		stalled("a-body-with-get", set("spec.steps.0.http.method", "GET"), "spec.steps[0].http.body", "GET"),
		stalled("the-host-header", set("spec.steps.1.http.headers.Host", "evil"), "spec.steps[1].http.headers.Host"),
		stalled("the-idempotency-key-header", set("spec.steps.1.http.headers.idempotency-key", "mine"), "spec.steps[1].http.headers.idempotency-key"),
		stalled("a-header-with-a-line-break", set("spec.steps.1.http.headers.X-Order", "1\r\nX-Evil: 1"), "spec.steps[1].http.headers.X-Order", "control character"),
		stalled("one-header-in-two-spellings", set("spec.steps.1.http.headers", map[string]any{"X-Order": "1", "x-order": "2"}), "spec.steps[1].http.headers.x-order", "same header"),
		stalled("a-content-type-that-is-not-json", set("spec.steps.1.http.headers.Content-Type", "text/plain"), "spec.steps[1].http.headers.Content-Type"),
	}
}

func stalledSizes() []Case {
	large := many(200)
	for i := range large {
		large[i].(map[string]any)["http"].(map[string]any)["body"] = strings.Repeat("x", 1400)
	}
	return []Case{
		stalled("a-body-40-levels-deep", set("spec.steps.0.http.body", nested(40)), "spec.steps[0].http", "deep"),
		stalled("an-input-40-levels-deep", set("spec.input", nested(40)), "spec.input", "deep"),
		stalled("an-input-of-65-kib", set("spec.input", map[string]any{"text": strings.Repeat("x", 65<<10)}), "spec.input", "65536"),
		stalled("a-spec-of-280-kib", set("spec.steps", large), "spec", "262144"),
		{Name: "three-faults-at-once", Stalled: []string{"spec.steps[0].http.url", "spec.steps[1].http.headers.Host", "spec.steps[2].http.body.charge"}, edits: edits(
			set("spec.steps.0.http.url", "http://inventory/${}"), set("spec.steps.1.http.headers.Host", "evil"), set("spec.steps.2.http.body.charge", fmt.Sprint("${", "}")))},
	}
}

func nested(depth int) map[string]any {
	inner := map[string]any{}
	for range depth - 1 {
		inner = map[string]any{"a": inner}
	}
	return inner
}
