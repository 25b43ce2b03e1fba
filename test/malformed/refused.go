package malformed

import (
	"fmt"
	"strings"
)

// Refused are the manifests that the API server refuses.
func Refused() []Case {
	var all []Case
	for _, group := range [][]Case{refusedShape(), refusedSteps(), refusedDurations(), refusedHTTP(), refusedValues()} {
		all = append(all, group...)
	}
	return all
}

func refused(name string, change Edit, texts ...string) Case {
	return Case{Name: name, edits: edits(change), Refused: texts}
}

// refusedShape: what is missing, what is unknown, what is of another type.
func refusedShape() []Case {
	return []Case{
		refused("no-spec", remove("spec"), "spec"),
		refused("empty-spec", set("spec", map[string]any{}), "spec.steps", "Required value"),
		refused("no-steps", remove("spec.steps"), "spec.steps", "Required value"),
		refused("empty-steps", set("spec.steps", []any{}), "spec.steps", "at least 1"),
		refused("null-steps", set("spec.steps", nil), "spec.steps"),
		refused("steps-as-a-map", set("spec.steps", map[string]any{"reserve": map[string]any{}}), "spec.steps"),
		refused("a-step-as-a-text", set("spec.steps.0", "reserve"), "spec.steps[0]"),
		refused("unknown-field-in-spec", set("spec.timeout", "5m"), "unknown field", "spec.timeout"),
		refused("unknown-field-in-step", set("spec.steps.0.dependson", []any{}), "unknown field", "spec.steps[0].dependson"),
		refused("unknown-field-in-http", set("spec.steps.0.http.uri", "http://x/"), "unknown field", "spec.steps[0].http.uri"),
		refused("unknown-field-in-compensation", set("spec.steps.0.compensation.output", map[string]any{"a": "b"}), "unknown field", "spec.steps[0].compensation.output"),
		refused("unknown-field-in-retry", set("spec.steps.1.retry.backoff", "1s"), "unknown field", "spec.steps[1].retry.backoff"),
		refused("input-as-a-text", set("spec.input", "1042"), "spec.input", "object"),
		refused("input-as-a-list", set("spec.input", []any{"1042"}), "spec.input", "object"),
		refused("suspend-as-a-text", set("spec.suspend", "yes"), "spec.suspend", "boolean"),
		refused("cancel-as-a-number", set("spec.cancel", int64(1)), "spec.cancel", "boolean"),
		{Name: "a-field-given-twice", Refused: []string{`key "deadline" already set`}, raw: duplicated},
		{Name: "an-unknown-version", Refused: []string{"v9"}, edits: edits(set("apiVersion", "saga.vextrus.io/v9"))},
		refused("a-name-that-is-no-name", set("metadata.name", "Order_1042"), "metadata.name", "lowercase RFC 1123"),
	}
}

// duplicated gives a field twice, which an object cannot. Its fault is found before it is a Saga, so that the field comes without a path.
const duplicated = `
apiVersion: saga.vextrus.io/v1
kind: Saga
metadata: {name: a-field-given-twice}
spec:
  deadline: 10m
  deadline: 20m
  steps:
  - name: ship
    http: {method: POST, url: "http://shipping/labels"}
`

