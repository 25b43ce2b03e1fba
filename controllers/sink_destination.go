package controllers

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	sinkhttp "github.com/vextrus/saga-operator/internal/outbox/sink/http"
	"github.com/vextrus/saga-operator/internal/outbox/sink/kafka"
	"github.com/vextrus/saga-operator/internal/outbox/sink/nats"
	"github.com/vextrus/saga-operator/internal/outbox/sink/rabbitmq"
)

// destination is where a spec has messages go.
type destination struct {
	kind v1.SinkKind
	// hosts are those that the spec names.
	hosts []string
	// encrypted says that the connection is.
	encrypted bool
	// publisher makes what carries messages there. A new kind is one more of these.
	publisher func(c sink.Connection, userAgent string) (outbox.Publisher, error)
}

// kindOf names the kind of destination of a spec.
func kindOf(spec *v1.SinkSpec) v1.SinkKind {
	switch {
	case spec.HTTP != nil:
		return v1.SinkHTTP
	case spec.NATS != nil:
		return v1.SinkNATS
	case spec.Kafka != nil:
		return v1.SinkKafka
	case spec.RabbitMQ != nil:
		return v1.SinkRabbitMQ
	}
	return ""
}

// destinationOf reads where a spec has messages go. The schema refuses most of what is wrong; what is gone by is looked at here all the same, in the form in which it is used.
func destinationOf(spec *v1.SinkSpec) (*destination, error) {
	d := &destination{kind: kindOf(spec)}
	var err error
	switch d.kind {
	case v1.SinkHTTP:
		err = d.readURL("spec.http.url", spec.HTTP.URL, "http", "https")
		d.publisher = func(c sink.Connection, userAgent string) (outbox.Publisher, error) {
			headers := make(map[string]string, len(spec.HTTP.Headers))
			for name, value := range spec.HTTP.Headers {
				headers[name] = string(value)
			}
			return publisher(sinkhttp.New(sinkhttp.Config{Connection: c, URL: spec.HTTP.URL, Headers: headers, UserAgent: userAgent}))
		}
	case v1.SinkNATS:
		err = d.readServers("spec.nats.servers", spec.NATS.Servers)
		d.publisher = func(c sink.Connection, _ string) (outbox.Publisher, error) {
			return publisher(nats.New(nats.Config{Connection: c, Servers: spec.NATS.Servers, Subject: spec.NATS.Subject}))
		}
	case v1.SinkKafka:
		err = d.readServers("spec.kafka.brokers", spec.Kafka.Brokers)
		d.publisher = func(c sink.Connection, _ string) (outbox.Publisher, error) {
			return publisher(kafka.New(kafka.Config{Connection: c, Brokers: spec.Kafka.Brokers, Topic: spec.Kafka.Topic, Mechanism: string(spec.Kafka.Mechanism)}))
		}
	case v1.SinkRabbitMQ:
		err = d.readURL("spec.rabbitmq.url", spec.RabbitMQ.URL, "amqp", "amqps")
		d.publisher = func(c sink.Connection, _ string) (outbox.Publisher, error) {
			return publisher(rabbitmq.New(rabbitmq.Config{Connection: c, URL: spec.RabbitMQ.URL, Exchange: spec.RabbitMQ.Exchange, RoutingKey: spec.RabbitMQ.RoutingKey}))
		}
	default:
		err = errors.New("spec names no destination")
	}
	d.encrypted = d.encrypted || spec.TLS != nil && d.kind != v1.SinkHTTP // which goes by its scheme alone
	return d, err
}

// encryptionAdvice says how the connection to each kind of destination is encrypted.
var encryptionAdvice = map[v1.SinkKind]string{
	v1.SinkHTTP:     "let spec.http.url begin with https://",
	v1.SinkNATS:     "set spec.tls to {}",
	v1.SinkKafka:    "set spec.tls to {}",
	v1.SinkRabbitMQ: "let spec.rabbitmq.url begin with amqps://",
}

// plaintextProblem is the problem of a sink that would show its credentials on a connection that is
// not encrypted, without the consent of its spec. The schema refuses such a sink. One that is older
// than this rule may still be there.
func (d *destination) plaintextProblem(spec *v1.SinkSpec) *sinkProblem {
	if spec.Credentials == nil || d.encrypted || spec.AllowPlaintextCredentials {
		return nil
	}
	return &sinkProblem{v1.SinkReasonNotEncrypted, "The credentials are not sent, because the connection is not encrypted and others on the network could read them. To encrypt it, " +
		encryptionAdvice[d.kind] + ". To send them all the same, set spec.allowPlaintextCredentials to true."}
}

// publisher is what a constructor returned, without the pointer to nothing that would come with an error.
func publisher[P outbox.Publisher](p P, err error) (outbox.Publisher, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

// readURL takes the host and the encryption from a URL. What is wrong with it is said without showing it: there may be a password in it.
func (d *destination) readURL(field, text, plain, encrypted string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("%s is no URL with a host", field)
	case u.Scheme != plain && u.Scheme != encrypted:
		return fmt.Errorf("%s does not begin with %s:// or %s://", field, plain, encrypted)
	case u.User != nil:
		return fmt.Errorf("%s has a user in it; credentials come from a Secret", field)
	}
	d.hosts, d.encrypted = []string{u.Hostname()}, u.Scheme == encrypted
	return nil
}

// readServers takes the hosts from a list of scheme://host:port, of which only the host has to be there.
func (d *destination) readServers(field string, servers []string) error {
	for i, s := range servers {
		scheme, address, found := strings.Cut(s, "://")
		if !found {
			scheme, address = "", s
		}
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = canonicalHost(address) // without a port
		}
		if host == "" || strings.ContainsAny(host, "@/?# ") {
			return fmt.Errorf("%s[%d] is no host and port", field, i)
		}
		d.hosts = append(d.hosts, host)
		d.encrypted = d.encrypted || scheme == "tls"
	}
	if len(servers) == 0 {
		return fmt.Errorf("%s is empty", field)
	}
	return nil
}
