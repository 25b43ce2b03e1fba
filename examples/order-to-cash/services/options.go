package services

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/inventory"
	"github.com/vextrus/saga-operator/examples/order-to-cash/shipping"
	"github.com/vextrus/saga-operator/examples/order-to-cash/starter"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	sinkhttp "github.com/vextrus/saga-operator/internal/outbox/sink/http"
)

// The names of the services.
const (
	Orders    = "orders"
	Inventory = "inventory"
	Payments  = "payments"
	Shipping  = "shipping"
	Invoicing = "invoicing"
)

// Names are the names of all services.
var Names = []string{Orders, Inventory, Payments, Shipping, Invoicing}

// What tests and the demo need of the services' own packages.
type (
	// Faults are what a service does wrong on purpose.
	Faults = effect.Faults
	// Duration is how faults tell time.
	Duration = effect.Duration
	// Outage is a time during which shipping is unavailable.
	Outage = shipping.Outage
	// Article is what is delivered of one article.
	Article = inventory.Article
)

// Addresses are where the services listen, each host:port.
type Addresses struct{ Orders, Inventory, Payments, Shipping, Invoicing string }

// of is the address of the service of a name.
func (a *Addresses) of(name string) *string {
	return map[string]*string{Orders: &a.Orders, Inventory: &a.Inventory, Payments: &a.Payments, Shipping: &a.Shipping, Invoicing: &a.Invoicing}[name]
}

func urlOf(u *ordertocash.URLs, name string) *string {
	return map[string]*string{Orders: &u.Orders, Inventory: &u.Inventory, Payments: &u.Payments, Shipping: &u.Shipping, Invoicing: &u.Invoicing}[name]
}

// DefaultAddresses are those that the sagas are written for: ordertocash.DefaultURLs.
func DefaultAddresses() Addresses {
	at := func(url string) string { return strings.TrimPrefix(url, "http://") }
	u := ordertocash.DefaultURLs
	return Addresses{at(u.Orders), at(u.Inventory), at(u.Payments), at(u.Shipping), at(u.Invoicing)}
}

// DefaultPaymentsLimit is the most that a card can be charged, in any currency.
const DefaultPaymentsLimit = "1000.00"

// DefaultStock is plenty of A-7 and B-1, one R-9, and T-1, of which a reservation holds for half a second only.
func DefaultStock() map[string]Article {
	return map[string]Article{"A-7": {Delivered: 100_000}, "B-1": {Delivered: 100_000}, "R-9": {Delivered: 1}, "T-1": {Delivered: 1000, Hold: 500 * time.Millisecond}}
}

// Options say how to run the services. Only the database is required.
type Options struct {
	// DatabaseURL is a connection URL. The role needs to be allowed to create schemas in the database.
	DatabaseURL string
	// Only are the names of the services to run; nil is all.
	Only []string
	// Addresses to listen at; an empty one is a free port of 127.0.0.1. That of a service that does not run here is where it is.
	Addresses Addresses
	// At are the URLs under which sagas find the services; where one is empty, it is that of the address.
	At ordertocash.URLs
	// AnyPort takes a free port of the same host where the one that was asked for is taken.
	AnyPort bool
	// PaymentsLimit is a decimal; empty is DefaultPaymentsLimit.
	PaymentsLimit string
	// Stock is what is delivered of each article that the database does not know yet; nil is DefaultStock.
	Stock map[string]Article
	// Timeout bounds the work for one request, also for one to the operator; zero is ten seconds.
	Timeout time.Duration
	// MaxConns is the most connections of each service to the database; zero is 6.
	MaxConns int32
	// Operator is where orders start their sagas and payments calls back; where it is nil, no saga is started, and whoever asks is called back.
	Operator *Operator
	// OrderEvents is a URL to which what happens to orders is posted, as CloudEvents; nowhere when empty.
	OrderEvents string
	// Logger is told of what goes wrong; nil is nobody.
	Logger *slog.Logger
}

