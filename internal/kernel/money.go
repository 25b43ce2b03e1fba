package kernel

import (
	"bytes"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strings"

	"github.com/bojanz/currency"
)

// maxMinor bounds an amount, in the currency's minor units: 18 digits, far more money than there is. Sums of two fit into an int64.
const maxMinor = 1_000_000_000_000_000_000 - 1

// Errors of calculating with money; test with errors.Is.
var (
	ErrCurrencyMismatch = errors.New("the currencies differ")
	ErrOverflow         = errors.New("the result has more than 18 digits")
)

// Money is an exact amount in a currency of ISO 4217, to the currency's minor unit: cents for EUR, whole yen for JPY. It can be compared with ==. Its text form is
// "129.90 EUR", its JSON form {"amount":"129.90","currency":"EUR"}: the amount is a string, since many readers take a JSON number for a binary fraction.
type Money struct {
	minor    int64
	currency string
}

var amountForm = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?$`)

// NewMoney makes money of an amount such as "129.90" or "-5" and a currency such as "EUR". More digits behind the point than the currency has are an error, unless they
// are zeros.
func NewMoney(amount, code string) (Money, error) {
	given := amount + " " + code
	if !amountForm.MatchString(amount) {
		return Money{}, invalid("money", given, "an amount is digits with an optional point, such as 129.90")
	}
	digits, known := currency.GetDigits(code)
	if !known {
		return Money{}, invalid("money", given, "the currency is not one of ISO 4217, such as EUR")
	}
	a, err := currency.NewAmount(amount, code)
	if err != nil {
		return Money{}, invalid("money", given, err.Error())
	}
	if !a.Equal(a.Round()) {
		return Money{}, invalid("money", given, fmt.Sprintf("%s has %d digits behind the point", code, digits))
	}
	minor := a.BigInt()
	if !minor.IsInt64() || minor.Int64() > maxMinor || minor.Int64() < -maxMinor {
		return Money{}, invalid("money", given, fmt.Sprintf("it has more than 18 digits, %d of them behind the point", digits))
	}
	return Money{minor.Int64(), code}, nil
}

// MinorMoney makes money of the currency's minor units: MinorMoney(12990, "EUR") is 129.90 EUR.
func MinorMoney(minor int64, code string) (Money, error) {
	if _, known := currency.GetDigits(code); !known || minor > maxMinor || minor < -maxMinor {
		return Money{}, invalid("money", fmt.Sprintf("%d minor units of %s", minor, code), "a currency of ISO 4217 and at most 18 digits are needed")
	}
	return Money{minor, code}, nil
}

// ParseMoney reads the text form.
func ParseMoney(s string) (Money, error) {
	amount, code, ok := strings.Cut(s, " ")
	if !ok {
		return Money{}, invalid("money", s, "an amount and a currency such as 129.90 EUR are needed")
	}
	return NewMoney(amount, code)
}

// Amount is the number, with as many digits behind the point as the currency has.
func (m Money) Amount() string {
	if m.IsNone() {
		return ""
	}
	a, err := currency.NewAmountFromInt64(m.minor, m.currency)
	if err != nil {
		return "" // the currency was known when the value was made
	}
	return a.Number()
}

// Currency is the code of ISO 4217.
func (m Money) Currency() string { return m.currency }

// Minor is the amount in the currency's minor units.
func (m Money) Minor() int64 { return m.minor }

// String is the text form; empty for none.
func (m Money) String() string {
	if m.IsNone() {
		return ""
	}
	return m.Amount() + " " + m.currency
}

// IsNone reports whether this is the zero value: no money at all, not zero of a currency.
func (m Money) IsNone() bool { return m.currency == "" }

// IsZero reports whether the amount is zero.
func (m Money) IsZero() bool { return m.minor == 0 }

// Sign is -1, 0 or 1.
func (m Money) Sign() int {
	switch {
	case m.minor < 0:
		return -1
	case m.minor > 0:
		return 1
	default:
		return 0
	}
}

// Neg is the same amount with the other sign.
func (m Money) Neg() Money { return Money{-m.minor, m.currency} }

// Add fails with ErrCurrencyMismatch or ErrOverflow.
func (m Money) Add(o Money) (Money, error) {
	if m.currency != o.currency || m.IsNone() {
		return Money{}, fmt.Errorf("adding %s and %s: %w", m, o, ErrCurrencyMismatch)
	}
	return m.bounded(new(big.Int).Add(big.NewInt(m.minor), big.NewInt(o.minor)))
}

// Sub fails as Add does.
func (m Money) Sub(o Money) (Money, error) { return m.Add(o.Neg()) }

// Mul is so many times the amount. It fails with ErrOverflow.
func (m Money) Mul(n int64) (Money, error) {
	return m.bounded(new(big.Int).Mul(big.NewInt(m.minor), big.NewInt(n)))
}

func (m Money) bounded(minor *big.Int) (Money, error) {
	if !minor.IsInt64() || minor.Int64() > maxMinor || minor.Int64() < -maxMinor {
		return Money{}, fmt.Errorf("calculating with %s: %w", m, ErrOverflow)
	}
	return Money{minor.Int64(), m.currency}, nil
}

// Cmp is -1, 0 or 1 as m is less than, equal to or more than o. It fails with ErrCurrencyMismatch.
func (m Money) Cmp(o Money) (int, error) {
	if m.currency != o.currency || m.IsNone() {
		return 0, fmt.Errorf("comparing %s and %s: %w", m, o, ErrCurrencyMismatch)
	}
	return Money{m.minor - o.minor, m.currency}.Sign(), nil
}

// Allocate shares the amount out by weights, without losing or making a minor unit: what division leaves over goes, a unit each, to the first shares that have a weight.
// Weights are not negative, and not all zero.
func (m Money) Allocate(weights ...int) ([]Money, error) {
	total := new(big.Int)
	for _, w := range weights {
		if w < 0 {
			return nil, fmt.Errorf("allocating %s: the weight %d is %w: weights are not negative", m, w, ErrInvalid)
		}
		total.Add(total, big.NewInt(int64(w)))
	}
	if total.Sign() == 0 || m.IsNone() {
		return nil, fmt.Errorf("allocating %s by %d weights: %w: there has to be something to share and a weight above zero", m, len(weights), ErrInvalid)
	}
	shares, left := make([]Money, len(weights)), m.minor
	for i, w := range weights {
		share := new(big.Int).Mul(big.NewInt(m.minor), big.NewInt(int64(w)))
		shares[i] = Money{share.Quo(share, total).Int64(), m.currency} // toward zero, so the rest has the sign of the whole
		left -= shares[i].minor
	}
	unit := int64(m.Sign())
	for i := 0; left != 0; i = (i + 1) % len(shares) {
		if weights[i] > 0 {
			shares[i].minor += unit
			left -= unit
		}
	}
	return shares, nil
}

// Split shares the amount out in n parts that differ by one minor unit at most. n is from 1 to 10,000.
func (m Money) Split(n int) ([]Money, error) {
	const most = 10_000
	if n < 1 || n > most {
		return nil, fmt.Errorf("splitting %s into %d parts: %w: 1 to %d parts are possible", m, n, ErrInvalid, most)
	}
	weights := make([]int, n)
	for i := range weights {
		weights[i] = 1
	}
	return m.Allocate(weights...)
}

// MarshalText implements encoding.TextMarshaler.
func (m Money) MarshalText() ([]byte, error) {
	if m.IsNone() {
		return nil, none("money")
	}
	return []byte(m.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Money) UnmarshalText(b []byte) error {
	v, err := ParseMoney(string(b))
	if err == nil {
		*m = v
	}
	return err
}

type moneyJSON struct {
	Amount   string `json:"amount"`
	Currency string `json:"currency"`
}

// MarshalJSON implements json.Marshaler.
func (m Money) MarshalJSON() ([]byte, error) {
	if m.IsNone() {
		return nil, none("money")
	}
	return json.Marshal(moneyJSON{m.Amount(), m.currency})
}

// UnmarshalJSON implements json.Unmarshaler. An amount that is a JSON number is refused.
func (m *Money) UnmarshalJSON(b []byte) error {
	var j moneyJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return invalid("money", string(b), `an object such as {"amount":"129.90","currency":"EUR"} is needed: `+err.Error())
	}
	v, err := NewMoney(j.Amount, j.Currency)
	if err == nil {
		*m = v
	}
	return err
}

// Value implements driver.Valuer.
func (m Money) Value() (driver.Value, error) { return sqlValue(m) }

// Scan implements sql.Scanner.
func (m *Money) Scan(src any) error {
	return scanText("money", src, func(s string) error { return m.UnmarshalText([]byte(s)) })
}