func refusedSteps() []Case {
	return []Case{
		refused("a-step-without-a-name", remove("spec.steps.1.name"), "spec.steps[1].name", "Required value"),
		refused("an-empty-step-name", set("spec.steps.1.name", ""), "spec.steps[1].name"),
		refused("a-step-name-in-capitals", set("spec.steps.1.name", "Charge"), "spec.steps[1].name"),
		refused("a-step-name-with-a-dot", set("spec.steps.1.name", "charge.card"), "spec.steps[1].name"),
		refused("a-step-name-that-ends-in-a-hyphen", set("spec.steps.1.name", "charge-"), "spec.steps[1].name"),
		refused("a-step-name-with-a-slash", set("spec.steps.1.name", "charge/action"), "spec.steps[1].name"),
		refused("a-step-name-of-64-characters", set("spec.steps.1.name", strings.Repeat("a", 64)), "spec.steps[1].name", "63"),
		refused("a-step-name-with-a-line-break", set("spec.steps.1.name", "charge\n"), "spec.steps[1].name"),
		refused("two-steps-of-one-name", set("spec.steps.1.name", "reserve"), "spec.steps[1]", "Duplicate value"),
		refused("201-steps", set("spec.steps", many(201)), "spec.steps", "200"),
		refused("a-step-that-depends-on-itself", set("spec.steps.1.dependsOn", []any{"charge"}), "spec.steps[1].dependsOn", "itself"),
		refused("a-dependency-that-does-not-exist", set("spec.steps.1.dependsOn", []any{"reserv"}), "spec.steps", "dependsOn names a step that does not exist"),
		refused("a-dependency-named-twice", set("spec.steps.2.dependsOn", []any{"reserve", "reserve"}), "spec.steps[2].dependsOn[1]", "Duplicate value"),
		refused("an-empty-dependency", set("spec.steps.1.dependsOn", []any{""}), "spec.steps[1].dependsOn[0]"),
		refused("dependencies-as-a-text", set("spec.steps.1.dependsOn", "reserve"), "spec.steps[1].dependsOn", "array"),
		refused("33-dependencies", dependOn(33), "spec.steps[33].dependsOn", "32"),
		refused("a-step-without-an-action", remove("spec.steps.2.http"), "spec.steps[2]", "exactly one kind of action"),
		refused("a-compensation-without-an-action", set("spec.steps.0.compensation", map[string]any{}), "spec.steps[0].compensation", "exactly one kind of action"),
		refused("a-step-with-two-kinds-of-action", set("spec.steps.2.message", message()), "spec.steps[2]", "exactly one kind of action"),
		refused("a-message-without-a-sink", publish("sink", nil), "spec.steps[2].message.sink", "Required value"),
		refused("a-message-to-another-namespace", publish("sink", "bank/events"), "spec.steps[2].message.sink"),
		refused("a-message-of-the-operators-own-type", publish("type", "io.vextrus.saga.Completed"), "spec.steps[2].message.type", "the operator's own"),
		refused("a-message-with-a-namespace", publish("namespace", "bank"), "spec.steps[2].message.namespace"),
		refused("a-reply-without-a-timeout", publish("reply", map[string]any{}), "spec.steps[2].message.reply.timeout", "Required value"),
		refused("a-reply-after-a-month-and-a-day", publish("reply", map[string]any{"timeout": "744h"}), "spec.steps[2].message.reply.timeout", "720h"),
		refused("an-unknown-kind-of-action", set("spec.steps.2", map[string]any{"name": "ship", "grpc": map[string]any{}}), "spec.steps[2].grpc"),
	}
}

// message is an action that publishes.
func message() map[string]any { return map[string]any{"sink": "events", "type": "com.example.shipped"} }

// publish makes the last step one that publishes, with one field set to something, or left out.
func publish(field string, value any) Edit {
	m := message()
	if m[field] = value; value == nil {
		delete(m, field)
	}
	return set("spec.steps.2", map[string]any{"name": "ship", "message": m})
}

// many returns so many small valid steps.
func many(n int) []any {
	steps := make([]any, n)
	for i := range steps {
		steps[i] = map[string]any{"name": fmt.Sprintf("s%d", i), "http": map[string]any{"method": "POST", "url": "http://x/"}}
	}
	return steps
}

// dependOn has one more step than so many, which depends on all others.
func dependOn(n int) Edit {
	steps, names := many(n+1), make([]any, n)
	for i := range names {
		names[i] = fmt.Sprintf("s%d", i)
	}
	steps[n].(map[string]any)["dependsOn"] = names
	return set("spec.steps", steps)
}

func refusedDurations() []Case {
	return []Case{
		refused("a-deadline-without-a-unit", set("spec.deadline", "10"), "spec.deadline"),
		refused("a-deadline-as-a-number", set("spec.deadline", int64(10)), "spec.deadline", "must be of type duration"),
		refused("a-deadline-in-days", set("spec.deadline", "2d"), "spec.deadline"),
		refused("a-deadline-in-words", set("spec.deadline", "10 minutes"), "spec.deadline"),
		refused("an-empty-deadline", set("spec.deadline", ""), "spec.deadline"),
		refused("a-negative-deadline", set("spec.deadline", "-10m"), "spec.deadline"),
		refused("a-deadline-of-nothing", set("spec.deadline", "0s"), "spec.deadline", "more than 0s"),
		refused("a-deadline-of-31-days", set("spec.deadline", "744h"), "spec.deadline", "at most 720h"),
		refused("a-deadline-that-overflows", set("spec.deadline", "9999999999h"), "spec.deadline"),
		refused("a-ttl-of-two-years", set("spec.ttlAfterFinished", "17520h"), "spec.ttlAfterFinished", "at most 8760h"),
		refused("a-negative-ttl", set("spec.ttlAfterFinished", "-1s"), "spec.ttlAfterFinished"),
		refused("an-attempt-timeout-of-two-hours", set("spec.steps.1.attemptTimeout", "2h"), "spec.steps[1].attemptTimeout", "between 1ms and 1h"),
		refused("an-attempt-timeout-of-nothing", set("spec.steps.1.attemptTimeout", "0s"), "spec.steps[1].attemptTimeout", "between 1ms and 1h"),
		refused("an-attempt-timeout-in-microseconds", set("spec.steps.1.attemptTimeout", "50us"), "spec.steps[1].attemptTimeout"),
		refused("no-attempts", set("spec.steps.1.retry.maxAttempts", int64(0)), "spec.steps[1].retry.maxAttempts", "greater than or equal to 1"),
		refused("101-attempts", set("spec.steps.1.retry.maxAttempts", int64(101)), "spec.steps[1].retry.maxAttempts", "less than or equal to 100"),
		refused("half-an-attempt", set("spec.steps.1.retry.maxAttempts", 1.5), "spec.steps[1].retry.maxAttempts", "integer"),
		refused("a-backoff-of-two-days", set("spec.steps.1.retry.maxBackoff", "48h"), "spec.steps[1].retry.maxBackoff", "at most 24h"),
		refused("a-backoff-that-shrinks", set("spec.steps.1.retry.initialBackoff", "2m"), "spec.steps[1].retry.maxBackoff", "maxBackoff must not be shorter than initialBackoff"),
		refused("101-attempts-of-a-compensation", set("spec.steps.1.compensation.retry.maxAttempts", int64(101)), "spec.steps[1].compensation.retry.maxAttempts"),
	}
}

