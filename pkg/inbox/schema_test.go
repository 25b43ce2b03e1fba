package inbox_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/vextrus/saga-operator/pkg/inbox"
)

func TestTheSchemaCanBeRunByManyAtOnceAndAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`DROP TABLE inbox_messages`)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 3 {
				if _, err := r.pool.Exec(r.ctx, inbox.Schema); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if done, err := inbox.Do(r.ctx, r.pool, key("1"), effect("1")); !done || err != nil {
		t.Errorf("handling: %t, %v", done, err)
	}
	r.exec(inbox.Schema)
	if done, err := inbox.Do(r.ctx, r.pool, key("1"), effect("1")); done || err != nil {
		t.Errorf("handling it again: %t, %v", done, err)
	}
}

func TestWithoutTheRightTableNothingIsHandled(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct{ sql, want string }{
		"no table":       {`DROP TABLE inbox_messages`, "inbox.Schema"},
		"no primary key": {`ALTER TABLE inbox_messages DROP CONSTRAINT inbox_messages_pkey`, "no unique or exclusion constraint"},
	} {
		r := newRig(t)
		r.exec(c.sql)
		if done, err := inbox.Do(r.ctx, r.pool, key("1"), effect("1")); done || err == nil || !strings.Contains(err.Error(), c.want) || r.effects("1") != 0 {
			t.Errorf("%s: %t, %v, and %d effects", what, done, err, r.effects("1"))
		}
	}
}
