package rabbitmq_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/outbox"
)

func TestAnEncryptedConnectionIsVerified(t *testing.T) {
	t.Parallel()
	r := rig(t)
	address, pool := encrypted(t, r.server.Address())
	r.config.URL = "amqps://" + address
	wantError(t, r.publisher(t).Check(t.Context()), outbox.Unavailable, outbox.ReasonTLSFailed)
	r.config.TLS = &tls.Config{RootCAs: pool}
	mustPublish(t, r.publisher(t), message("a", "1"))
}

func TestATLSConfigurationEncryptsWhateverTheSchemeSays(t *testing.T) {
	t.Parallel()
	r := rig(t)
	address, pool := encrypted(t, r.server.Address())
	r.config.URL = "amqp://" + address
	r.config.TLS = &tls.Config{RootCAs: pool}
	mustPublish(t, r.publisher(t), message("a", "1"))
}

// encrypted is a server's front for TLS, and what trusts it.
func encrypted(t *testing.T, behind string) (address string, trust *x509.CertPool) {
	t.Helper()
	certificate, trust := selfSigned(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go forward(l, behind, func(net.Conn) {})
	return l.Addr().String(), trust
}

// selfSigned is a certificate for the loopback address, and what trusts it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
