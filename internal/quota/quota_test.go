package quota_test

import (
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/quota"
)

var usual = quota.Limits{UnfinishedSagas: 10, UnfinishedBytes: 1 << 20, Sinks: 3, AttemptsPerSecond: quota.Unlimited}

func TestTableReplacesLimitsByAnnotations(t *testing.T) {
	table := quota.NewTable(usual)
	if err := table.Set("shop", map[string]string{
		"saga.vextrus.io/max-unfinished-sagas": "0", "saga.vextrus.io/max-unfinished-bytes": "64Mi",
		"saga.vextrus.io/max-sinks": "-1", "saga.vextrus.io/max-attempts-per-second": "5", "team": "a",
	}); err != nil {
		t.Fatal(err)
	}
	want := quota.Limits{UnfinishedSagas: 0, UnfinishedBytes: 64 << 20, Sinks: quota.Unlimited, AttemptsPerSecond: 5}
	if got := table.Of("shop"); got != want {
		t.Errorf("the limits of the annotated namespace are %+v, want %+v", got, want)
	}
	if got := table.Of("other"); got != usual {
		t.Errorf("the limits of another namespace are %+v, want the usual ones", got)
	}
	if err := table.Set("shop", nil); err != nil || table.Of("shop") != usual {
		t.Errorf("without its annotations the namespace has %+v (%v), want the usual limits", table.Of("shop"), err)
	}
}

func TestTableNamesAnnotationsThatCannotBeRead(t *testing.T) {
	for annotation, value := range map[string]string{
		"saga.vextrus.io/max-unfinished-sagas": "many", "saga.vextrus.io/max-unfinished-bytes": "1 GB",
		"saga.vextrus.io/max-sinks": "-2", "saga.vextrus.io/max-attempts-per-second": "0",
	} {
		table := quota.NewTable(usual)
		err := table.Set("shop", map[string]string{annotation: value})
		if err == nil || !strings.Contains(err.Error(), annotation) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s: %q gives the error %v, which does not name both", annotation, value, err)
		}
		if table.Of("shop") != usual {
			t.Errorf("%s: %q changes the limits to %+v", annotation, value, table.Of("shop"))
		}
	}
}

func TestTableTellsOfChangesOnly(t *testing.T) {
	table := quota.NewTable(usual)
	var changed []string
	table.OnChange(func(namespace string) { changed = append(changed, namespace) })
	for _, value := range []string{"5", "5", "6"} {
		if err := table.Set("shop", map[string]string{"saga.vextrus.io/max-sinks": value}); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Set("other", map[string]string{"saga.vextrus.io/max-sinks": "3"}); err != nil {
		t.Fatal(err)
	}
	if len(changed) != 2 || changed[0] != "shop" || changed[1] != "shop" {
		t.Errorf("OnChange reported %v, want shop twice", changed)
	}
}

func TestNilTableLimitsNothing(t *testing.T) {
	var table *quota.Table
	if got := table.Of("shop"); got != quota.None() {
		t.Errorf("got %+v", got)
	}
}
