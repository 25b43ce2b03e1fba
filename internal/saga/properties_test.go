package saga

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// world is the truth that a saga can only learn through outcomes: which effects have really happened. Its participants are idempotent by key.
type world struct {
	happened map[string]bool
}

// carryOut draws what an attempt comes to, in keeping with the truth: a participant that has done something never vouches for a no to the same key, but something before it may say no
// whatever has happened.
func (w *world) carryOut(t *rapid.T, uid string, a Attempt) Outcome {
	if rapid.IntRange(0, 4).Draw(t, "accepted") == 0 {
		return Outcome{Attempt: a, Accepted: true, AnswerWithin: time.Duration(rapid.IntRange(0, 3000).Draw(t, "within")) * time.Millisecond}
	}
	return w.answer(t, uid, a)
}

// answer draws the end of an attempt.
func (w *world) answer(t *rapid.T, uid string, a Attempt) Outcome {
	key := a.Key(uid)
	o := Outcome{Attempt: a, Kind: rapid.SampledFrom([]OutcomeKind{Succeeded, Succeeded, Succeeded, Retryable, Unknown, Rejected}).Draw(t, "outcome"), Reason: "R", Message: "m"}
	if o.Kind == Rejected {
		authors := []Author{AuthorUnknown, AuthorGateway, AuthorOperator, AuthorParticipant}
		if w.happened[key] {
			authors = authors[:3]
		}
		o.Author = rapid.SampledFrom(authors).Draw(t, "author")
	}
	if o.Kind == Succeeded || o.Kind == Unknown && rapid.Bool().Draw(t, "happened all the same") {
		w.happened[key] = true
	}
	return o
}

