package shipping

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
)

const (
	maxSeconds = 3600
	maxOrders  = 10_000
	// retryAfter is what callers are told while the end is a number of requests, not a time.
	retryAfter = time.Second
)

// Outage is a time during which the service is unavailable: it answers 429 and has no effect.
type Outage struct {
	// Order is the order whose requests are turned away; empty is every order.
	Order string `json:"order,omitempty"`
	// Requests is how many requests are turned away.
	Requests int `json:"requests,omitempty"`
	// Seconds is for how long requests are turned away, at most an hour. Not with Order.
	Seconds int `json:"seconds,omitempty"`
}

func (o Outage) check() error {
	if o.Order != "" {
		if err := effect.CheckOrder(o.Order); err != nil {
			return err
		}
		if o.Seconds != 0 {
			return errors.New("seconds: an outage for one order is counted in requests")
		}
	}
	if o.Requests < 0 || o.Seconds < 0 || o.Seconds > maxSeconds {
		return fmt.Errorf("requests must not be negative, and seconds must be between 0 and %d", maxSeconds)
	}
	return nil
}

// outages are the outages that are left.
type outages struct {
	mu      sync.Mutex
	until   time.Time
	all     int
	byOrder map[string]int
}

// Outage replaces the outage of the same scope: of one order, or of all. One without Requests and Seconds ends it.
func (s *Service) Outage(o Outage) error {
	if err := o.check(); err != nil {
		return err
	}
	out := &s.outages
	out.mu.Lock()
	defer out.mu.Unlock()
	switch {
	case o.Order == "":
		out.all, out.until = o.Requests, time.Now().Add(time.Duration(o.Seconds)*time.Second)
	case o.Requests == 0:
		delete(out.byOrder, o.Order)
	case len(out.byOrder) >= maxOrders:
		return fmt.Errorf("there are %d orders with an outage already", maxOrders)
	default:
		if out.byOrder == nil {
			out.byOrder = map[string]int{}
		}
		out.byOrder[o.Order] = o.Requests
	}
	return nil
}

// pause counts one request, and tells how long its caller should wait; zero is not at all.
func (o *outages) pause(order string, now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if left := o.until.Sub(now); left > 0 {
		return left
	}
	if o.byOrder[order] > 0 {
		if o.byOrder[order]--; o.byOrder[order] == 0 {
			delete(o.byOrder, order)
		}
		return retryAfter
	}
	if o.all > 0 {
		o.all--
		return retryAfter
	}
	return 0
}

func (s *Service) postOutage(w http.ResponseWriter, r *http.Request) {
	var o Outage
	err := effect.DecodeBody(w, r, &o)
	if err == nil {
		err = s.Outage(o)
	}
	if err != nil {
		effect.WriteMessage(w, http.StatusBadRequest, err.Error())
		return
	}
	effect.Write(w, http.StatusOK, o)
}
