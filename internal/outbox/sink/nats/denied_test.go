package nats_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/nats"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
)

func wantError(t *testing.T, err error, kind outbox.Kind, reason string) {
	t.Helper()
	if e, ok := errors.AsType[*outbox.Error](err); !ok || e.Kind != kind || e.Reason != reason {
		t.Errorf("got %+v %v, not kind %d and reason %s", e, err, kind, reason)
	}
}

// restricted is a broker that also knows somebody who may do less.
func restricted(t *testing.T, allowed *server.Permissions) (*broker, nats.Config) {
	t.Helper()
	b := newBroker(t, func(o *server.Options) {
		o.Username, o.Password = "", ""
		o.Users = []*server.User{{Username: user, Password: sinktest.Secret}, {Username: "guest", Password: sinktest.Secret, Permissions: allowed}}
	})
	c := b.config()
	c.Credentials = sink.Credentials{Username: "guest", Password: sinktest.Secret}
	c.Timeout = 2 * patience // what is found out must not be found out by it
	return b, c
}

func TestASubjectThatMayNotBePublishedToIsUnauthorizedAtOnce(t *testing.T) {
	t.Parallel()
	_, c := restricted(t, &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"events.shop"}}})
	p := publisher(t, c)
	other := message("order-1")
	other.Namespace = "bakery"
	for range 2 {
		errs := p.Publish(t.Context(), []outbox.Message{message("order-1"), other})
		wantError(t, errs[0], outbox.Unavailable, outbox.ReasonUnauthorized)
		if errs[1] != nil {
			t.Errorf("what may be published was not: %v", errs[1])
		}
	}
}

func TestWhoMayNotHearAnswersIsUnauthorizedAtOnce(t *testing.T) {
	t.Parallel()
	_, c := restricted(t, &server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{">"}}})
	wantError(t, publisher(t, c).Publish(t.Context(), []outbox.Message{message("order-1")})[0], outbox.Unavailable, outbox.ReasonUnauthorized)
}

func TestWhoMayOnlyPublishPassesTheCheck(t *testing.T) {
	t.Parallel()
	_, c := restricted(t, &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"events.>"}}})
	p := publisher(t, c)
	if err := p.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Publish(t.Context(), []outbox.Message{message("order-1")})[0]; err != nil {
		t.Error(err)
	}
}

func TestTheCheckFindsTheStreamsThatATemplateCanReach(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	for subject, found := range map[string]bool{
		"events.shop": true, "events.{namespace}.created": true, "events.{type}": true, "{namespace}.x": true, "events.x-{subject}.y": true, "other.{type}": false, "other.{namespace}": false,
	} {
		c := b.config()
		c.Subject = subject
		if err := publisher(t, c).Check(t.Context()); found && err != nil {
			t.Errorf("%s: %v", subject, err)
		} else if !found {
			wantError(t, err, outbox.Unavailable, outbox.ReasonNotFound)
		}
	}
}

func TestAMessageAsLargeAsTheServerTakesIsTaken(t *testing.T) {
	t.Parallel()
	p := publisher(t, newBroker(t).config())
	m := message("order-1")
	m.Data = []byte(`"` + strings.Repeat("x", maxPayload-1000) + `"`)
	if err := p.Publish(t.Context(), []outbox.Message{m})[0]; err != nil {
		t.Error(err)
	}
	m = message("order-2")
	m.Data = []byte(`"` + strings.Repeat("x", maxPayload-100) + `"`) // with its headers it is too large
	wantError(t, p.Publish(t.Context(), []outbox.Message{m})[0], outbox.Rejected, outbox.ReasonTooLarge)
}

func TestServersWithAPasswordInThemAreRefusedWithoutBeingShown(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"nats://u:canary@h:4222", "u:canary@h", "ws://h", "nats://", "nats://h/canary", "nats://h?canary", "nats://h,nats://canary", "\x00canary"} {
		_, err := nats.New(nats.Config{Connection: connection(), Servers: []string{bad}, Subject: "a"})
		if err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAnEncryptedConnectionIsVerified(t *testing.T) {
	t.Parallel()
	// Its only use is its certificate, which is for 127.0.0.1.
	certified := httptest.NewTLSServer(nethttp.NotFoundHandler())
	defer certified.Close()
	b := newBroker(t)
	b.stop(t)
	b.options.TLS = true
	b.options.TLSConfig = &tls.Config{Certificates: certified.TLS.Certificates, MinVersion: tls.VersionTLS12}
	b.start(t)
	c := b.config()
	c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	p := publisher(t, c)
	wantError(t, p.Check(t.Context()), outbox.Unavailable, outbox.ReasonTLSFailed)
	wantError(t, p.Publish(t.Context(), []outbox.Message{message("order-1")})[0], outbox.Unavailable, outbox.ReasonTLSFailed)

	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	c.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if err := publisher(t, c).Publish(t.Context(), []outbox.Message{message("order-1")})[0]; err != nil {
		t.Error(err)
	}
}
