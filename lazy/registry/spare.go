package registry

import (
	"context"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Transport is for many range requests to few hosts: HTTP/1.1, since parallel transfers over one HTTP/2 connection share one congestion
// window, with up to 16 idle connections per host, and never decompressing. Proxies are taken from the environment. A server that
// asks to be left alone for a while is: until then requests to it fail at once. CloseIdleConnections should be called when it is used
// no more.
type Transport struct {
	*http.Transport
	dialer net.Dialer
	pauses pauses

	mu     sync.Mutex            // guards what follows
	spares map[string][]net.Conn // by address
}

const (
	spares    = 5               // connections opened ahead
	spareLife = 5 * time.Second // and how long one waits to be used
)

// NewTransport makes a Transport.
func NewTransport() *Transport {
	t := &Transport{
		Transport: http.DefaultTransport.(*http.Transport).Clone(),
		dialer:    net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second},
		spares:    make(map[string][]net.Conn),
	}
	t.DialContext = t.dial
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2 = false
	t.DisableCompression = true
	t.MaxIdleConns = 128
	t.MaxIdleConnsPerHost = 16
	t.IdleConnTimeout = 90 * time.Second
	t.TLSHandshakeTimeout = 10 * time.Second
	t.ReadBufferSize = 64 << 10
	return t
}

// CloseIdleConnections closes what is not in use, spare connections, too.
func (t *Transport) CloseIdleConnections() {
	t.Transport.CloseIdleConnections()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, all := range t.spares {
		for _, c := range all {
			_ = c.Close() // nothing was written
		}
	}
	clear(t.spares)
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
	carrier := r.transport
	for { // one that watches may be around it
		w, ok := carrier.(interface{ Unwrap() http.RoundTripper })
		if !ok {
			break
		}
		carrier = w.Unwrap()
	}
	t, ok := carrier.(*Transport)
	if !ok {
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url("blobs", ""), nil)
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
