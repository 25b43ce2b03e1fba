package participant_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/participant"
)

const aYear = 365 * 24 * time.Hour

// left are the things that a table still knows of.
func (r *rig) left(table string) []string {
	r.t.Helper()
	rows, err := r.pool.Query(r.ctx, `SELECT effect FROM `+pgx.Identifier{table}.Sanitize())
	if err != nil {
		r.t.Fatal(err)
	}
	things, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range things {
		things[i] = strings.TrimPrefix(things[i], "book ")
	}
	slices.Sort(things)
	return things
}

func TestSweepingRemovesWhatIsOldAndOverAndNothingElse(t *testing.T) {
	t.Parallel()
	r, o := newRig(t), newOperator(t, nil)
	r.answers(201, "POST", "/things/done", "a1", `{}`)
	r.answers(200, "DELETE", "/things/undone", "c2", "")
	for _, thing := range []string{"told", "told lately", "withdrawn", "waiting"} {
		r.answers(202, "POST", "/later/"+strings.ReplaceAll(thing, " ", "%20"), strings.ReplaceAll(thing, " ", "-"), `{}`, "Saga-Callback", o.URL+"/cb")
	}
	r.exec(`UPDATE saga_work SET due_at = now() + interval '4 years' WHERE effect IN ('book waiting', 'book withdrawn')`)
	stop := r.run(r.work)
	for _, thing := range []string{"told", "told lately"} {
		r.eventually("it is told", func() bool { return r.ended(thing) == "told" })
	}
	stop()
	r.answers(200, "DELETE", "/later/withdrawn", "c5", "")
	r.exec(`UPDATE saga_barriers SET at = at - interval '2 years'`)
	r.exec(`UPDATE saga_work SET due_at = due_at - interval '2 years' WHERE effect <> 'book told lately'`)
	r.exec(`UPDATE idempotency_keys SET expires_at = now() WHERE key IN ('a1', 'c2', 'c5')`)
	r.answers(201, "POST", "/things/young", "a7", `{}`)

	// Two ended pieces of work, and their barriers and those of two more, and three keys; two of each kind at a time.
	for _, want := range []int{6, 3, 0} {
		if n, err := r.Sweep(r.ctx, aYear, 2); err != nil || n != want {
			t.Errorf("%d were swept, %v; want %d", n, err, want)
		}
	}
	if diff := cmp.Diff([]string{"told lately", "waiting", "young"}, r.left("saga_barriers")); diff != "" {
		t.Errorf("barriers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"told lately", "waiting"}, r.left("saga_work")); diff != "" {
		t.Errorf("work (-want +got):\n%s", diff)
	}
	var keys int
	if err := r.pool.QueryRow(r.ctx, `SELECT count(*) FROM idempotency_keys`).Scan(&keys); err != nil || keys != 5 {
		t.Errorf("there are %d keys, %v", keys, err)
	}
	r.answers(200, "DELETE", "/later/waiting", "c6", "") // the work is withdrawn
	r.is("waiting", 0)
}

func TestSweepingWaitsForNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	r.answers(201, "POST", "/things/2", "b", `{}`)
	r.exec(`UPDATE saga_barriers SET at = at - interval '2 years'`)
	err := pgx.BeginFunc(r.ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := participant.Undo(r.ctx, tx, participant.Effect{Name: "book 1"}); err != nil {
			return err
		}
		n, err := r.Sweep(r.ctx, aYear, 10)
		if n != 1 {
			t.Errorf("%d were swept", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1"}, r.left("saga_barriers")); diff != "" {
		t.Error(diff)
	}
}

func TestSweepingNeedsAnAge(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.answers(201, "POST", "/things/1", "a", `{}`)
	if n, err := r.Sweep(r.ctx, 0, 10); err == nil || n != 0 || len(r.left("saga_barriers")) != 1 {
		t.Errorf("%d were swept, %v", n, err)
	}
}