// Operator is the operator's HTTP API, and who the services are to it.
type Operator struct {
	// URL is that of the API: https, without a slash at the end. CallbackURL is what it has participants call; URL by default.
	URL, CallbackURL string
	// CAFile has the certificates, in PEM, that the API's is checked against.
	CAFile string
	// Namespace is where sagas are started, TokenFile has the token of a ServiceAccount that may. Only orders needs them.
	Namespace, TokenFile string
}

// callbacks is for payments: what it may call, and how.
func (o *Operator) callbacks() (prefix string, client *http.Client, err error) {
	const callTimeout, idleTimeout = 10 * time.Second, time.Minute
	if o == nil {
		return "", nil, nil
	}
	text, err := os.ReadFile(o.CAFile)
	if err != nil {
		return "", nil, fmt.Errorf("reading the CA of the operator's API: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return "", nil, fmt.Errorf("reading the CA of the operator's API: there is no certificate in %s", o.CAFile)
	}
	return cmp.Or(o.CallbackURL, o.URL) + "/v1/callbacks/", &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, IdleConnTimeout: idleTimeout, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the URL has a secret in it, and goes nowhere else
		Timeout:       callTimeout,
	}, nil
}

func (o Options) withDefaults() (Options, error) {
	if o.DatabaseURL == "" {
		return o, errors.New("no database is named; set DATABASE_URL, for example postgres://user@127.0.0.1:5432/shop")
	}
	if o.Only == nil {
		o.Only = Names
	}
	for i, name := range o.Only {
		if !slices.Contains(Names, name) || slices.Contains(o.Only[:i], name) {
			return o, fmt.Errorf("service %q: there are %s, each once", name, strings.Join(Names, ", "))
		}
	}
	if o.PaymentsLimit == "" {
		o.PaymentsLimit = DefaultPaymentsLimit
	}
	if o.Stock == nil {
		o.Stock = DefaultStock()
	}
	if o.Timeout == 0 {
		o.Timeout = effect.DefaultTimeout
	}
	if o.MaxConns == 0 {
		o.MaxConns = 6
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// The pauses between attempts at one message. An API that is away costs none of them; a saga that cannot be started for many hours although others can is a dead letter, for a person.
const (
	attempts     = 5000
	firstBackoff = 200 * time.Millisecond
	longest      = 10 * time.Second // a request whose operator was killed holds its key for half a minute, and the order waits for that
)

// publish has orders start sagas, and tell whoever wants to know what happens to them.
func (s *Services) publish(ctx context.Context) error {
	if s.orders == nil {
		return nil
	}
	retry := outbox.Retry{MaxAttempts: attempts, InitialBackoff: firstBackoff, MaxBackoff: longest}
	if api := s.options.Operator; api != nil {
		for _, name := range Names {
			if *urlOf(&s.urls, name) == "" {
				return fmt.Errorf("orders start sagas, which have to know where %s is: an address or a URL is needed", name)
			}
		}
		definition, err := ordertocash.OrderToCash(s.urls)
		if err != nil {
			return err
		}
		to, err := starter.New(starter.Config{URL: api.URL, Namespace: api.Namespace, TokenFile: api.TokenFile, CAFile: api.CAFile, Definition: definition, Timeout: s.options.Timeout})
		if err != nil {
			return err
		}
		if err := s.orders.PublishTo(ctx, outbox.Sink{ID: "sagas", Name: "sagas", Publisher: to, Wants: starter.Wants, Retry: retry}); err != nil {
			return err
		}
	}
	if url := s.options.OrderEvents; url != "" {
		to, err := sinkhttp.New(sinkhttp.Config{Connection: sink.Connection{Dial: (&net.Dialer{}).DialContext}, URL: url, UserAgent: "order-to-cash"})
		if err != nil {
			return err
		}
		return s.orders.PublishTo(ctx, outbox.Sink{ID: "order-events", Name: "order-events", Publisher: to, Retry: retry})
	}
	return nil
}
