package money

import (
	"encoding/json"
	"testing"
)

func TestAmountsAreExact(t *testing.T) {
	t.Parallel()
	var m Money
	if err := json.Unmarshal([]byte(`{"amount":"100000000000.10","currency":"EUR"}`), &m); err != nil {
		t.Fatal(err)
	}
	if got := m.Amount.String(); got != "100000000000.10" {
		t.Errorf("the amount became %s", got)
	}
	for _, c := range []struct {
		a, b string
		more bool
	}{{"1000.0001", "1000", true}, {"1000.00", "1000", false}, {"0.3", "0.30", false}, {"9.99", "10", false}} {
		a, errA := Parse(c.a)
		b, errB := Parse(c.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got := a.MoreThan(b); got != c.more {
			t.Errorf("%s more than %s: %v", a, b, got)
		}
	}
}

func TestWhatIsNoAmountIsRefused(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"amount":129.90,"currency":"EUR"}`, `{"amount":"-1","currency":"EUR"}`, `{"amount":"1e3","currency":"EUR"}`,
		`{"amount":"1.23456","currency":"EUR"}`, `{"amount":"","currency":"EUR"}`, `{"amount":"01","currency":"EUR"}`,
		`{"amount":"0.00","currency":"EUR"}`, `{"currency":"EUR"}`, `{"amount":"1","currency":"euro"}`, `{"amount":"NaN","currency":"EUR"}`,
	} {
		var m Money
		err := json.Unmarshal([]byte(body), &m)
		if err == nil {
			err = m.Check()
		}
		if err == nil {
			t.Errorf("%s was taken", body)
		}
	}
}
