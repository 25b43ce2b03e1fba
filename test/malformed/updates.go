package malformed

// Updates are changes to sagas that exist: everything but suspend, cancel and ttlAfterFinished is frozen.
func Updates() []Update {
	const frozen = "cannot be changed after creation"
	return []Update{
		update("another-url", set("spec.steps.0.http.url", "http://elsewhere/"), "spec.steps", frozen),
		update("another-body", set("spec.steps.0.http.body.order", "1043"), "spec.steps", frozen),
		update("another-body-of-another-type", set("spec.steps.0.http.body", []any{}), "spec.steps", frozen),
		update("another-compensation-body", set("spec.steps.1.compensation.http.body.order", "1043"), "spec.steps", frozen),
		update("a-removed-compensation", remove("spec.steps.0.compensation"), "spec.steps", frozen),
		update("another-order-of-steps", swap, "spec.steps", frozen),
		update("a-renamed-step", set("spec.steps.2.name", "deliver"), "spec.steps", frozen),
		update("a-removed-step", shorten, "spec.steps", frozen),
		update("removed-steps", remove("spec.steps"), "spec.steps"),
		update("an-added-dependency", set("spec.steps.2.dependsOn", []any{"reserve"}), "spec.steps", frozen),
		update("more-attempts", set("spec.steps.1.retry.maxAttempts", int64(50)), "spec.steps", frozen),
		update("another-output", set("spec.steps.0.output.reservation", "${response.body.number}"), "spec.steps", frozen),
		update("another-input", set("spec.input.orderId", "1043"), "spec.input", frozen),
		update("another-field-of-input", set("spec.input.total.currency", "USD"), "spec.input", frozen),
		update("a-removed-input", remove("spec.input"), "spec.input", frozen),
		update("a-longer-deadline", set("spec.deadline", "20m"), "spec.deadline", frozen),
		update("a-removed-deadline", remove("spec.deadline"), "spec.deadline", frozen),
		{Name: "an-added-deadline", created: edits(remove("spec.deadline")), changed: edits(set("spec.deadline", "1h")), Refused: []string{"spec.deadline", frozen}},
		{Name: "an-added-input", created: edits(remove("spec.input")), changed: edits(set("spec.input", map[string]any{"a": "b"})), Refused: []string{"spec.input", frozen}},
		{Name: "a-cancel-taken-back", created: edits(set("spec.cancel", true)), changed: edits(set("spec.cancel", false)), Refused: []string{"spec.cancel", "cannot be taken back"}},
		{Name: "a-cancel-removed", created: edits(set("spec.cancel", true)), changed: edits(remove("spec.cancel")), Refused: []string{"spec.cancel", "cannot be taken back"}},

		update("a-cancel", set("spec.cancel", true)),
		update("a-suspend", set("spec.suspend", true)),
		{Name: "a-resume", created: edits(set("spec.suspend", true)), changed: edits(set("spec.suspend", false))},
		update("an-added-ttl", set("spec.ttlAfterFinished", "1h")),
		{Name: "a-longer-ttl", created: edits(set("spec.ttlAfterFinished", "1h")), changed: edits(set("spec.ttlAfterFinished", "2h"))},
		{Name: "a-removed-ttl", created: edits(set("spec.ttlAfterFinished", "1h")), changed: edits(remove("spec.ttlAfterFinished"))},
		update("an-added-label", set("metadata.labels.team", "shop")),
		// The same durations in other words, which is what a typed client writes back.
		{Name: "durations-in-other-words", changed: edits(set("spec.deadline", "10m0s"), set("spec.steps.1.retry.maxBackoff", "1m0s"))},
	}
}

func update(name string, change Edit, texts ...string) Update {
	return Update{Name: name, changed: edits(change), Refused: texts}
}
