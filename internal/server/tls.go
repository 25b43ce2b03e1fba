package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// certificates returns the TLS configuration of an endpoint, and what keeps it up to date: a function to run until its context is done.
func (e *endpoint) certificates() (*tls.Config, func(context.Context) error, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if e.certFile != "" {
		watcher, err := certwatcher.New(e.certFile, e.keyFile)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the certificate and the key of %s from %s and %s: %w", e.name, e.certFile, e.keyFile, err)
		}
		config.GetCertificate = watcher.GetCertificate
		return config, watcher.Start, nil
	}
	certificate, err := selfSigned(time.Now())
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate for %s: %w", e.name, err)
	}
	sum := sha256.Sum256(certificate.Certificate[0])
	e.log.Warn("serving "+e.name+" with a self-signed certificate, which clients cannot check; name one with --"+e.flags+"-tls-cert-file and --"+e.flags+"-tls-key-file",
		"sha256", hex.EncodeToString(sum[:]))
	config.Certificates = []tls.Certificate{certificate}
	return config, untilDone, nil
}

// untilDone is what there is to do for a certificate that does not change.
func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// selfSigned makes a certificate for development. Its key is kept in memory only.
func selfSigned(now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	const serialBits, days = 120, 365
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "saga-operator (self-signed)"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, days),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, //nolint:mnd // loopback
	}
	if host, err := os.Hostname(); err == nil && host != "" {
		template.DNSNames = append(template.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// CheckInsecure says whether an address may be served without TLS: only one that no other machine reaches.
func CheckInsecure(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("the API's address %q: %w", address, err)
	}
	if !isLoopback(host) {
		return fmt.Errorf("the API is served without TLS on a loopback address only, such as 127.0.0.1:8080, and not on %q: tokens would be readable on the network", address)
	}
	return nil
}

// IsLoopback reports whether only this machine, or this pod, reaches an address. A name may resolve
// to any address, so only IP addresses count. It returns an error if the address is not host:port.
func IsLoopback(address string) (bool, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, err
	}
	return isLoopback(host), nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
