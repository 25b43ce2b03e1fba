package controllers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/callbacktoken"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

// The keys of the Secrets of a sink.
const (
	keyUsername = "username"
	keyPassword = "password"
	keyToken    = "token"
	keyCA       = "ca.crt"
)

// secretHostsAdvice says how a Secret is opened to a host.
const secretHostsAdvice = "A Secret says itself where it may be sent: list the host in its annotation " + v1.SecretHostsAnnotation + " if it is meant for it."

// sinkSecrets is what the Secrets of a sink say.
type sinkSecrets struct {
	credentials  sink.Credentials
	trusted      *x509.CertPool
	certificates []tls.Certificate
	// versions names the versions of the Secrets; empty where there are none.
	versions string
	lists    []hostList
	hidden   hidden
}

// readSecrets reads the Secrets of a sink from the API server, and looks that each may be sent to the destination before anything in it is looked at.
func (r *SinkReconciler) readSecrets(ctx context.Context, s *sinkObject, dest *destination) (*sinkSecrets, *sinkProblem, error) {
	all := &sinkSecrets{}
	if c := s.spec.Credentials; c != nil {
		secret, problem, err := r.readSecret(ctx, s, dest, c.SecretRef.Name, all)
		if problem != nil || err != nil {
			return nil, problem, err
		}
		if err := all.takeCredentials(secret, dest.kind); err != nil {
			return nil, invalidSecret(secret, err), nil
		}
	}
	if t := s.spec.TLS; t != nil && t.SecretRef != nil {
		secret, problem, err := r.readSecret(ctx, s, dest, t.SecretRef.Name, all)
		if problem != nil || err != nil {
			return nil, problem, err
		}
		if err := all.takeCertificates(secret); err != nil {
			return nil, invalidSecret(secret, err), nil
		}
	}
	return all, nil, nil
}

func invalidSecret(secret *corev1.Secret, err error) *sinkProblem {
	return &sinkProblem{v1.SinkReasonSecretInvalid, fmt.Sprintf("The Secret %q %s. Correct the Secret.", secret.Name, err)}
}

func (r *SinkReconciler) readSecret(ctx context.Context, s *sinkObject, dest *destination, name string, all *sinkSecrets) (*corev1.Secret, *sinkProblem, error) {
	secret := &corev1.Secret{}
	err := r.Live.Get(ctx, types.NamespacedName{Namespace: s.secrets, Name: name}, secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, &sinkProblem{v1.SinkReasonSecretNotFound, fmt.Sprintf("There is no Secret %q in namespace %s. Create it, or correct its name in the spec.", name, s.secrets)}, nil
	case apierrors.IsForbidden(err):
		return nil, r.secretForbidden(ctx, s.secrets, name), nil
	case err != nil:
		return nil, nil, fmt.Errorf("reading Secret %s/%s: %w", s.secrets, name, err)
	}
	list := newHostList(secret)
	for _, host := range dest.hosts {
		if !list.allow(host) {
			return nil, &sinkProblem{v1.SinkReasonSecretNotForHost, advised((&hostError{name, host}).Error(), v1.SinkReasonSecretNotForHost)}, nil
		}
	}
	all.lists = append(all.lists, list)
	all.versions += fmt.Sprintf("%s/%s ", secret.UID, secret.ResourceVersion)
	return secret, nil, nil
}

// takeCredentials reads credentials. Its errors go on from the name of the Secret, and show nothing of what is in it.
func (all *sinkSecrets) takeCredentials(secret *corev1.Secret, kind v1.SinkKind) error {
	username, password, token := string(secret.Data[keyUsername]), string(secret.Data[keyPassword]), string(secret.Data[keyToken])
	if username == "" && password == "" && token == "" {
		return fmt.Errorf("has none of the keys %s, %s and %s", keyUsername, keyPassword, keyToken)
	}
	for key, value := range map[string]string{keyUsername: username, keyPassword: password, keyToken: token} {
		if strings.ContainsAny(value, "\r\n\x00") {
			return fmt.Errorf("has a line break in the key %s, which no destination takes: a file that ends with one was likely put into it", key)
		}
	}
	if password != "" && username == "" {
		return fmt.Errorf("has the key %s without %s", keyPassword, keyUsername)
	}
	if (kind == v1.SinkKafka || kind == v1.SinkRabbitMQ) && (username == "" || password == "") {
		return fmt.Errorf("needs the keys %s and %s for %s", keyUsername, keyPassword, kind)
	}
	all.credentials = sink.Credentials{Username: username, Password: sink.Secret(password), Token: sink.Secret(token)}
	all.hidden = newHidden(username, password, token)
	return nil
}