func drawDefinition(t *rapid.T) Definition {
	n := rapid.IntRange(1, 7).Draw(t, "steps")
	def := Definition{Steps: make([]Step, n)}
	if rapid.Bool().Draw(t, "has a deadline") {
		def.Deadline = time.Duration(rapid.IntRange(1, 20).Draw(t, "deadline")) * time.Second
	}
	for i := range n {
		s := step(fmt.Sprintf("s%d", i), attempts(rapid.IntRange(1, 3).Draw(t, "attempts")))
		for k := range i {
			if rapid.Bool().Draw(t, "depends") {
				s.DependsOn = append(s.DependsOn, fmt.Sprintf("s%d", k))
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "has a compensation") > 0 {
			undoWith(`{}`, rapid.IntRange(1, 3).Draw(t, "undo attempts"))(&s)
		}
		def.Steps[i] = s
	}
	// The order of writing means nothing: shuffle it.
	return Definition{Deadline: def.Deadline, Steps: rapid.Permutation(def.Steps).Draw(t, "order")}
}

// simulation drives one generated saga through generated outcomes, user's wishes, passing time and crashes.
type simulation struct {
	t      *rapid.T
	world  world
	plan   *Plan
	state  State
	events []Event
	in     Input
	// lost are the attempts that another process has started, and this one does not know of yet.
	lost []Attempt
	// skipped are the steps that a person has decided not to undo.
	skipped map[string]bool
}

// person decides about a parked saga, for one step that has failed or for all.
func (s *simulation) person() {
	d := Decision{Verdict: rapid.SampledFrom(Verdicts).Draw(s.t, "verdict"), By: "ann"}
	if rapid.Bool().Draw(s.t, "one step") {
		d.Step = rapid.SampledFrom(s.state.Steps).Draw(s.t, "decided step").Name
	}
	e, _, err := Decided(s.state, d, s.in.Now)
	if err != nil {
		return
	}
	for _, step := range s.state.Steps {
		if (d.Step == "" || d.Step == step.Name) && step.Compensation.FailedForGood() {
			switch d.Verdict {
			case MarkedCompensated:
				s.world.happened["u/"+step.Name+"/compensation"] = true
			case Skipped:
				s.skipped[step.Name] = true
			}
		}
	}
	s.state = Fold(s.state, e)
	s.events = append(s.events, e)
	s.decide()
}

// checkRow checks that replies are judged by the saga's row as they are by the whole state.
func (s *simulation) checkRow(state State) {
	data, err := json.Marshal(state.ForRow())
	if err != nil {
		s.t.Fatal(err)
	}
	row, err := UnmarshalState(data)
	if err != nil {
		s.t.Fatal(err)
	}
	for id := range state.effects {
		round, expected := state.Expects(id)
		if r, e := row.Expects(id); r != round || e != expected {
			s.t.Fatalf("of %s the row says round %d, %t and the state round %d, %t", id, r, e, round, expected)
		}
	}
}

func (s *simulation) decide(outcomes ...Outcome) {
	s.in.Outcomes, s.in.Lost, s.in.Random = outcomes, s.lost, rapid.Uint64().Draw(s.t, "random")
	events, next := s.plan.Decide(s.state, s.in)
	if folded := Fold(s.state, events...); !reflect.DeepEqual(folded, next) {
		s.t.Fatalf("the state that %v lead to is not their fold:\n%+v\n%+v", types(events), next, folded)
	}
	s.checkRow(next)
	s.in.Outcomes, s.in.Lost = nil, nil
	s.state = Fold(s.state, events...)
	s.events = append(s.events, events...)
	if !s.state.Suspended { // the process has sent them again
		s.lost = nil
	}
	if again, _ := s.plan.Decide(s.state, s.in); len(again) > 0 {
		s.t.Fatalf("deciding again with nothing new decided %v", types(again))
	}
}

// crash ends the process that sends attempts, and has another one go on. What the first has sent may have happened, and nobody knows.
func (s *simulation) crash() {
	s.fold()
	lost := s.plan.InFlight(s.state)
	for _, a := range lost {
		if rapid.Bool().Draw(s.t, "happened before the crash") {
			s.world.happened[a.Key(s.state.UID)] = true
		}
	}
	s.lost = lost
	s.decide()
}

// fold forgets everything but what is stored.
func (s *simulation) fold() {
	var events []Event
	for _, e := range s.events {
		typ, schema, data, err := Marshal(e)
		if err != nil {
			s.t.Fatal(err)
		}
		stored, err := Unmarshal(typ, schema, data)
		if err != nil {
			s.t.Fatal(err)
		}
		events = append(events, stored)
	}
	again := Fold(State{}, events...)
	if diff := cmp.Diff(s.state, again); diff != "" {
		s.t.Fatalf("the stored events fold to another state (-held +folded):\n%s", diff)
	}
	if diff := cmp.Diff(s.plan.InFlight(s.state), s.plan.InFlight(again)); diff != "" {
		s.t.Fatalf("after a crash other attempts are in flight:\n%s", diff)
	}
	s.state = again
}

func (s *simulation) act() {
	inFlight := s.plan.InFlight(s.state)
	switch rapid.IntRange(0, 14).Draw(s.t, "act") {
	case 0:
		s.in.Suspend = !s.in.Suspend
		s.decide()
	case 1:
		if rapid.IntRange(0, 3).Draw(s.t, "really") == 0 {
			s.in.Cancel = true
		}
		s.decide()
	case 2:
		if rapid.IntRange(0, 3).Draw(s.t, "really") == 0 {
			s.in.Delete = true
		}
		s.decide()
	case 3:
		s.in.Now = s.in.Now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(s.t, "ms")) * time.Millisecond)
		s.decide()
	case 4:
		s.crash()
	case 5:
		if waiting := accepted(&s.state); len(waiting) > 0 {
			o := s.world.answer(s.t, s.state.UID, rapid.SampledFrom(waiting).Draw(s.t, "answered"))
			if (o.Kind == Retryable || o.Kind == Rejected) && s.world.happened[o.Attempt.Key(s.state.UID)] {
				o.Kind = Unknown // it cannot say that what it accepted did not happen
			}
			o.Author, o.Reply = AuthorParticipant, true // nobody but the participant answers what it has accepted
			s.decide(o)
		}
	case 7:
		s.person()
	case 6: // what was accepted happens, whether or not the answer comes
		if waiting := accepted(&s.state); len(waiting) > 0 {
			s.world.happened[rapid.SampledFrom(waiting).Draw(s.t, "done").Key(s.state.UID)] = true
		}
	default:
		if len(inFlight) > 0 {
			if a := rapid.SampledFrom(inFlight).Draw(s.t, "attempt"); !slices.Contains(s.lost, a) { // nobody carries out what is lost
				s.decide(s.world.carryOut(s.t, s.state.UID, a))
			}
		}
	}
}

