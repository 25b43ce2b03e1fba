package kernel_test

import (
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestAQuantityIsAPositiveBoundedCount(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{-1, 0, kernel.MaxQuantity + 1} {
		if q, err := kernel.NewQuantity(n); !errors.Is(err, kernel.ErrInvalid) {
			t.Errorf("%d is %v, %v", n, q, err)
		}
	}
	two, three := must(kernel.NewQuantity(2)), must(kernel.NewQuantity(3))
	if five, err := two.Add(three); err != nil || five.Int64() != 5 {
		t.Errorf("2 + 3 = %v, %v", five, err)
	}
	if _, err := two.Sub(two); !errors.Is(err, kernel.ErrInvalid) {
		t.Errorf("2 - 2: %v", err)
	}
	if _, err := must(kernel.NewQuantity(kernel.MaxQuantity)).Add(two); !errors.Is(err, kernel.ErrInvalid) {
		t.Errorf("more than the most: %v", err)
	}
}

func TestAnEmailIsAPlainAddress(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"ada@example.com", "a.b+c@x.co", "ü@example.com", "x@[127.0.0.1]"} {
		if e, err := kernel.ParseEmail(good); err != nil || e.String() != good {
			t.Errorf("%q is %v, %v", good, e, err)
		}
	}
	if e, err := kernel.ParseEmail("Ada@EXAMPLE.com"); err != nil || e.String() != "Ada@example.com" || e.Domain() != "example.com" {
		t.Errorf("%v, %v; want the domain in lower case and the rest as it is", e, err)
	}
	for _, bad := range []string{
		"", "ada", "@example.com", "ada@", "Ada <ada@example.com>", "<ada@example.com>", " ada@example.com", "ada@example.com\n", "a b@example.com", `"a b"@example.com`,
		"ada@example.com, bob@example.com", "ada(comment)@example.com", strings.Repeat("a", 250) + "@example.com",
	} {
		if e, err := kernel.ParseEmail(bad); !errors.Is(err, kernel.ErrInvalid) {
			t.Errorf("%q is %v, %v", bad, e, err)
		}
	}
}

func parts() kernel.AddressParts {
	return kernel.AddressParts{Name: "Ada Lovelace", Lines: []string{"12 St James's Square"}, PostalCode: "SW1Y 4JH", City: "London", Country: "GB"}
}

func TestAnAddressHasWhatALetterNeeds(t *testing.T) {
	t.Parallel()
	a, err := kernel.NewAddress(parts())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(parts(), a.Parts()); diff != "" {
		t.Error(diff)
	}
	spaced := parts()
	spaced.City = "  London "
	if b := must(kernel.NewAddress(spaced)); b != a {
		t.Error("spaces around a part make another address")
	}
	for name, spoil := range map[string]func(*kernel.AddressParts){
		"name": func(p *kernel.AddressParts) { p.Name = " " }, "city": func(p *kernel.AddressParts) { p.City = "" },
		"country": func(p *kernel.AddressParts) { p.Country = "XX" }, "address country": func(p *kernel.AddressParts) { p.Country = "gb" },
		"lines": func(p *kernel.AddressParts) { p.Lines = nil }, "1 to 4 lines": func(p *kernel.AddressParts) { p.Lines = make([]string, 5) },
		"lines[1]": func(p *kernel.AddressParts) { p.Lines = []string{"a", ""} }, "lines[0]": func(p *kernel.AddressParts) { p.Lines = []string{"a\nb"} },
		"postalCode": func(p *kernel.AddressParts) { p.PostalCode = "\xff" }, "region": func(p *kernel.AddressParts) { p.Region = strings.Repeat("r", 201) },
	} {
		p := parts()
		spoil(&p)
		if _, err := kernel.NewAddress(p); !errors.Is(err, kernel.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	p := a.Parts()
	p.Lines[0] = "elsewhere"
	if a.Parts().Lines[0] != parts().Lines[0] {
		t.Error("whoever has the parts can change the address")
	}
}

type order struct{}

func TestIDsAreNewSortedAndStrict(t *testing.T) {
	t.Parallel()
	last := ""
	for range 1000 {
		id := must(kernel.NewID[order]())
		if id.UUID().Version() != 7 || id.String() <= last {
			t.Fatalf("%s follows %s", id, last)
		}
		last = id.String()
	}
	for _, bad := range []string{"", uuid.Nil.String(), uuid.Max.String(), "{" + last + "}", strings.ReplaceAll(last, "-", ""), last + "0", "urn:uuid:" + last, "x" + last[1:]} {
		if id, err := kernel.ParseID[order](bad); !errors.Is(err, kernel.ErrInvalid) {
			t.Errorf("%q is %v, %v", bad, id, err)
		}
	}
	if id := must(kernel.ParseID[order](strings.ToUpper(last))); id.String() != last {
		t.Errorf("%s is not in lower case", id)
	}
}

// textValue is one whose JSON form is its text form.
type textValue[T any] struct{ V T }

// roundTrip sends a value through JSON and a real database and compares what comes back.
func roundTrip[T interface {
	comparable
	driver.Valuer
}](t *testing.T, conn *pgx.Conn, v T, sqlType string) {
	t.Helper()
	data, err := json.Marshal(textValue[T]{v})
	if err != nil {
		t.Fatal(err)
	}
	var back textValue[T]
	if err := json.Unmarshal(data, &back); err != nil || back.V != v {
		t.Errorf("%v came back from %s as %v, %v", v, data, back.V, err)
	}
	var read T
	scan, ok := any(&read).(sql.Scanner)
	if !ok {
		t.Fatalf("a %T cannot be scanned", v)
	}
	if err := conn.QueryRow(t.Context(), `SELECT $1::`+sqlType, v).Scan(scan); err != nil || read != v {
		t.Errorf("%v came back from the database as %v, %v", v, read, err)
	}
	var null T
	if err := conn.QueryRow(t.Context(), `SELECT NULL::`+sqlType).Scan(any(&null).(sql.Scanner)); !errors.Is(err, kernel.ErrInvalid) { //nolint:forcetypeassert // checked above
		t.Errorf("NULL became a %T: %v, %v", v, null, err)
	}
	// The zero value is nothing, and must not be stored as something.
	if data, err := json.Marshal(textValue[T]{null}); !errors.Is(err, kernel.ErrInvalid) {
		t.Errorf("none was encoded as %s, %v", data, err)
	}
	if stored, err := null.Value(); !errors.Is(err, kernel.ErrInvalid) {
		t.Errorf("none was stored as %v, %v", stored, err)
	}
}

func TestValuesComeBackFromJSONAndTheDatabase(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), throwaway.EmptyDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	for _, s := range []string{"129.90 EUR", "-0.05 USD", "0.00 EUR", "1042 JPY", "1.234 KWD", "9999999999999999.99 EUR"} {
		roundTrip(t, conn, must(kernel.ParseMoney(s)), "text")
	}
	roundTrip(t, conn, must(kernel.NewQuantity(7)), "bigint")
	roundTrip(t, conn, must(kernel.ParseEmail("ada@example.com")), "text")
	roundTrip(t, conn, must(kernel.NewAddress(parts())), "text")
	roundTrip(t, conn, must(kernel.NewID[order]()), "uuid::text")
}

func TestErrorsRepeatNoMoreThanNeeded(t *testing.T) {
	t.Parallel()
	_, err := kernel.ParseEmail(strings.Repeat("ä", 4000))
	if err == nil || len(err.Error()) > 300 || !strings.Contains(err.Error(), "…") {
		t.Errorf("error %v", err)
	}
}
