// Package engine drives sagas: it loads what is committed, lets internal/saga decide, appends the decision, and runs the difference between the
// attempts that should be under way and those that are. Outcomes come back beside the saga and its key is queued again. It knows no
// Kubernetes: whoever has keys to advance and a queue to put them into can use it. Start reading at Engine.Advance.
package engine
