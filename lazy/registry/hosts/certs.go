package hosts

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// certs are the certificates for a host.
type certs struct {
	roots   *x509.CertPool // the system's and those of the files; nil: no file
	clients []tls.Certificate
	sum     hash.Hash // of all that was read
}

func (c *certs) read(name string) ([]byte, error) {
	b, err := readFile(name)
	if err != nil {
		return nil, err
	}
	if c.sum == nil {
		c.sum = sha256.New()
	}
	fmt.Fprintf(c.sum, "%d\n", len(b))
	c.sum.Write(b)
	return b, nil
}

func (c *certs) addCA(name string) error {
	b, err := c.read(name)
	if err != nil {
		return err
	}
	if c.roots == nil {
		if c.roots, err = x509.SystemCertPool(); err != nil {
			return fmt.Errorf("reading the system's certificates: %w", err)
		}
	}
	if !c.roots.AppendCertsFromPEM(b) {
		return fmt.Errorf("%s has no certificate in it", name)
	}
	return nil
}

func (c *certs) addClient(cert, key string) error {
	certPEM, err := c.read(cert)
	if err != nil {
		return err
	}
	keyPEM, err := c.read(key)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("reading %s and %s: %w", cert, key, err)
	}
	c.clients = append(c.clients, pair)
	return nil
}

// apply gives a host its TLS configurations and its key.
func (c *certs) apply(h *Host, skipVerify bool) {
	if c.roots != nil || c.clients != nil || skipVerify {
		h.TLS = &tls.Config{RootCAs: c.roots, Certificates: c.clients, InsecureSkipVerify: skipVerify}
	}
	if c.roots != nil {
		h.Away = &tls.Config{RootCAs: c.roots}
	}
	sum := sha256.New()
	fmt.Fprintln(sum, skipVerify, h.DialTimeout, h.Proxy)
	if c.sum != nil {
		sum.Write(c.sum.Sum(nil))
	}
	h.Key = hex.EncodeToString(sum.Sum(nil))
}

// certificates reads a folder as docker has them: NAME.crt are certificate authorities, NAME.cert with NAME.key the client's own.
func certificates(dir, registry string) ([]Host, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var c certs
	found := false
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch filepath.Ext(name) {
		case ".crt":
			err = c.addCA(name)
		case ".cert":
			err = c.addClient(name, strings.TrimSuffix(name, ".cert")+".key")
		case ".key":
			cert := strings.TrimSuffix(name, ".key") + ".cert"
			if _, serr := os.Stat(cert); errors.Is(serr, fs.ErrNotExist) {
				err = fmt.Errorf("%s is missing, for %s", cert, name)
			}
		default:
			continue
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) { // it isn't the folder that is missing
				err = fmt.Errorf("reading certificates of %s: %v", registry, err)
			}
			return nil, err
		}
		found = true
	}
	if !found {
		return nil, nil
	}
	h := Host{Root: own(registry), Resolve: true, Pull: true}
	h.Root.Scheme = "https"
	c.apply(&h, false)
	return []Host{h}, nil
}
