// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// tlsFiles is whom to trust and what to show, read anew at every handshake, so
// that renewed certificates need no restart. A file that cannot be read then is
// one line, and what was read last goes on being used.
type tlsFiles struct {
	host          string // name or address that the receiver's certificate must have
	ca, cert, key string // PEM; empty: the system's roots, no certificate
	log           *slog.Logger

	mu    sync.Mutex
	roots *x509.CertPool
	pair  *tls.Certificate
	// Why the latest files were not used.
	stalePair, staleRoots string
}

// read takes the files' names from c or the variables and reads them.
func (f *tlsFiles) read(c OTLPConfig, s settings) error {
	ca := s.get("CERTIFICATE", setting{c.key("ca"), c.CA})
	cert := s.get("CLIENT_CERTIFICATE", setting{c.key("certificate"), c.Certificate})
	key := s.get("CLIENT_KEY", setting{c.key("key"), c.Key})
	f.ca, f.cert, f.key = ca.value, cert.value, key.value
	var errs []error
	if f.ca != "" {
		if err := f.readRoots(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ca.name, err))
		}
	}
	switch {
	case f.cert != "" && f.key != "":
		if err := f.readPair(); err != nil {
			errs = append(errs, fmt.Errorf("%s and %s: %w", cert.name, key.name, err))
		}
	case f.cert != "":
		errs = append(errs, cert.wrong(c.key("key")+" or OTEL_EXPORTER_OTLP_CLIENT_KEY is missing"))
	case f.key != "":
		errs = append(errs, key.wrong(c.key("certificate")+" or OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is missing"))
	}
	return errors.Join(errs...)
}

func (f *tlsFiles) readRoots() error {
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("no PEM certificate in %s", f.ca)
	}
	f.roots = roots
	return nil
}

func (f *tlsFiles) readPair() error {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err == nil {
		f.pair = &pair
	}
	return err
}

// config is f for crypto/tls.
func (f *tlsFiles) config() *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.cert != "" {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.noteRead(&f.stalePair, f.readPair())
			return f.pair, nil
		}
	}
	if f.ca != "" {
		// crypto/tls takes roots only once. What it skips is done in verify.
		cfg.InsecureSkipVerify = true //nolint:gosec // VerifyConnection verifies
		cfg.VerifyConnection = f.verify
	}
	return cfg
}

// verify is what crypto/tls does itself, with the roots of now. The connection's
// own ServerName would not do: it is empty for an address.
func (f *tlsFiles) verify(cs tls.ConnectionState) error {
	f.mu.Lock()
	f.noteRead(&f.staleRoots, f.readRoots())
	roots := f.roots
	f.mu.Unlock()
	chain := x509.VerifyOptions{Roots: roots, DNSName: f.host, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		chain.Intermediates.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(chain)
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	return nil
}

// noteRead logs when files could not be read again, and when they could.
func (f *tlsFiles) noteRead(stale *string, err error) {
	change(stale, err, func() { f.log.Warn("certificate cannot be read again, the last one is used", "err", err) },
		func() { f.log.Info("certificate is read again") })
}
