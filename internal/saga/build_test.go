package saga

import (
	"encoding/json"
	"testing"
	"time"
)

// t0 is when every test's saga starts.
var t0 = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// stepOption changes a step that a test builds.
type stepOption func(*Step)

func after(names ...string) stepOption { return func(s *Step) { s.DependsOn = names } }

func attempts(n int) stepOption { return func(s *Step) { s.Do.Retry.MaxAttempts = n } }

func with(settings string) stepOption {
	return func(s *Step) { s.Do.With = json.RawMessage(settings) }
}

func output(name, expr string) stepOption {
	return func(s *Step) { s.Output = map[string]string{name: expr} }
}

func undo() stepOption { return undoWith(`{}`, 3) }

func undoWith(settings string, attempts int) stepOption {
	return func(s *Step) {
		e := effect(settings)
		e.Retry.MaxAttempts = attempts
		s.Compensation = &e
	}
}

func effect(settings string) Effect {
	return Effect{
		Kind: "test", With: json.RawMessage(settings), AttemptTimeout: time.Second,
		Retry: Retry{MaxAttempts: 3, InitialBackoff: time.Second, MaxBackoff: 4 * time.Second},
	}
}

func step(name string, options ...stepOption) Step {
	s := Step{Name: name, Do: effect(`{}`)}
	for _, o := range options {
		o(&s)
	}
	return s
}

// history drives one saga through its decisions and keeps everything that was decided.
type history struct {
	t      testing.TB
	plan   *Plan
	state  State
	events []Event
	now    time.Time
	in     Input
}

func begin(t testing.TB, def Definition) *history {
	t.Helper()
	h := prepare(t, def)
	h.decide()
	return h
}

// prepare compiles a saga that has not started.
func prepare(t testing.TB, def Definition) *history {
	t.Helper()
	plan, errs := Compile(def)
	if len(errs) > 0 {
		t.Fatalf("the definition does not compile: %v", errs)
	}
	return &history{t: t, plan: plan, now: t0, in: Input{Start: &SagaStarted{
		UID: "11111111-2222-3333-4444-555555555555", Namespace: "shop", Name: "order", Definition: def, Input: json.RawMessage(`{"orderId":"42"}`),
	}}}
}

func (h *history) decide(outcomes ...Outcome) []Event {
	h.t.Helper()
	in := h.in
	in.Now, in.Random, in.Outcomes = h.now, 7, outcomes
	events, _ := h.plan.Decide(h.state, in)
	h.state = Fold(h.state, events...)
	h.events = append(h.events, events...)
	in.Outcomes, in.Lost = nil, nil
	if again, _ := h.plan.Decide(h.state, in); len(again) > 0 {
		h.t.Fatalf("deciding again with nothing new decided %v", types(again))
	}
	return events
}

// loses has another process go on, which has begun none of these attempts.
func (h *history) loses(lost ...Attempt) []Event {
	h.t.Helper()
	h.in.Lost = lost
	defer func() { h.in.Lost = nil }()
	return h.decide()
}

// inFlight returns the attempt of an effect that is under way.
func (h *history) inFlight(step string, dir Direction) Attempt {
	h.t.Helper()
	for _, a := range h.plan.InFlight(h.state) {
		if a.Step == step && a.Direction == dir {
			return a
		}
	}
	h.t.Fatalf("no attempt of the %s of %q is under way; these are: %v", dir, step, h.plan.InFlight(h.state))
	return Attempt{}
}

// ends ends the attempt of an effect that is under way. A no is the participant's own; see endsBy.
func (h *history) ends(step string, dir Direction, kind OutcomeKind) []Event {
	h.t.Helper()
	switch kind {
	case Rejected:
		return h.endsBy(step, dir, AuthorParticipant)
	case Unknown: // its time is over, and a response has come that says nothing
		if over := h.state.effect(EffectID{Step: step, Direction: dir}).SentAt.Add(h.plan.AttemptTimeout(h.inFlight(step, dir))); over.After(h.now) {
			h.now = over
		}
	default:
	}
	return h.decide(Outcome{Attempt: h.inFlight(step, dir), Kind: kind, Over: kind == Unknown, Reason: "Because", Message: "because " + step})
}

// endsBy rejects the attempt of an effect that is under way, by the word of an author.
func (h *history) endsBy(step string, dir Direction, author Author) []Event {
	h.t.Helper()
	return h.decide(Outcome{Attempt: h.inFlight(step, dir), Kind: Rejected, Author: author, Reason: "Because", Message: "because " + step})
}

// accepts says that a participant has taken the attempt of an effect that is under way, and will answer within a minute.
func (h *history) accepts(step string, dir Direction) []Event {
	h.t.Helper()
	return h.decide(Outcome{Attempt: h.inFlight(step, dir), Accepted: true, AnswerWithin: time.Minute})
}

// answers says what an attempt came to that was accepted.
func (h *history) answers(step string, dir Direction, kind OutcomeKind) []Event {
	h.t.Helper()
	id := EffectID{Step: step, Direction: dir}
	a := Attempt{EffectID: id, Number: h.state.effect(id).Attempts}
	o := Outcome{Attempt: a, Kind: kind, Reply: true, Reason: "Because", Message: "because " + step}
	if kind == Rejected {
		o.Author = AuthorParticipant
	}
	return h.decide(o)
}

// wake moves time to when the saga wants to be looked at again.
func (h *history) wake() []Event {
	h.t.Helper()
	w := h.plan.Wake(h.state)
	if w.IsZero() {
		h.t.Fatal("the saga does not want to be woken")
	}
	h.now = w
	return h.decide()
}

func (h *history) phaseIs(want Phase) {
	h.t.Helper()
	if h.state.Phase != want {
		h.t.Fatalf("the saga is %s, want %s; events: %v", h.state.Phase, want, types(h.events))
	}
}

func (h *history) inFlightAre(want ...string) {
	h.t.Helper()
	var got []string
	for _, a := range h.plan.InFlight(h.state) {
		got = append(got, a.Step+"/"+string(a.Direction))
	}
	if len(got) != len(want) {
		h.t.Fatalf("under way are %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			h.t.Fatalf("under way are %v, want %v", got, want)
		}
	}
}

func types(events []Event) []string {
	names := make([]string, len(events))
	for i, e := range events {
		names[i] = e.EventType()
	}
	return names
}