func refusedHTTP() []Case {
	headers := map[string]any{}
	for i := range 33 {
		headers[fmt.Sprintf("X-%d", i)] = "1"
	}
	return []Case{
		refused("no-method", remove("spec.steps.0.http.method"), "spec.steps[0].http.method", "Required value"),
		refused("a-method-in-small-letters", set("spec.steps.0.http.method", "post"), "spec.steps[0].http.method", "Unsupported value"),
		refused("the-method-connect", set("spec.steps.0.http.method", "CONNECT"), "spec.steps[0].http.method", "Unsupported value"),
		refused("no-url", remove("spec.steps.0.http.url"), "spec.steps[0].http.url", "Required value"),
		refused("an-empty-url", set("spec.steps.0.http.url", ""), "spec.steps[0].http.url"),
		refused("a-url-without-a-scheme", set("spec.steps.0.http.url", "inventory/reservations"), "spec.steps[0].http.url"),
		refused("a-url-of-a-file", set("spec.steps.0.http.url", "file:///etc/passwd"), "spec.steps[0].http.url"),
		refused("a-url-of-2049-characters", set("spec.steps.0.http.url", "http://x/"+strings.Repeat("a", 2040)), "spec.steps[0].http.url", "2048"),
		refused("a-compensation-url-without-a-scheme", set("spec.steps.0.compensation.http.url", "/x"), "spec.steps[0].compensation.http.url"),
		refused("a-header-as-a-number", set("spec.steps.1.http.headers.X-Count", int64(1)), "spec.steps[1].http.headers.X-Count", "string"),
		refused("a-header-name-with-a-space", set("spec.steps.1.http.headers.X Order", "1"), "spec.steps[1].http.headers", "the name of a header"),
		refused("an-empty-header-name", set("spec.steps.1.http.headers", map[string]any{"": "1"}), "spec.steps[1].http.headers", "the name of a header"),
		refused("33-headers", set("spec.steps.1.http.headers", headers), "spec.steps[1].http.headers", "32"),
		refused("a-header-of-4097-characters", set("spec.steps.1.http.headers.X-Long", strings.Repeat("a", 4097)), "spec.steps[1].http.headers.X-Long", "4096"),
	}
}

func refusedValues() []Case {
	outputs, input := map[string]any{}, map[string]any{}
	for i := range 65 {
		outputs[fmt.Sprintf("o%d", i)] = "x"
	}
	for i := range 257 {
		input[fmt.Sprintf("i%d", i)] = "x"
	}
	return []Case{
		refused("an-output-name-with-a-hyphen", set("spec.steps.0.output.order-id", "${response.body.id}"), "spec.steps[0].output", "the name of an output"),
		refused("an-output-name-that-begins-with-a-digit", set("spec.steps.0.output.1st", "${response.body.id}"), "spec.steps[0].output", "the name of an output"),
		refused("an-output-as-an-object", set("spec.steps.0.output.id", map[string]any{"a": "b"}), "spec.steps[0].output.id"),
		refused("65-outputs", set("spec.steps.0.output", outputs), "spec.steps[0].output", "64"),
		refused("an-output-of-8193-characters", set("spec.steps.0.output.long", strings.Repeat("a", 8193)), "spec.steps[0].output.long", "8192"),
		refused("257-fields-of-input", set("spec.input", input), "spec.input", "256"),
	}
}
