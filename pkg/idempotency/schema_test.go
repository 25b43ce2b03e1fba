package idempotency_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/vextrus/saga-operator/migrations"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

func TestTheMigrationMakesTheSameTable(t *testing.T) {
	t.Parallel()
	migration, err := migrations.FS.ReadFile("0006_idempotency.sql")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(migration), idempotency.Schema) {
		t.Error("migrations/0006_idempotency.sql does not end with idempotency.Schema")
	}
}

func TestTheSchemaCanBeRunByManyAtOnceAndAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`DROP TABLE idempotency_keys; DROP SEQUENCE idempotency_fences`)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 3 {
				if _, err := r.pool.Exec(r.ctx, idempotency.Schema); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if replayed, err := r.once("1", "a", effect("x")); replayed || err != nil {
		t.Errorf("%v, %v", replayed, err)
	}
	r.exec(idempotency.Schema)
	if replayed, err := r.once("1", "a", effect("x")); !replayed || err != nil {
		t.Errorf("%v, %v", replayed, err)
	}
}