// takeCertificates reads certificates.
func (all *sinkSecrets) takeCertificates(secret *corev1.Secret) error {
	ca, cert, key := secret.Data[keyCA], secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
	if len(ca) == 0 && len(cert) == 0 && len(key) == 0 {
		return fmt.Errorf("has none of the keys %s, %s and %s", keyCA, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	if len(ca) > 0 {
		all.trusted = x509.NewCertPool()
		if !all.trusted.AppendCertsFromPEM(ca) {
			return fmt.Errorf("has no certificate in PEM under the key %s", keyCA)
		}
	}
	if len(cert) == 0 && len(key) == 0 {
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("has no certificate with its private key in PEM under the keys %s and %s", corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	all.certificates = []tls.Certificate{pair}
	return nil
}

// hostList is the hosts that a Secret may be sent to.
type hostList struct {
	secret string
	hosts  []string
}

func newHostList(secret *corev1.Secret) hostList {
	l := hostList{secret: secret.Name}
	for h := range strings.SplitSeq(secret.Annotations[v1.SecretHostsAnnotation], ",") {
		if h = canonicalHost(h); h != "" {
			l.hosts = append(l.hosts, h)
		}
	}
	return l
}

// allow reports whether a host is listed. *.example.com stands for every name below example.com, and for no address.
func (l hostList) allow(host string) bool {
	host = canonicalHost(host)
	_, err := netip.ParseAddr(host)
	isName := err != nil
	for _, h := range l.hosts {
		if h == host {
			return host != ""
		}
		below, ok := strings.CutPrefix(h, "*")
		if ok && isName && len(below) > 1 && below[0] == '.' && len(host) > len(below) && strings.HasSuffix(host, below) {
			return true
		}
	}
	return false
}

func canonicalHost(h string) string {
	h = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(h)), ".")
	if strings.HasPrefix(h, "[") && strings.HasSuffix(h, "]") { // an IPv6 address as it stands in a URL
		return h[1 : len(h)-1]
	}
	return h
}

// dialer makes connections.
type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// guarded is a way to connect that goes to the hosts which the Secrets are for, and to no other: Kafka's brokers name one another, whatever the spec names.
func (all *sinkSecrets) guarded(dial dialer) dialer {
	if len(all.lists) == 0 {
		return dial
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("connecting to %s: %w", address, err)
		}
		for _, l := range all.lists {
			if !l.allow(host) {
				return nil, &hostError{secret: l.secret, host: host}
			}
		}
		return dial(ctx, network, address)
	}
}

// hostError says that a Secret is not for a host. Nothing has been sent then.
type hostError struct{ secret, host string }

func (e *hostError) Error() string {
	return fmt.Sprintf("the Secret %q is not for the host %q", e.secret, e.host)
}

// hidden are texts that are shown to nobody, in whatever form a destination may send them back.
type hidden []string

func newHidden(username, password, token string) hidden {
	const tooShort = 4 // taking those out would leave nothing readable
	var all hidden
	for _, s := range []string{password, token} {
		if len(s) >= tooShort {
			all = append(all, s, url.QueryEscape(s), url.PathEscape(s), base64.StdEncoding.EncodeToString([]byte(s)))
		}
	}
	if password != "" {
		all = append(all, base64.StdEncoding.EncodeToString([]byte(username+":"+password)))
	}
	return all
}

// redact takes them out of a text.
func (all hidden) redact(text string) string {
	for _, s := range all {
		text = strings.ReplaceAll(text, s, "[redacted]")
	}
	return callbacktoken.Redact(text)
}

// hiding is a publisher whose errors do not show what is hidden: they go into logs, and into the database.
type hiding struct {
	outbox.Publisher
	hidden hidden
}

// Publish implements outbox.Publisher.
func (p *hiding) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := p.Publisher.Publish(ctx, all)
	for i := range errs {
		errs[i] = p.hidden.redactError(errs[i])
	}
	return errs
}

// Check implements outbox.Publisher.
func (p *hiding) Check(ctx context.Context) error {
	return p.hidden.redactError(p.Publisher.Check(ctx))
}

// hidingListener is one whose broker can also be listened to.
type hidingListener struct {
	hiding
	from outbox.Listener
}

// Listen implements outbox.Listener.
func (p *hidingListener) Listen(ctx context.Context, address, group string, handle func(context.Context, outbox.Incoming) error) error {
	return p.hidden.redactError(p.from.Listen(ctx, address, group, handle))
}

// around is a publisher whose errors do not show what is hidden, and which can do all that the publisher can.
func (all hidden) around(p outbox.Publisher) outbox.Publisher {
	h := hiding{Publisher: p, hidden: all}
	if from, ok := p.(outbox.Listener); ok {
		return &hidingListener{hiding: h, from: from}
	}
	return &h
}

func (all hidden) redactError(err error) error {
	if err == nil {
		return nil
	}
	var known *outbox.Error
	if errors.As(err, &known) {
		return &outbox.Error{Kind: known.Kind, Reason: known.Reason, RetryAfter: known.RetryAfter, Open: known.Open, Err: &redactedError{all.redact(err.Error()), err}}
	}
	return &redactedError{all.redact(err.Error()), err}
}

// redactedError is an error with another text.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }

func (e *redactedError) Unwrap() error { return e.err }
