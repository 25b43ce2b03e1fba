package saga

import (
	"testing"
	"time"
)

func TestNextByDirectionPhaseAndOutcome(t *testing.T) {
	t.Parallel()
	def := effect(`{}`)
	def.Retry.MaxAttempts = 2
	for name, c := range map[string]struct {
		phase  Phase
		dir    Direction
		kind   OutcomeKind
		number int
		want   Next
	}{
		"a retryable action":            {Running, Action, Retryable, 1, NextRetry},
		"an unknown action":             {Running, Action, Unknown, 1, NextRetry},
		"the last attempt of an action": {Running, Action, Unknown, 2, NextExhaust},
		"a rejected action":             {Running, Action, Rejected, 1, NextReject},
		"an action in a rollback":       {Compensating, Action, Retryable, 1, NextExhaust},
		"a rejection in a rollback":     {Compensating, Action, Rejected, 1, NextReject},
		"a retryable compensation":      {Compensating, Compensation, Retryable, 1, NextRetry},
		"the last compensation":         {Compensating, Compensation, Unknown, 2, NextPark},
		"a rejected compensation":       {Compensating, Compensation, Rejected, 1, NextRetry},
		"the last rejection of one":     {Compensating, Compensation, Rejected, 2, NextPark},
	} {
		s := State{Phase: c.phase, Steps: []StepState{{Name: "a"}}}
		o := Outcome{Attempt: Attempt{EffectID: EffectID{Step: "a", Direction: c.dir}, Number: c.number}, Kind: c.kind}
		got, at := next(&def, &s, o, t0, 7)
		if got != c.want || at.IsZero() == (got == NextRetry) {
			t.Errorf("%s: %s at %v, want %s", name, got, at, c.want)
		}
	}
}

// TestNextBelievesTheParticipantAlone has a no by each author, with and without a doubt that an earlier attempt has left.
func TestNextBelievesTheParticipantAlone(t *testing.T) {
	t.Parallel()
	def := effect(`{}`)
	for _, c := range []struct {
		dir     Direction
		author  Author
		inDoubt bool
		want    Next
	}{
		{Action, AuthorParticipant, false, NextReject},
		{Action, AuthorParticipant, true, NextReject},
		{Action, AuthorOperator, true, NextReject},
		{Action, AuthorUnknown, false, NextReject},
		{Action, AuthorUnknown, true, NextReject},
		{Action, AuthorGateway, false, NextReject},
		{Action, AuthorGateway, true, NextRetry},
		{Compensation, AuthorParticipant, false, NextPark},
		{Compensation, AuthorOperator, false, NextPark},
		{Compensation, AuthorUnknown, false, NextRetry},
		{Compensation, AuthorGateway, false, NextRetry},
	} {
		phase := Running
		if c.dir == Compensation {
			phase = Compensating
		}
		f := EffectState{InDoubt: c.inDoubt}
		s := State{Phase: phase, Steps: []StepState{{Name: "a", Do: f, Compensation: f}}}
		o := Outcome{Attempt: Attempt{EffectID: EffectID{Step: "a", Direction: c.dir}, Number: 1}, Kind: Rejected, Author: c.author}
		if got, _ := next(&def, &s, o, t0, 7); got != c.want {
			t.Errorf("the %s is rejected by %q, in doubt: %t: %s, want %s", c.dir, c.author, c.inDoubt, got, c.want)
		}
		if doubt := f.doubtAfter(Rejected, c.author); doubt != (c.inDoubt && c.author != AuthorParticipant) {
			t.Errorf("the %s is in doubt after a no by %q: %t", c.dir, c.author, doubt)
		}
	}
}

func TestNextCountsAttemptsOfTheRoundOnly(t *testing.T) {
	t.Parallel()
	def := effect(`{}`)
	s := State{Phase: Compensating, Steps: []StepState{{Name: "a", Compensation: EffectState{Before: 10}}}}
	id := EffectID{Step: "a", Direction: Compensation}
	for number, want := range map[int]Next{12: NextRetry, 13: NextPark} {
		if got, _ := next(&def, &s, Outcome{Attempt: Attempt{EffectID: id, Number: number}, Kind: Unknown}, t0, 7); got != want {
			t.Errorf("attempt %d is followed by %s, want %s", number, got, want)
		}
	}
}

// TestEvolveFollowsTheRecordedNext has outcomes that would be followed by something else today.
func TestEvolveFollowsTheRecordedNext(t *testing.T) {
	t.Parallel()
	for next, want := range map[Next]EffectStatus{
		NextRetry: Waiting, NextReject: Refused, NextExhaust: Exhausted, NextSettle: Waiting, NextPark: Parked,
	} {
		h := begin(t, Definition{Steps: []Step{step("a")}})
		retryAt := time.Time{}
		if want == Waiting {
			retryAt = t0.Add(time.Second)
		}
		s := Evolve(h.state, AttemptFailed{At: At{At: t0}, Attempt: h.inFlight("a", Action), Outcome: Rejected, Next: next, RetryAt: retryAt})
		if f := s.Step("a").Do; f.Status != want || f.EndedAt.IsZero() == f.FailedForGood() || !f.RetryAt.Equal(retryAt) {
			t.Errorf("after %s the action is %+v", next, f)
		}
	}
}
