package registry

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/lazy/registry/hosts"
)

// Transport is for many range requests to few hosts: HTTP/1.1, since parallel transfers over one HTTP/2 connection share one congestion
// window, unless a server speaks nothing but HTTP/2; with up to 16 idle connections per host, and never decompressing. Proxies are taken from the environment. A server that
// asks to be left alone for a while is: until then requests to it fail at once. CloseIdleConnections should be called when it is used
// no more.
type Transport struct {
	*http.Transport
	dialer net.Dialer
	pauses *pauses
	h2     onlyHTTP2

	mu     sync.Mutex            // guards what follows
	spares map[string][]net.Conn // by address
	hosts  map[string]derivedPair
}

const (
	spares    = 5               // connections opened ahead
	spareLife = 5 * time.Second // and how long one waits to be used
)

// NewTransport makes a Transport.
func NewTransport() *Transport {
	http1 := []string{"http/1.1"}
	t := &Transport{
		Transport: http.DefaultTransport.(*http.Transport).Clone(),
		dialer:    net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second},
		pauses:    new(pauses),
		spares:    make(map[string][]net.Conn),
	}
	t.DialContext = t.dial
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2 = false
	t.TLSClientConfig = &tls.Config{NextProtos: http1} // so that a server that doesn't speak it says so
	t.DisableCompression = true
	t.MaxIdleConns = 128
	t.MaxIdleConnsPerHost = 16
	t.IdleConnTimeout = 90 * time.Second
	t.TLSHandshakeTimeout = 10 * time.Second
	t.ReadBufferSize = 64 << 10
	return t
}

// RoundTrip implements http.RoundTripper. It sends nothing to a server that has asked to be left alone.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	answered, err := t.pauses.pass(req.Context(), req.URL.Host)
	if err != nil {
		return nil, err
	}
	resp, err := t.send(req)
	answered(resp)
	return resp, err
}

// send sends a request without a body.
func (t *Transport) send(req *http.Request) (*http.Response, error) {
	if h2 := t.h2.carries(req.URL.Host); h2 != nil {
		return h2.RoundTrip(req)
	}
	resp, err := t.Transport.RoundTrip(req)
	if err != nil {
		if h2 := t.h2.learn(req.URL.Host, err, t.Transport); h2 != nil {
			return h2.RoundTrip(req)
		}
	}
	return resp, err
}

// CloseIdleConnections closes what is not in use, spare connections, too.
func (t *Transport) CloseIdleConnections() {
	t.Transport.CloseIdleConnections()
	t.h2.closeIdle()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, all := range t.spares {
		for _, c := range all {
			_ = c.Close() // nothing was written
		}
	}
	clear(t.spares)
	for _, d := range t.hosts {
		d.home.CloseIdleConnections()
		d.away.CloseIdleConnections()
	}
}

func (t *Transport) dial(ctx context.Context, network, address string) (net.Conn, error) {
	for c := t.spare(address); c != nil; c = t.spare(address) {
		if alive(c) {
			return c, nil
		}
		_ = c.Close()
	}
	return t.dialer.DialContext(ctx, network, address)
}

// spare takes a spare connection to an address, or nil.
func (t *Transport) spare(address string) net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.spares[address]
	if len(all) == 0 {
		return nil
	}
	t.spares[address] = all[:len(all)-1]
	return all[len(all)-1]
}

// alive tells whether the other side keeps a connection open, and has said nothing.
func alive(c net.Conn) (ok bool) {
	sc, is := c.(syscall.Conn)
	if !is {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	err = rc.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ok = err == unix.EAGAIN
		return true
	})
	return ok && err == nil
}

// derived gives the transports for a host: one that knows its certificates, and one for servers that it names. Hosts of one key share theirs.
func (t *Transport) derived(h hosts.Host) (home, away *Transport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, ok := t.hosts[h.Key]
	if !ok {
		if t.hosts == nil || len(t.hosts) >= maxDerived {
			for _, d := range t.hosts {
				d.home.Transport.CloseIdleConnections()
				d.away.Transport.CloseIdleConnections()
			}
			t.hosts = make(map[string]derivedPair)
		}
		d = derivedPair{t.derive(h.TLS, h), t.derive(h.Away, hosts.Host{Proxy: h.Proxy})}
		t.hosts[h.Key] = d
	}
	return d.home, d.away
}

// maxDerived is how many hosts have transports of their own.
const maxDerived = 64

type derivedPair struct{ home, away *Transport }

func (t *Transport) derive(conf *tls.Config, h hosts.Host) *Transport {
	n := NewTransport()
	n.pauses = t.pauses
	if conf != nil {
		n.TLSClientConfig = conf.Clone()
		n.TLSClientConfig.NextProtos = t.TLSClientConfig.NextProtos
	}
	if h.DialTimeout > 0 {
		n.dialer.Timeout = h.DialTimeout
	}
	if h.Proxy != nil {
		n.Proxy = http.ProxyURL(h.Proxy)
	}
	return n
}

// warm opens connections to an address that will be asked for many things at once as soon as the first answer has come: they need not be
// waited for then. Those that nobody uses are closed after a while.
func (t *Transport) warm(ctx context.Context, address string) {
	for range spares {
		go func() {
			c, err := t.dialer.DialContext(ctx, "tcp", address)
			if err != nil {
				return // whoever needs one is told
			}
			t.mu.Lock()
			t.spares[address] = append(t.spares[address], c)
			t.mu.Unlock()
			time.AfterFunc(spareLife, func() { t.drop(address, c) })
		}()
	}
}

// drop closes a spare connection unless it is in use.
func (t *Transport) drop(address string, c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range t.spares[address] {
		if s == c {
			t.spares[address] = append(t.spares[address][:i:i], t.spares[address][i+1:]...)
			_ = c.Close() // nothing was written
		}
	}
	if len(t.spares[address]) == 0 {
		delete(t.spares, address)
	}
}

// Warm says that the repository will soon be asked for many blobs at once. It does nothing where a proxy stands between.
func (r *Repo) Warm(ctx context.Context) {
	first := r.endpoints[0]
	t, _ := carrier(r.transport)
	if t == nil || len(r.endpoints) > 1 {
		return // which will be asked isn't known
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, first.url("blobs", "").String(), nil)
	if err != nil {
		return
	}
	if t.Proxy != nil {
		if via, err := t.Proxy(req); err != nil || via != nil {
			return
		}
	}
	address := req.URL.Host
	if req.URL.Port() == "" {
		address = net.JoinHostPort(req.URL.Hostname(), map[string]string{"http": "80", "https": "443"}[req.URL.Scheme])
	}
	t.warm(ctx, address)
}
