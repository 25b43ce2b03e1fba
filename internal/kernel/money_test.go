package kernel_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vextrus/saga-operator/internal/kernel"
)

func TestMoneyHasTheDigitsOfItsCurrency(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"1.5 EUR": "1.50 EUR", "1.50 EUR": "1.50 EUR", "1.500 EUR": "1.50 EUR", "7 JPY": "7 JPY", "7.0 JPY": "7 JPY", "-0.01 USD": "-0.01 USD", "0 EUR": "0.00 EUR", "-0 EUR": "0.00 EUR",
		"1.234 KWD": "1.234 KWD", "9999999999999999.99 EUR": "9999999999999999.99 EUR",
	} {
		if m, err := kernel.ParseMoney(given); err != nil || m.String() != want {
			t.Errorf("%s is %s, %v; want %s", given, m, err, want)
		}
	}
	if must(kernel.ParseMoney("1.5 EUR")) != must(kernel.MinorMoney(150, "EUR")) {
		t.Error("the same amount is not the same value")
	}
	for given, want := range map[string]string{
		"1.999 EUR": "EUR has 2 digits behind the point", "1.5 JPY": "JPY has 0 digits", "1 XXL": "ISO 4217", "1 eur": "ISO 4217", "1": "an amount and a currency", "": "an amount",
		"+1 EUR": "amount is digits", "1e3 EUR": "amount is digits", "NaN EUR": "amount is digits", "Infinity EUR": "amount is digits", "01 EUR": "amount is digits", "1. EUR": "amount is digits",
		".5 EUR": "amount is digits", "1,5 EUR": "amount is digits", "1  EUR": "ISO 4217", "10000000000000000.00 EUR": "more than 18 digits", "1 EUR ": "ISO 4217",
		strings.Repeat("9", 4000) + " EUR": "amount is digits",
	} {
		if m, err := kernel.ParseMoney(given); !errors.Is(err, kernel.ErrInvalid) || !strings.Contains(err.Error(), want) || len(err.Error()) > 300 {
			t.Errorf("%.40s is %s, error %v; want one with %q", given, m, err, want)
		}
	}
}

func TestMoneyInJSONIsExactOrRefused(t *testing.T) {
	t.Parallel()
	if data, err := json.Marshal(must(kernel.ParseMoney("129.9 EUR"))); err != nil || string(data) != `{"amount":"129.90","currency":"EUR"}` {
		t.Errorf("%s, %v", data, err)
	}
	for _, bad := range []string{`{"amount":129.90,"currency":"EUR"}`, `{"amount":"129.90"}`, `{}`, `"129.90 EUR"`, `{"amount":"1","currency":"EUR","more":1}`, `[]`, `null`} {
		var m kernel.Money
		if err := json.Unmarshal([]byte(bad), &m); !errors.Is(err, kernel.ErrInvalid) && bad != "null" || !m.IsNone() {
			t.Errorf("%s is %s, %v", bad, m, err)
		}
	}
}

func TestCurrenciesDoNotMix(t *testing.T) {
	t.Parallel()
	euro, yen := must(kernel.ParseMoney("1 EUR")), must(kernel.ParseMoney("1 JPY"))
	_, added := euro.Add(yen)
	_, subtracted := euro.Sub(yen)
	_, compared := euro.Cmp(yen)
	_, nothing := kernel.Money{}.Add(kernel.Money{})
	for _, err := range []error{added, subtracted, compared, nothing} {
		if !errors.Is(err, kernel.ErrCurrencyMismatch) {
			t.Errorf("error %v", err)
		}
	}
}

func TestTooMuchMoneyIsAnErrorNotAWrongNumber(t *testing.T) {
	t.Parallel()
	most := must(kernel.MinorMoney(1e18-1, "EUR"))
	_, added := most.Add(must(kernel.MinorMoney(1, "EUR")))
	_, subtracted := most.Neg().Sub(must(kernel.MinorMoney(1, "EUR")))
	_, doubled := most.Mul(2)
	_, wrapped := most.Mul(math.MaxInt64)
	for _, err := range []error{added, subtracted, doubled, wrapped} {
		if !errors.Is(err, kernel.ErrOverflow) {
			t.Errorf("error %v", err)
		}
	}
	for _, minor := range []int64{1e18, -1e18, math.MinInt64} {
		if _, err := kernel.MinorMoney(minor, "EUR"); !errors.Is(err, kernel.ErrInvalid) {
			t.Errorf("%d minor units: %v", minor, err)
		}
	}
	if shares, err := most.Allocate(math.MaxInt, math.MaxInt, 1); err != nil || sum(t, shares) != most {
		t.Errorf("shares %v, %v", shares, err)
	}
}

func TestSharesThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	ten := must(kernel.ParseMoney("10 EUR"))
	for _, weights := range [][]int{nil, {}, {0, 0}, {1, -1}} {
		if _, err := ten.Allocate(weights...); !errors.Is(err, kernel.ErrInvalid) {
			t.Errorf("weights %v: %v", weights, err)
		}
	}
	for _, n := range []int{0, -1, 10_001} {
		if _, err := ten.Split(n); !errors.Is(err, kernel.ErrInvalid) {
			t.Errorf("%d parts: %v", n, err)
		}
	}
	if shares := must(ten.Allocate(0, 1, 2)); shares[0].String() != "0.00 EUR" || shares[1].String() != "3.34 EUR" || shares[2].String() != "6.66 EUR" {
		t.Errorf("shares %v", shares)
	}
}

func sum(t interface{ Fatal(...any) }, all []kernel.Money) kernel.Money {
	total := all[0]
	for _, m := range all[1:] {
		var err error
		if total, err = total.Add(m); err != nil {
			t.Fatal(err)
		}
	}
	return total
}

var (
	codes  = rapid.SampledFrom([]string{"EUR", "USD", "JPY", "KWD", "CHF", "XCG"})
	amount = rapid.Int64Range(-1e17, 1e17)
)

func TestMoneyAddsUp(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		code := codes.Draw(t, "currency")
		draw := func(name string) kernel.Money { return must(kernel.MinorMoney(amount.Draw(t, name), code)) }
		a, b, c := draw("a"), draw("b"), draw("c")
		if must(a.Add(b)) != must(b.Add(a)) {
			t.Fatal("a + b is not b + a")
		}
		if must(must(a.Add(b)).Add(c)) != must(a.Add(must(b.Add(c)))) {
			t.Fatal("(a + b) + c is not a + (b + c)")
		}
		if must(must(a.Sub(b)).Add(b)) != a || !must(a.Add(a.Neg())).IsZero() {
			t.Fatal("what is taken away and given back is not the same")
		}
		if must(a.Mul(3)) != must(must(a.Add(a)).Add(a)) {
			t.Fatal("three times a is not a + a + a")
		}
		if must(a.Cmp(b)) != must(a.Sub(b)).Sign() || must(a.Cmp(b)) != -must(b.Cmp(a)) {
			t.Fatal("comparing does not agree with subtracting")
		}
		if must(kernel.ParseMoney(a.String())) != a {
			t.Fatalf("%s does not read as itself", a)
		}
		var back kernel.Money
		if err := json.Unmarshal(must(json.Marshal(a)), &back); err != nil || back != a {
			t.Fatalf("%s came back from JSON as %s, %v", a, back, err)
		}
	})
}

func TestNoCentIsLostInSharing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := must(kernel.MinorMoney(amount.Draw(t, "amount"), codes.Draw(t, "currency")))
		weights := rapid.SliceOfN(rapid.IntRange(0, 1000), 1, 20).Draw(t, "weights")
		total := 0
		for _, w := range weights {
			total += w
		}
		if total == 0 {
			return
		}
		shares := must(m.Allocate(weights...))
		if sum(t, shares) != m {
			t.Fatalf("%s became %v", m, shares)
		}
		for i, s := range shares {
			exact := float64(m.Minor()) * float64(weights[i]) / float64(total)
			if math.Abs(float64(s.Minor())-exact) > 1+math.Abs(exact)*1e-12 {
				t.Fatalf("share %d of %s is %s, exactly it would be %f minor units", i, m, s, exact)
			}
			if weights[i] == 0 && !s.IsZero() {
				t.Fatalf("a share without weight is %s", s)
			}
		}
	})
}

func FuzzMoney(f *testing.F) {
	for _, s := range []string{`{"amount":"129.90","currency":"EUR"}`, `{"amount":"-1","currency":"JPY"}`, `{"amount":"1e9","currency":"USD"}`, `null`, `7`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m kernel.Money
		if json.Unmarshal(data, &m) != nil || m.IsNone() {
			return
		}
		encoded, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("%s was read, but cannot be written: %v", data, err)
		}
		var again kernel.Money
		if err := json.Unmarshal(encoded, &again); err != nil || again != m {
			t.Errorf("%s became %s, then %s, %v", data, m, again, err)
		}
	})
}

func FuzzEmail(f *testing.F) {
	for _, s := range []string{"ada@example.com", "a@b@c", "<x@y>", "ü@ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := kernel.ParseEmail(s)
		if err != nil {
			return
		}
		if again, err := kernel.ParseEmail(e.String()); err != nil || again != e {
			t.Errorf("%q became %q, then %q, %v", s, e, again, err)
		}
	})
}

func TestReadingWhatIsNotMoneyLeavesWhatWasThere(t *testing.T) {
	t.Parallel()
	want, err := kernel.ParseMoney("129.90 EUR")
	if err != nil {
		t.Fatal(err)
	}
	m := want
	for name, err := range map[string]error{"text": m.UnmarshalText([]byte("12.9O EUR")), "JSON": m.UnmarshalJSON([]byte(`{"amount":"x","currency":"EUR"}`)), "SQL": m.Scan("1 EURO")} {
		if err == nil {
			t.Errorf("%s: it was read", name)
		}
	}
	if m != want {
		t.Errorf("%v is left of %v", m, want)
	}
}
