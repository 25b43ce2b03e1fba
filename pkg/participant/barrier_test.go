package participant_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/vextrus/saga-operator/pkg/participant"
)

func TestACompensationThatComesFirstIsRememberedAndTheLateActionDoesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if got := r.answers(200, "DELETE", "/things/1", "c", ""); got.body != "{\"undone\":false}\n" {
		t.Errorf("undoing nothing was answered with %s", got.body)
	}
	for _, key := range []string{"a", "a", "b"} {
		r.answers(http.StatusConflict, "POST", "/things/1", key, `{}`)
	}
	r.is("1", 0)
}

func TestAnActionTwiceActsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.answers(201, "POST", "/things/1", "a", `{}`)
	again := r.answers(201, "POST", "/things/1", "a", `{}`)
	if first.body != again.body || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("first %+v, again %+v", first, again)
	}
	r.answers(http.StatusConflict, "POST", "/things/1", "another-key", `{}`)
	r.is("1", 1)
}

func TestACompensationTwiceUndoesOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	for _, key := range []string{"c", "c", "another-key"} {
		if got := r.send("DELETE", "/things/1", key, ""); got.status >= 300 {
			t.Errorf("undoing under key %s was answered with %+v", key, got)
		}
	}
	r.is("1", 0)
}

func TestEffectsOfDifferentRealmsDoNotMeet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	turns := func(e participant.Effect) (turn participant.Turn, undone bool) {
		err := pgx.BeginFunc(r.ctx, r.pool, func(tx pgx.Tx) (err error) {
			if turn, err = participant.Act(r.ctx, tx, e); err == nil {
				undone, err = participant.Undo(r.ctx, tx, e)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return turn, undone
	}
	for _, realm := range []string{"a", "b"} {
		e := participant.Effect{Realm: realm, Name: "x"}
		if turn, undone := turns(e); turn != participant.Proceed || !undone {
			t.Errorf("%s: turn %d, undone %v", realm, turn, undone)
		}
		if turn, undone := turns(e); turn != participant.Undone || undone {
			t.Errorf("%s again: turn %d, undone %v", realm, turn, undone)
		}
	}
}

// TestInWhateverOrderActionAndCompensationComeTheNetEffectIsZeroOrOne delivers both any number of times, under one key or several, in part at the same time.
func TestInWhateverOrderActionAndCompensationComeTheNetEffectIsZeroOrOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var things atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		thing := fmt.Sprint("t", things.Add(1))
		acted, compensated := false, false
		type delivery struct {
			Action bool
			Key    int
		}
		one := rapid.Custom(func(rt *rapid.T) delivery {
			return delivery{rapid.Bool().Draw(rt, "action"), rapid.IntRange(0, 1).Draw(rt, "key")}
		})
		for _, round := range rapid.SliceOfN(rapid.SliceOfN(one, 1, 4), 1, 3).Draw(rt, "rounds of deliveries at once") {
			var wg sync.WaitGroup
			for _, d := range round {
				acted, compensated = acted || d.Action, compensated || !d.Action
				wg.Go(func() {
					if d.Action {
						if got := r.send("POST", "/things/"+thing, fmt.Sprint(thing, "/action-", d.Key), `{}`); got.status != 201 && got.status != 409 {
							t.Errorf("the action was answered with %+v", got)
						}
					} else if got := r.send("DELETE", "/things/"+thing, fmt.Sprint(thing, "/compensation-", d.Key), ""); got.status >= 300 {
						t.Errorf("the compensation was answered with %+v", got)
					}
				})
			}
			wg.Wait()
			want := 0
			if acted && !compensated {
				want = 1
			}
			if n := r.net(thing); n != want {
				rt.Fatalf("%d are booked, not %d", n, want)
			}
		}
	})
}
