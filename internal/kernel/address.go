package kernel

import (
	"bytes"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/language"
)

const (
	maxLines     = 4
	maxLineBytes = 200
)

// AddressParts are what an address is made of. Name, one to four lines, city and country are needed; postal code and region where the country has them. Each is at most 200
// bytes of text without control characters; spaces around it are taken off.
type AddressParts struct {
	Name       string   `json:"name"`
	Lines      []string `json:"lines"`
	PostalCode string   `json:"postalCode,omitempty"`
	City       string   `json:"city"`
	Region     string   `json:"region,omitempty"`
	// Country is a code of ISO 3166-1, such as DE.
	Country string `json:"country"`
}

// Address is where a letter or a parcel goes. It can be compared with ==.
type Address struct {
	name, postalCode, city, region, country string
	lines                                   [maxLines]string
}

// NewAddress makes an address.
func NewAddress(p AddressParts) (Address, error) {
	a := Address{name: p.Name, postalCode: p.PostalCode, city: p.City, region: p.Region, country: p.Country}
	if len(p.Lines) < 1 || len(p.Lines) > maxLines {
		return Address{}, invalid("address", strings.Join(p.Lines, ", "), fmt.Sprintf("it has 1 to %d lines", maxLines))
	}
	copy(a.lines[:], p.Lines)
	needed := map[*string]string{&a.name: "name", &a.city: "city", &a.lines[0]: "lines[0]", &a.country: "country"}
	for part, field := range map[*string]string{
		&a.name: "name", &a.postalCode: "postalCode", &a.city: "city", &a.region: "region", &a.country: "country",
		&a.lines[0]: "lines[0]", &a.lines[1]: "lines[1]", &a.lines[2]: "lines[2]", &a.lines[3]: "lines[3]",
	} {
		*part = strings.TrimSpace(*part)
		if len(*part) > maxLineBytes || !utf8.ValidString(*part) || strings.ContainsFunc(*part, unicode.IsControl) {
			return Address{}, invalid("address "+field, *part, fmt.Sprintf("at most %d bytes of text on one line are possible", maxLineBytes))
		}
		if _, must := needed[part]; must && *part == "" {
			return Address{}, invalid("address "+field, "", "it is needed")
		}
	}
	for i := 1; i < len(p.Lines); i++ {
		if a.lines[i] == "" {
			return Address{}, invalid(fmt.Sprintf("address lines[%d]", i), "", "a line that is there is not empty")
		}
	}
	if region, err := language.ParseRegion(a.country); err != nil || !region.IsCountry() || region.String() != a.country {
		return Address{}, invalid("address country", a.country, "a code of ISO 3166-1 such as DE is needed")
	}
	return a, nil
}

// Parts are what the address is made of.
func (a Address) Parts() AddressParts {
	p := AddressParts{Name: a.name, PostalCode: a.postalCode, City: a.city, Region: a.region, Country: a.country}
	for _, l := range a.lines {
		if l != "" {
			p.Lines = append(p.Lines, l)
		}
	}
	return p
}

// IsNone reports whether this is the zero value.
func (a Address) IsNone() bool { return a == Address{} }

// MarshalJSON implements json.Marshaler.
func (a Address) MarshalJSON() ([]byte, error) {
	if a.IsNone() {
		return nil, none("address")
	}
	return json.Marshal(a.Parts())
}

// UnmarshalJSON implements json.Unmarshaler. Unknown fields are refused: an address that loses a line goes astray.
func (a *Address) UnmarshalJSON(b []byte) error {
	var p AddressParts
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return invalid("address", string(b), err.Error())
	}
	v, err := NewAddress(p)
	if err == nil {
		*a = v
	}
	return err
}

// Value implements driver.Valuer: the JSON form.
func (a Address) Value() (driver.Value, error) {
	b, err := a.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return string(b), nil
}

// Scan implements sql.Scanner.
func (a *Address) Scan(src any) error {
	return scanText("address", src, func(s string) error { return a.UnmarshalJSON([]byte(s)) })
}
