package registry

import (
	"errors"
	"net"
	"net/http"
	"sync"
)

// noProtocol is how crypto/tls calls the alert no_application_protocol (RFC 7301, section 3.2). Its type for alerts isn't exported.
const noProtocol = "tls: no application protocol"

// onlyHTTP2 are the servers that speak nothing else, with a transport that does. The zero value is ready.
type onlyHTTP2 struct {
	mu sync.Mutex // guards what follows
	m  map[string]bool
	t  *http.Transport
}

// carries gives the transport for a host that is known to want it, or nil.
func (h *onlyHTTP2) carries(host string) *http.Transport {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.m[host] {
		return nil
	}
	return h.t
}

// learn gives the transport for a host that has refused HTTP/1.1 with err, or nil if it hasn't. base is what else is used.
func (h *onlyHTTP2) learn(host string, err error, base *http.Transport) *http.Transport {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != remoteAlert || op.Err.Error() != noProtocol {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.t == nil {
		h.t = base.Clone()
		h.t.Protocols = new(http.Protocols)
		h.t.Protocols.SetHTTP2(true)
		h.t.TLSClientConfig = base.TLSClientConfig.Clone() // base has put its own protocols there
		if h.t.TLSClientConfig != nil {
			h.t.TLSClientConfig.NextProtos = nil
		}
		h.t.ForceAttemptHTTP2 = true
		h.m = make(map[string]bool)
	}
	h.m[host] = true
	return h.t
}

func (h *onlyHTTP2) closeIdle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.t != nil {
		h.t.CloseIdleConnections()
	}
}
