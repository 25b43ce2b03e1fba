package participant_test

import (
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/participant"
)

// forgetKeys has the time of all keys be over.
func (r *rig) forgetKeys() {
	r.t.Helper()
	r.exec(`UPDATE idempotency_keys SET expires_at = now()`)
}

func TestTheSameKeyGetsItsAnswerHoweverLate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.answers(201, "POST", "/things/1", "a", `{}`)
	for range 3 {
		r.forgetKeys()
		again := r.answers(201, "POST", "/things/1", "a", `{}`)
		if first.body != again.body || again.header.Get("Content-Type") != "application/json" || again.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("first %+v, again %+v", first, again)
		}
	}
	r.exec(`DELETE FROM idempotency_keys`)
	r.answers(http.StatusConflict, "POST", "/things/1", "another-key", `{}`)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	r.is("1", 1)
}

func TestWhatWasAcceptedIsToldAtTheNewestCallbackHoweverLateItIsAskedFor(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, nil)
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/first")
	r.forgetKeys()
	r.answers(202, "POST", "/later/1", "a", `{}`, "Saga-Callback", o.URL+"/second")
	r.answers(http.StatusConflict, "POST", "/later/1", "another-key", `{}`, "Saga-Callback", o.URL+"/third")
	r.run(r.work)
	r.eventually("it is told", func() bool { return r.ended("1") == "told" })
	if len(o.told("/first")) != 0 || len(o.told("/second")) != 1 || len(o.told("/third")) != 0 {
		t.Errorf("%v, %v and %v were told", o.told("/first"), o.told("/second"), o.told("/third"))
	}
	r.is("1", 1)
}

func TestWhatWasDoneAndUndoneIsNotDoneAgainHoweverLate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	r.answers(201, "DELETE", "/things/1", "c", "")
	r.forgetKeys()
	r.answers(http.StatusConflict, "POST", "/things/1", "a", `{}`)
	r.answers(200, "DELETE", "/things/1", "c", "")
	r.is("1", 0)
}

func TestTheSchemaAddsToABarrierThatIsThere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`DROP TABLE saga_barriers; CREATE TABLE saga_barriers (realm text NOT NULL, effect text NOT NULL, state text NOT NULL CHECK (state IN ('done', 'undone')),
		at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (realm, effect)); INSERT INTO saga_barriers (realm, effect, state) VALUES ('', 'book 1', 'done'), ('', 'book 2', 'undone')`)
	r.exec(participant.Schema)
	r.answers(http.StatusConflict, "POST", "/things/1", "a", `{}`)
	r.answers(http.StatusConflict, "POST", "/things/2", "b", `{}`)
	r.answers(201, "POST", "/things/3", "c", `{}`)
	r.forgetKeys()
	r.answers(201, "POST", "/things/3", "c", `{}`)
	r.answers(201, "DELETE", "/things/1", "d", "")
}

func TestTheSchemaDoesNotWaitForTheBarrierWhereNothingIsMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	err := pgx.BeginFunc(r.ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := participant.Act(r.ctx, tx, participant.Effect{Name: "x"}); err != nil {
			return err
		}
		_, err := r.pool.Exec(r.ctx, `SET lock_timeout = '2min'; `+participant.Schema)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