// accepted are the attempts whose answers are waited for.
func accepted(s *State) (all []Attempt) {
	for id, f := range s.effects {
		if f.Status == Accepted {
			all = append(all, Attempt{EffectID: id, Number: f.Attempts})
		}
	}
	return all
}

// settle lets everything end that can end by itself.
func (s *simulation) settle() {
	s.in.Suspend = false
	s.decide()
	for range 10_000 {
		if inFlight := s.plan.InFlight(s.state); len(inFlight) > 0 {
			s.decide(s.world.carryOut(s.t, s.state.UID, inFlight[0]))
			continue
		}
		wake := s.plan.Wake(s.state)
		if wake.IsZero() {
			return
		}
		if wake.After(s.in.Now) {
			s.in.Now = wake
		}
		s.decide()
	}
	s.t.Fatal("the saga does not come to an end")
}

func simulate(t *rapid.T) *simulation {
	def := drawDefinition(t)
	plan, errs := Compile(def)
	if len(errs) > 0 {
		t.Fatalf("the generated definition does not compile: %v", errs)
	}
	s := &simulation{t: t, plan: plan, world: world{happened: map[string]bool{}}, skipped: map[string]bool{}, in: Input{Now: t0, Start: &SagaStarted{UID: "u", Definition: def}}}
	s.decide()
	for range rapid.IntRange(0, 40).Draw(t, "acts") {
		s.act()
	}
	s.settle()
	for range rapid.IntRange(0, 3).Draw(t, "decisions") { // of people, where it is parked
		s.person()
		s.settle()
	}
	s.fold()
	return s
}

func TestEverySagaEndsWithEverythingDoneOrUndoneOrParked(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := simulate(t)
		switch s.state.Phase {
		case Completed:
			for _, step := range s.state.Steps {
				if !s.world.happened["u/"+step.Name+"/action"] || s.world.happened["u/"+step.Name+"/compensation"] {
					t.Fatalf("completed, but step %s was not done, or was undone", step.Name)
				}
			}
		case Compensated:
			for i, step := range s.state.Steps {
				did, undid := s.world.happened["u/"+step.Name+"/action"], s.world.happened["u/"+step.Name+"/compensation"]
				if did && !undid && !s.skipped[step.Name] && s.plan.def.Steps[i].Compensation != nil {
					t.Fatalf("compensated, but step %s was done and not undone", step.Name)
				}
			}
		case CompensationFailed:
			if p := s.state.Step(s.state.Parked.Step); !p.Compensation.FailedForGood() {
				t.Fatalf("parked at step %s, whose compensation is %q", p.Name, p.Compensation.Status)
			}
		default:
			t.Fatalf("the saga has come to rest in phase %s", s.state.Phase)
		}
	})
}

// checker reads a history as somebody would who knows nothing of Decide, and says where it breaks a law.
type checker struct {
	t            *rapid.T
	plan         *Plan
	inFlight     map[string]bool // by key
	attempts     map[string]int
	before       map[string]int // attempts that do not count any more
	done         map[string]bool
	mayHave      map[string]bool
	accepted     map[string]bool
	compensating int
	ended        bool
	parked       bool
}

