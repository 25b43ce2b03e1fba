// Package customers makes up orders as customers place them, and places them: many go through, and some fail at each step of their saga. The same seed makes the same orders.
package customers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/goods"
	"github.com/vextrus/saga-operator/internal/kernel"
)

// Kind is what is special about an order.
type Kind string

// The kinds: one that goes through, and one for each step of the saga at which an order can fail.
const (
	GoesThrough Kind = "goes through"
	Withdrawn   Kind = "is withdrawn by its customer"       // refused at accept-order, where the customer is faster
	OutOfStock  Kind = "is out of stock"                    // at reserve-stock
	Declined    Kind = "has a card that is declined"        // at authorize
	NoCarrier   Kind = "goes where no carrier goes"         // at print-label
	Expires     Kind = "waits for too long, and expires"    // at commit-stock
	FailsLater  Kind = "is declined when money is captured" // at capture, by a callback
	NoBooks     Kind = "is in a currency without books"     // at invoice
	TooLarge    Kind = "is too large a parcel to pick up"   // at pick-up
)

// Kinds are all of them.
var Kinds = []Kind{GoesThrough, Withdrawn, OutOfStock, Declined, NoCarrier, Expires, FailsLater, NoBooks, TooLarge}

// Order is an order to be placed.
type Order struct {
	Order    string       `json:"order"`
	Customer string       `json:"customer"`
	Card     string       `json:"card"`
	Country  string       `json:"country"`
	Lines    []goods.Line `json:"lines"`
	Total    kernel.Money `json:"total"`

	Kind Kind `json:"-"`
}

// Key is the idempotency key that the order is placed under.
func (o *Order) Key() string { return "place-" + o.Order }

// Ends are the statuses that the order can end with, unless somebody commits faults beside that.
func (o *Order) Ends() []string {
	switch o.Kind {
	case GoesThrough:
		return []string{"fulfilled"}
	case Withdrawn: // whoever is faster, the customer or the saga
		return []string{"fulfilled", "cancelled"}
	default:
		return []string{"cancelled"}
	}
}

// DelaysShipping tells how many requests for its label shipping has to turn away, so that the order becomes what it is.
func (o *Order) DelaysShipping() int {
	if o.Kind == Expires {
		return 2
	}
	return 0
}

// The articles, as services.DefaultStock delivers them, and their prices in cents.
var prices = map[string]int64{"A-7": 250, "B-1": 1295, "T-1": 990, "R-9": 4900}

// Make makes up n orders, whose ids begin with a prefix. The first are one of each kind, in some order; of the others two in three go through.
func Make(seed uint64, prefix string, n int) ([]Order, error) {
	chance := rand.New(rand.NewPCG(seed, seed))
	first := chance.Perm(len(Kinds))
	all := make([]Order, n)
	for i := range all {
		kind := GoesThrough
		switch {
		case i < len(first):
			kind = Kinds[first[i]]
		case chance.IntN(3) == 0:
			kind = Kinds[chance.IntN(len(Kinds))]
		}
		var err error
		if all[i], err = makeUp(chance, kind, fmt.Sprintf("%s%d", prefix, i+1)); err != nil {
			return nil, fmt.Errorf("making up an order: %w", err)
		}
	}
	return all, nil
}

func makeUp(chance *rand.Rand, kind Kind, id string) (Order, error) {
	o := Order{
		Order: id, Kind: kind, Customer: fmt.Sprintf("c-%d", 1+chance.IntN(99)), Card: fmt.Sprintf("card-%04d", chance.IntN(10_000)),
		Country: []string{"AT", "DE", "FR", "NL"}[chance.IntN(4)],
		Lines:   []goods.Line{{SKU: "B-1", Quantity: 1 + chance.Int64N(3)}},
	}
	if chance.IntN(2) == 0 {
		o.Lines = append(o.Lines, goods.Line{SKU: "A-7", Quantity: 1 + chance.Int64N(20)})
	}
	currency := []string{"EUR", "CHF"}[chance.IntN(2)]
	switch kind {
	case OutOfStock:
		o.Lines = append(o.Lines, goods.Line{SKU: "R-9", Quantity: 2}) // there is one
	case Declined:
		o.Card = "card-declined"
	case NoCarrier:
		o.Country = "AQ"
	case Expires:
		o.Lines = append(o.Lines, goods.Line{SKU: "T-1", Quantity: 1}) // held for half a second
	case FailsLater:
		o.Card = "card-fails-later"
	case NoBooks:
		currency = "SEK"
	case TooLarge:
		o.Lines = []goods.Line{{SKU: "A-7", Quantity: 41 + chance.Int64N(20)}}
	}
	var cents int64
	for _, l := range o.Lines {
		cents += prices[l.SKU] * l.Quantity
	}
	var err error
	o.Total, err = kernel.MinorMoney(cents, currency)
	return o, err
}

// ErrNotNow says that a service did not answer, or could not do as it was asked just now.
var ErrNotNow = errors.New("not now")

// Place places an order at the service, and withdraws it where that is its kind. Answers other than 201 are errors; it can be called again.
func (o *Order) Place(ctx context.Context, client *http.Client, orders string) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	status, text, err := post(ctx, client, orders+"/orders", o.Key(), body)
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("it answered %d: %s", status, text)
	}
	if err != nil {
		return fmt.Errorf("placing order %s: %w", o.Order, err)
	}
	if o.Kind != Withdrawn {
		return nil
	}
	status, text, err = post(ctx, client, orders+"/orders/"+o.Order+"/withdraw", "withdraw-"+o.Order, nil)
	if err == nil && status != http.StatusOK && status != http.StatusConflict { // too late is an answer, too
		err = fmt.Errorf("it answered %d: %s", status, text)
	}
	if err != nil {
		return fmt.Errorf("withdrawing order %s: %w", o.Order, err)
	}
	return nil
}

// Delay has shipping turn requests for an order away, where that is its kind.
func (o *Order) Delay(ctx context.Context, client *http.Client, shipping string) error {
	n := o.DelaysShipping()
	if n == 0 {
		return nil
	}
	status, text, err := post(ctx, client, shipping+"/admin/outage", "", fmt.Appendf(nil, `{"order": %q, "requests": %d}`, o.Order, n))
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("it answered %d: %s", status, text)
	}
	if err != nil {
		return fmt.Errorf("telling shipping to turn order %s away: %w", o.Order, err)
	}
	return nil
}

func post(ctx context.Context, client *http.Client, url, key string, body []byte) (status int, text string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("%w: %w", ErrNotNow, err)
	}
	defer resp.Body.Close()
	const enough = 4 << 10
	answer, err := io.ReadAll(io.LimitReader(resp.Body, enough))
	text = string(bytes.TrimSpace(answer))
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrNotNow, err)
	case resp.StatusCode >= http.StatusInternalServerError:
		err = fmt.Errorf("%w: it answered %d: %s", ErrNotNow, resp.StatusCode, text)
	}
	return resp.StatusCode, text, err
}
