package storetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// running appends a saga that has not finished.
func (f *fixture) running() uuid.UUID {
	f.t.Helper()
	uid := uuid.New()
	f.append(eventstore.Append{Stream: stream(uid), Events: events(1), State: state(uid)})
	return uid
}

func answer(uid uuid.UUID) eventstore.Answer {
	return eventstore.Answer{UID: uid, Step: "pay", Direction: "action", Response: json.RawMessage(`{"body": {"id":"p-1"}}`)}
}

// keeps puts an answer and says whether it must be kept.
func (f *fixture) keeps(a eventstore.Answer, want bool) {
	f.t.Helper()
	if kept, err := f.PutAnswer(f.t.Context(), a); err != nil || kept != want {
		f.t.Errorf("kept: %v, %v; want %v", kept, err, want)
	}
}

var answers = []behaviour{
	{"the first answer to an effect is kept, byte for byte, and no other", func(t *testing.T, f *fixture) {
		uid := f.running()
		first := answer(uid)
		second := answer(uid)
		second.Rejected, second.Reason, second.Message = true, "Declined", "the card was declined"
		f.keeps(first, true)
		f.keeps(first, false)
		f.keeps(second, false)
		second.Direction = "compensation"
		f.keeps(second, true)
		got, err := f.Answers(t.Context(), uid, eventstore.MaxAnswerBytes, "pay")
		if err != nil || len(got) != 2 {
			t.Fatalf("%v, %v", got, err)
		}
		if got[0].Rejected {
			got[0], got[1] = got[1], got[0]
		}
		if diff := cmp.Diff([]eventstore.Answer{first, second}, got); diff != "" {
			t.Error(diff)
		}
	}},
	{"each round of attempts has an answer of its own", func(t *testing.T, f *fixture) {
		uid := f.running()
		first, second := answer(uid), answer(uid)
		second.Round, second.Rejected, second.Reason = 3, true, "Declined"
		f.keeps(first, true)
		f.keeps(second, true)
		second.Reason = "Other"
		f.keeps(second, false)
		got, err := f.Answers(t.Context(), uid, eventstore.MaxAnswerBytes, "pay")
		if err != nil || len(got) != 2 || got[0].Round+got[1].Round != 3 {
			t.Errorf("%+v, %v", got, err)
		}
	}},
	{"only the answers of the steps that are asked for are read", func(t *testing.T, f *fixture) {
		uid := f.running()
		pay, ship, label := answer(uid), answer(uid), answer(uid)
		ship.Step, label.Step = "ship", "label"
		for _, a := range []eventstore.Answer{pay, ship, label} {
			f.keeps(a, true)
		}
		got, err := f.Answers(t.Context(), uid, eventstore.MaxAnswerBytes, "ship", "label", "none")
		if err != nil || len(got) != 2 || got[0].Step == "pay" || got[1].Step == "pay" {
			t.Errorf("%+v, %v", got, err)
		}
		if got, err := f.Answers(t.Context(), uid, eventstore.MaxAnswerBytes); err != nil || len(got) != 0 {
			t.Errorf("%+v, %v", got, err)
		}
	}},
	{"a response is left out where it is longer than what is asked for", func(t *testing.T, f *fixture) {
		uid := f.running()
		a := answer(uid)
		f.keeps(a, true)
		for limit, want := range map[int]json.RawMessage{len(a.Response): a.Response, len(a.Response) - 1: nil} {
			got, err := f.Answers(t.Context(), uid, limit, "pay")
			if err != nil || len(got) != 1 || !bytes.Equal(got[0].Response, want) {
				t.Errorf("at most %d bytes: %+v, %v", limit, got, err)
			}
		}
	}},
	{"an answer to a saga that is not known, or has finished, is not kept", func(_ *testing.T, f *fixture) {
		f.keeps(answer(uuid.New()), false)
		uid := uuid.New()
		done := state(uid)
		done.Finished = true
		f.append(eventstore.Append{Stream: stream(uid), Events: events(1), State: done})
		f.keeps(answer(uid), false)
	}},
	{"sagas with new answers are told of once", func(t *testing.T, f *fixture) {
		one, two := f.running(), f.running()
		f.running()
		f.keeps(answer(one), true)
		f.keeps(answer(two), true)
		again := answer(two)
		again.Step = "ship"
		f.keeps(again, true)
		told := map[uuid.UUID]int{}
		for range 4 {
			some, err := f.TakeAnswered(t.Context(), 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range some {
				told[s.UID]++
				if s.Namespace == "" || s.Name == "" {
					t.Errorf("the state is %+v", s)
				}
			}
		}
		if len(told) != 2 || told[one] != 1 || told[two] < 1 {
			t.Errorf("told of %v", told)
		}
		again.Step = "label"
		f.keeps(again, true)
		if some, err := f.TakeAnswered(t.Context(), 2); err != nil || len(some) != 1 || some[0].UID != two {
			t.Errorf("%v, %v", some, err)
		}
	}},
	{"a saga that was nudged is told of once, with or without an answer", func(t *testing.T, f *fixture) {
		one, two, ended := f.running(), f.running(), uuid.New()
		done := state(ended)
		done.Finished = true
		f.append(eventstore.Append{Stream: stream(ended), Events: events(1), State: done})
		for _, uid := range []uuid.UUID{one, one, two, ended, uuid.New()} {
			if err := f.Nudge(t.Context(), uid); err != nil {
				t.Fatal(err)
			}
		}
		f.keeps(answer(two), true)
		told := map[uuid.UUID]int{}
		for {
			some, err := f.TakeAnswered(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if len(some) == 0 {
				break
			}
			for _, s := range some {
				told[s.UID]++
			}
		}
		if len(told) != 3 || told[one] != 1 || told[two] < 1 || told[two] > 2 || told[ended] != 1 {
			t.Errorf("told of %v", told)
		}
	}},
	{"of many equal answers at once, one is kept", func(t *testing.T, f *fixture) {
		uid := f.running()
		var kept atomic.Int32
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if ok, err := f.PutAnswer(t.Context(), answer(uid)); err != nil {
					t.Error(err)
				} else if ok {
					kept.Add(1)
				}
			})
		}
		wg.Wait()
		if n := kept.Load(); n != 1 {
			t.Errorf("%d were", n)
		}
	}},
	{"an answer beyond its limits is refused", func(t *testing.T, f *fixture) {
		uid := f.running()
		for name, spoil := range map[string]func(*eventstore.Answer){
			"no saga":            func(a *eventstore.Answer) { a.UID = uuid.Nil },
			"no step":            func(a *eventstore.Answer) { a.Step = "" },
			"NUL in the message": func(a *eventstore.Answer) { a.Message = "\x00" },
			"a long message":     func(a *eventstore.Answer) { a.Message = strings.Repeat("x", eventstore.MaxAnswerTextBytes+1) },
			"not JSON":           func(a *eventstore.Answer) { a.Response = json.RawMessage(`{`) },
			"no response":        func(a *eventstore.Answer) { a.Response = nil },
			"a large response": func(a *eventstore.Answer) {
				a.Response = json.RawMessage(`"` + strings.Repeat("x", eventstore.MaxAnswerBytes) + `"`)
			},
		} {
			a := answer(uid)
			spoil(&a)
			if kept, err := f.PutAnswer(t.Context(), a); kept || !errors.Is(err, eventstore.ErrInvalid) {
				t.Errorf("%s: kept %v, %v", name, kept, err)
			}
		}
	}},
}