func TestEveryHistoryKeepsTheLaws(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := simulate(t)
		c := &checker{t: t, plan: s.plan, inFlight: map[string]bool{}, attempts: map[string]int{}, before: map[string]int{}, done: map[string]bool{}, mayHave: map[string]bool{}, accepted: map[string]bool{}}
		for _, e := range s.events {
			c.check(e)
		}
	})
}

func (c *checker) check(e Event) {
	if _, decided := e.(DecisionMade); c.ended && !decided {
		c.t.Fatalf("%s follows the end", e.EventType())
	}
	switch e := e.(type) {
	case DecisionMade:
		c.checkDecision(e)
	case AttemptStarted:
		c.checkStart(e.Attempt)
	case AttemptResent:
		if !c.inFlight[e.Key("")] || c.accepted[e.Key("")] || c.attempts[e.Key("")] != e.Number {
			c.t.Fatalf("%s was sent again, but was not under way", e.Attempt)
		}
		c.mayHave[e.Key("")] = true
	case AttemptSucceeded:
		c.checkEnd(e.Attempt)
		c.done[e.Key("")], c.mayHave[e.Key("")] = true, false
	case AttemptAccepted:
		if key := e.Key(""); !c.inFlight[key] || c.accepted[key] || e.AnswerBy.Before(e.DecidedAt()) {
			c.t.Fatalf("%s was accepted, but was not under way, or twice, or with a time to answer that is over", e.Attempt)
		}
		if c.compensating > 0 && e.Direction == Action {
			c.t.Fatalf("the rollback waits for an answer to %s", e.Attempt)
		}
		c.accepted[e.Key("")] = true
	case AttemptFailed:
		c.checkEnd(e.Attempt)
		if e.Outcome == Unknown || e.Outcome == Rejected && e.Author == AuthorParticipant {
			c.mayHave[e.Key("")] = e.Outcome == Unknown
		}
		if e.RetryAt.Before(e.DecidedAt()) && !e.RetryAt.IsZero() {
			c.t.Fatalf("%s is to be tried again before it failed", e.Attempt)
		}
	case SagaCompensating:
		if c.compensating++; c.compensating > 1 {
			c.t.Fatal("there is a second way into rollback")
		}
		for key := range c.accepted { // an action that was accepted is not waited for any more
			if c.accepted[key] && strings.HasSuffix(key, "/action") {
				c.inFlight[key], c.mayHave[key] = false, true
			}
		}
	case SagaCompleted, SagaCompensated, SagaParked:
		c.ended, c.parked = true, e.EventType() == SagaParked{}.EventType()
		for key, open := range c.inFlight {
			if open {
				c.t.Fatalf("the saga ended while an attempt of %s was under way", key)
			}
		}
	}
}

func (c *checker) checkDecision(e DecisionMade) {
	if !c.parked {
		c.t.Fatal("a decision was taken about a saga that was not parked")
	}
	c.ended, c.parked = false, false
	for key, n := range c.attempts {
		if strings.HasSuffix(key, "/compensation") && !c.done[key] && (e.Step == "" || key == "/"+e.Step+"/compensation") {
			c.before[key] = n
			c.done[key] = e.Verdict != Retried
		}
	}
}

func (c *checker) checkEnd(a Attempt) {
	if !c.inFlight[a.Key("")] || c.attempts[a.Key("")] != a.Number {
		c.t.Fatalf("%s ended, but was not under way", a)
	}
	c.inFlight[a.Key("")], c.accepted[a.Key("")] = false, false
}

func (c *checker) checkStart(a Attempt) {
	key, effect := a.Key(""), c.plan.effect(a.EffectID)
	switch {
	case effect == nil:
		c.t.Fatalf("%s was started, but there is no such effect", a)
	case c.inFlight[key], c.done[key]:
		c.t.Fatalf("%s was started, but an earlier one is under way or has succeeded", a)
	case a.Number != c.attempts[key]+1 || a.Number-c.before[key] > effect.Retry.MaxAttempts:
		c.t.Fatalf("%s was started after %d of at most %d", a, c.attempts[key], effect.Retry.MaxAttempts)
	}
	c.inFlight[key], c.attempts[key] = true, a.Number
	i := c.plan.index[a.Step]
	if a.Direction == Action {
		c.checkActionStart(a, i)
		return
	}
	c.checkCompensationStart(a, i)
}

