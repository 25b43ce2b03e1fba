// Package money is amounts of money as exact decimals: strings in JSON, numeric in PostgreSQL, never a binary fraction.
package money

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
)

// Money is an amount in a currency.
type Money struct {
	Amount   Amount `json:"amount"`
	Currency string `json:"currency"`
}

var currency = regexp.MustCompile(`^[A-Z]{3}$`)

// Check says what is wrong: there is no currency, or nothing to pay.
func (m Money) Check() error {
	if m.Amount.digits == "" || m.Amount.value.Sign() == 0 {
		return errors.New("amount: more than nothing is needed")
	}
	if !currency.MatchString(m.Currency) {
		return fmt.Errorf("currency: %q is not three capital letters", m.Currency)
	}
	return nil
}

// Amount is a decimal, zero or more, with at most 12 digits before and 4 behind the point, as it was written: 12.90 keeps its zero.
type Amount struct {
	digits string
	value  *big.Rat
}

var decimal = regexp.MustCompile(`^(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?$`)

// Parse reads an amount.
func Parse(s string) (Amount, error) {
	if !decimal.MatchString(s) {
		return Amount{}, fmt.Errorf("%q is not an amount such as 129.90", s)
	}
	value, _ := new(big.Rat).SetString(s)
	return Amount{s, value}, nil
}

// String is the amount as it was written, which is also how PostgreSQL reads it.
func (a Amount) String() string { return a.digits }

// MoreThan compares by value. Both amounts must have been parsed.
func (a Amount) MoreThan(b Amount) bool { return a.value.Cmp(b.value) > 0 }

// MarshalText writes the amount.
func (a Amount) MarshalText() ([]byte, error) { return []byte(a.digits), nil }

// UnmarshalText reads the amount. A JSON number is not text, and therefore refused.
func (a *Amount) UnmarshalText(text []byte) (err error) {
	*a, err = Parse(string(text))
	return err
}
