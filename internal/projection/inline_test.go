package projection_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/projection"
)

// prepare makes the first generation of a projection as a process of that code does.
func (r *rig) prepare(inline bool, def *projection.Definition) error {
	r.t.Helper()
	o := projection.Options{Pool: r.pool, Store: storepg.New(r.pool)}
	var defs []*projection.Definition
	if inline {
		o.Inline = append(o.Inline, def)
	} else {
		defs = append(defs, def)
	}
	runner, err := projection.NewRunner(o, defs...)
	if err != nil {
		r.t.Fatal(err)
	}
	return runner.Prepare(r.t.Context())
}

func (r *rig) prepareInline(def *projection.Definition) {
	r.t.Helper()
	if err := r.prepare(true, def); err != nil {
		r.t.Fatal(err)
	}
}

// inlineAppend appends as a process does whose code has the definition inline.
func (r *rig) inlineAppend(def *projection.Definition, stream string) error {
	r.t.Helper()
	store, err := projection.NewInlineStore(r.pool, def)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = store.Append(r.t.Context(), eventstore.Append{Stream: stream, Expected: eventstore.AnyVersion, Events: []eventstore.Event{event("Added", 1)}})
	return err
}

// refused checks an error, and that nothing was written with it.
func (r *rig) refused(err error, want string) {
	r.t.Helper()
	if !errors.Is(err, projection.ErrOtherForm) || !strings.Contains(err.Error(), want) {
		r.t.Errorf("error %v, want an ErrOtherForm with %q", err, want)
	}
	if n := r.int(`SELECT count(*) FROM event_store`) + r.int(`SELECT count(*) FROM seen_rows`); n != 0 {
		r.t.Errorf("%d events and rows were written all the same", n)
	}
}

func TestAnAppendWritesNoReadModelOfAnotherVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.prepareInline(sums(2))
	r.refused(r.inlineAppend(sums(1), "account-1"), "upgrade this process")
	r.refused(r.inlineAppend(sums(3), "account-1"), "appends go on when it has taken over")
	if err := r.inlineAppend(sums(1), "other-1"); err != nil {
		t.Errorf("an event that the read model does not read was refused: %v", err)
	}
	r.run(projection.Options{Inline: []*projection.Definition{sums(3)}})
	r.rebuilt("sums", 2)
	if err := r.inlineAppend(sums(3), "account-1"); err != nil {
		t.Error(err)
	}
	if err := r.same(); err != nil {
		t.Error(err)
	}
}

func TestAReadModelBecomesInlineOnlyUnderANewVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.prepare(false, sums(1)); err != nil {
		t.Fatal(err)
	}
	r.refused(r.inlineAppend(sums(1), "account-1"), "count the definition's version up")
	r.refused(r.prepare(true, sums(1)), "count the definition's version up")
	r.run(projection.Options{Inline: []*projection.Definition{sums(2)}})
	r.rebuilt("sums", 2)
	if err := r.inlineAppend(sums(2), "account-1"); err != nil {
		t.Error(err)
	}
	if err := r.same(); err != nil {
		t.Error(err)
	}
}

func TestAReadModelStopsBeingInlineOnlyUnderANewVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.prepareInline(sums(1))
	r.refused(r.prepare(false, sums(1)), "count the definition's version up")
	r.run(projection.Options{}, sums(2))
	r.rebuilt("sums", 2)
	r.append("account-1", 1, 2, 3)
	r.eventually("it follows the appends by itself", r.same)
	if err := projection.Rebuild(t.Context(), r.pool, "sums"); err != nil {
		t.Fatal(err)
	}
	r.rebuilt("sums", 3)
	r.append("account-1", 4)
	r.eventually("built anew it does so too", r.same)
}