func (c *checker) checkActionStart(a Attempt, i int) {
	if c.compensating > 0 {
		c.t.Fatalf("%s was started during rollback", a)
	}
	for _, d := range c.plan.steps[i].dependencies {
		if !c.done["/"+c.plan.def.Steps[d].Name+"/action"] {
			c.t.Fatalf("%s was started before step %s was done", a, c.plan.def.Steps[d].Name)
		}
	}
}

func (c *checker) checkCompensationStart(a Attempt, i int) {
	action := "/" + a.Step + "/action"
	switch {
	case c.compensating == 0:
		c.t.Fatalf("%s was started without a rollback", a)
	case c.inFlight[action]:
		c.t.Fatalf("%s was started while its action was under way", a)
	case !c.done[action] && !c.mayHave[action]:
		c.t.Fatalf("%s was started, but its action never happened", a)
	}
	for _, d := range c.descendants(i) {
		name := c.plan.def.Steps[d].Name
		toUndo := c.plan.def.Steps[d].Compensation != nil && (c.done["/"+name+"/action"] || c.mayHave["/"+name+"/action"])
		if c.inFlight["/"+name+"/action"] || toUndo && !c.done["/"+name+"/compensation"] {
			c.t.Fatalf("%s was started before step %s, which depends on it, was undone", a, name)
		}
	}
}

func (c *checker) descendants(i int) []int {
	var all []int
	for _, d := range c.plan.steps[i].dependents {
		if !slices.Contains(all, d) {
			all = append(append(all, d), c.descendants(d)...)
		}
	}
	return all
}

func TestFoldingInPartsIsFoldingAtOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := simulate(t)
		cut := rapid.IntRange(0, len(s.events)).Draw(t, "cut")
		parts := Fold(Fold(State{}, s.events[:cut]...), s.events[cut:]...)
		if diff := cmp.Diff(Fold(State{}, s.events...), parts); diff != "" {
			t.Fatal(diff)
		}
		if parts.Version != int64(len(s.events)) {
			t.Fatalf("version %d after %d events", parts.Version, len(s.events))
		}
	})
}

func FuzzUnmarshalNeverPanicsAndFolds(f *testing.F) {
	for typ := range decoders {
		f.Add(typ, 1, []byte(`{"at":"2030-01-02T03:04:05Z","step":"a","direction":"action","number":1}`))
	}
	f.Add("SagaStarted", 1, []byte(`{"definition":{"steps":[{"name":"a","do":{"kind":"http","with":{}}}]}}`))
	f.Fuzz(func(t *testing.T, typ string, schema int, data []byte) {
		e, err := Unmarshal(typ, schema, data)
		if err != nil {
			return
		}
		s := Fold(State{}, SagaStarted{Definition: Definition{Steps: []Step{step("a", undo())}}}, e)
		if s.Version != 2 {
			t.Fatalf("version %d", s.Version)
		}
	})
}

func FuzzCompileNeverPanics(f *testing.F) {
	f.Add("a", "b", `{"url": "http://x/${input.id}"}`, "${response.body.id}")
	f.Add("a", "a", `{"url": "${steps.a.output.id}"}`, "${")
	f.Add("é", "", `{"a": {"b": ["${1 + 1}"]}}`, "${size(response)}")
	f.Fuzz(func(t *testing.T, first, second, settings, out string) {
		if strings.Count(settings, "{") > 1000 {
			return
		}
		def := Definition{Steps: []Step{step(first, output("x", out)), step(second, after(first), with(settings), undoWith(settings, 1))}}
		plan, errs := Compile(def)
		if (plan == nil) == (len(errs) == 0) {
			t.Fatalf("plan %v with errors %v", plan, errs)
		}
	})
}
