package saga

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// abandoned has a person abandon the saga.
func (h *history) abandoned(by, reason string) {
	h.t.Helper()
	e, _, err := Abandon(h.state, by, reason, h.now)
	if err != nil {
		h.t.Fatal(err)
	}
	h.state = Fold(h.state, e)
	h.events = append(h.events, e)
	if more := h.decide(); len(more) > 0 {
		h.t.Errorf("decided after the abandonment: %v", more)
	}
}

// TestAbandonWorksInEveryPhase also holds that it says which of its effects may remain.
func TestAbandonWorksInEveryPhase(t *testing.T) {
	t.Parallel()
	def := Definition{Steps: []Step{step("a", undo()), step("b", after("a"), undo()), step("c", after("b"))}}
	for name, test := range map[string]struct {
		reach  func(*history)
		remain string
	}{
		"nothing has been done":  {func(h *history) { h.ends("a", Action, Retryable) }, ""},
		"an action is under way": {func(*history) {}, "a"},
		"an action is accepted":  {func(h *history) { h.accepts("a", Action) }, "a"},
		"it is suspended": {func(h *history) {
			h.in.Suspend = true
			h.ends("a", Action, Succeeded)
		}, "a"},
		"a compensation is under way": {func(h *history) {
			h.ends("a", Action, Succeeded)
			h.ends("b", Action, Rejected)
		}, "a"},
		"one step is undone": {func(h *history) {
			h.ends("a", Action, Succeeded)
			h.ends("b", Action, Succeeded)
			h.ends("c", Action, Rejected)
			h.ends("b", Compensation, Succeeded)
		}, "a"},
		"it is parked": {func(h *history) {
			h.ends("a", Action, Succeeded)
			h.ends("b", Action, Unknown)
			h.in.Cancel = true
			h.decide()
			h.ends("b", Compensation, Rejected)
			h.phaseIs(CompensationFailed)
		}, "a b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := begin(t, def)
			test.reach(h)
			h.abandoned("ann", "the participants are gone")
			s := h.state
			if !s.Phase.Terminal() || s.Phase != Abandoned || s.Parked != nil || s.Suspended || s.EndedAt.IsZero() {
				t.Errorf("the state is %+v", s)
			}
			if a := s.Abandoned; a == nil || a.By != "ann" || a.Reason != "the participants are gone" || !a.At.Equal(h.now) {
				t.Errorf("the abandonment is %+v", a)
			}
			if got := strings.Join(s.MayRemain(), " "); got != test.remain {
				t.Errorf("may remain: %q, want %q", got, test.remain)
			}
			for id, f := range s.effects {
				if !f.Settled() {
					t.Errorf("%s is %s", id, f.Status)
				}
			}
			if row := s.ForRow(); row.Phase != Abandoned || row.Abandoned == nil {
				t.Errorf("the row has %+v", row)
			}
		})
	}
}

func TestAbandonIsIdempotent(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.abandoned("ann", "the participants are gone")
	if _, abandoned, err := Abandon(h.state, "bob", "again", h.now); err != nil || !abandoned {
		t.Errorf("abandoned %v, %v", abandoned, err)
	}
}

func TestAbandonRejectsFinishedSaga(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.ends("a", Action, Succeeded)
	h.phaseIs(Completed)
	var wrong *AbandonError
	if _, _, err := Abandon(h.state, "ann", "why not", h.now); !errors.As(err, &wrong) || wrong.Field != "" || !strings.Contains(wrong.Message, "Completed") {
		t.Errorf("%v", err)
	}
}

func TestAbandonRequiresReason(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	for _, reason := range []string{"", " \n", strings.Repeat("x", maxMessageBytes+1), "a\x00b", "\xff"} {
		var wrong *AbandonError
		if _, _, err := Abandon(h.state, "ann", reason, h.now); !errors.As(err, &wrong) || wrong.Field != "reason" {
			t.Errorf("%.10q: %v", reason, err)
		}
	}
}

func TestAbandonHasNotice(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	before := h.state.Notices
	h.abandoned("ann", "the participants are gone")
	n, told := NoticeOf(h.events[len(h.events)-1])
	if !told || n.What != NoticeAbandoned || n.Message != "the participants are gone" || h.state.Notices != before+1 {
		t.Errorf("told %v: %+v", told, n)
	}
	if !slices.Contains(EventTypes(), "SagaAbandoned") {
		t.Error("the codec does not know the event")
	}
}
