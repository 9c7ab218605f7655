// Package faultreg is a registry whose faults a test sets as it runs: everything that was seen of registries, proxies and content stores
// that a client must outlast. It hands out what another registry has, over plain HTTP on loopback, and counts what it was asked for.
package faultreg

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"
)

// Range says what becomes of requests for a part of a blob.
type Range int

const (
	Ranges         Range = iota // they are answered
	RangeIgnored                // the whole blob comes
	RangeRefused                // status 416
	RangeShort                  // half of what was asked for comes, and is called that
	RangeWrong                  // other bytes come, and are called that
	RangeMislabels              // other bytes come, and are called what was asked for
)

// Faults are what is wrong. The zero value is a good registry.
type Faults struct {
	Latency time.Duration // before each answer
	Silent  bool          // nothing is answered any more, and bodies stop where they are, until this is false again

	NoHead   bool // 405 for HEAD
	NoDigest bool // no Docker-Content-Digest
	Chunked  bool // no Content-Length
	Auth     bool // bearer tokens are wanted: see ExpireTokens
	Redirect bool // blobs are on another host, which refuses credentials: see ExpireLinks

	// What follows befalls the first Times requests for blobs, or all if that is 0.
	Times      int
	Status     int // the answer, where it isn't 0
	RetryAfter int // seconds, with Status
	Range      Range
	Hang       bool // no answer
	Stall      bool // half of a body comes, and then nothing
	Cut        bool // half of a body comes, and then the connection's end
	Corrupt    bool // a bit in the middle of a body is another
	Endless    bool // more bytes than were promised, for ever
}

// Counts are what was asked for.
type Counts struct {
	Manifests, Heads, Blobs, Tokens int
	Sent                            int64 // bytes of blobs
	Leaked                          int   // requests to the other host that had credentials
}

// Registry is one. Its methods may be called concurrently.
type Registry struct {
	good http.Handler
	addr string // host:port

	mu      sync.Mutex
	faults  Faults
	changed chan struct{} // closed when the faults change
	hit     int           // requests for blobs that met them
	counts  Counts
	token   int    // the number of the only one that is good
	link    int    // the same of links
	stores  string // the other host
	server  *http.Server
}

// Start starts a registry over what good, another registry, has. Close ends it.
func Start(good http.Handler) (*Registry, error) {
	r := &Registry{good: good, changed: make(chan struct{}), addr: "127.0.0.1:0"}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting registry: %w", err)
	}
	r.stores = other.Addr().String()
	go http.Serve(other, http.HandlerFunc(r.store)) // it ends with the process
	return r, r.Up()
}

// Addr is the registry's host and port.
func (r *Registry) Addr() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addr
}

// Up has the registry listen, at the same address as before.
func (r *Registry) Up() error {
	l, err := net.Listen("tcp", r.Addr())
	if err != nil {
		return fmt.Errorf("starting registry: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addr = l.Addr().String()
	r.server = &http.Server{Handler: r}
	go r.server.Serve(l)
	return nil
}

// Close ends the registry: connections break, and others are refused, until Up.
func (r *Registry) Close() error {
	r.Set(Faults{}) // whoever waits for a change
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server.Close()
}

// Set replaces the faults.
func (r *Registry) Set(f Faults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults, r.hit = f, 0
	close(r.changed)
	r.changed = make(chan struct{})
}

// ExpireTokens makes all tokens given out so far bad, and ExpireLinks all links to the other host.
func (r *Registry) ExpireTokens() { r.add(&r.token) }
func (r *Registry) ExpireLinks()  { r.add(&r.link) }

func (r *Registry) add(n *int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
}

// Counts gives what was asked for since the start or the last call.
func (r *Registry) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counts
	r.counts = Counts{}
	return c
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	blob := req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/sha256:")
	r.mu.Lock()
	switch {
	case req.URL.Path == "/token":
		r.counts.Tokens++
	case blob:
		r.counts.Blobs++
	case req.Method == http.MethodHead:
		r.counts.Heads++
	case strings.Contains(req.URL.Path, "/manifests/"):
		r.counts.Manifests++
	}
	token := r.token
	f := r.faults
	r.mu.Unlock()
	time.Sleep(f.Latency)
	r.hold(req.Context())
	switch {
	case req.URL.Path == "/token":
		fmt.Fprintf(w, `{"token":"token-%d"}`, token)
		return
	case f.Auth && req.Header.Get("Authorization") != fmt.Sprintf("Bearer token-%d", token):
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="faults"`, r.Addr()))
		w.WriteHeader(http.StatusUnauthorized)
		return
	case f.NoHead && req.Method == http.MethodHead:
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	case f.Redirect && blob:
		r.mu.Lock()
		at := fmt.Sprintf("http://%s%s?signature=%d", r.stores, req.URL.Path, r.link)
		r.mu.Unlock()
		http.Redirect(w, req, at, http.StatusTemporaryRedirect)
		return
	case blob:
		r.blob(w, req)
		return
	}
	if f.NoDigest {
		w = withoutDigest{w}
	}
	r.good.ServeHTTP(w, req)
}

type withoutDigest struct{ http.ResponseWriter }

func (w withoutDigest) WriteHeader(status int) {
	w.Header().Del("Docker-Content-Digest")
	w.ResponseWriter.WriteHeader(status)
}

func (w withoutDigest) Write(p []byte) (int, error) {
	w.Header().Del("Docker-Content-Digest")
	return w.ResponseWriter.Write(p)
}

// store is the other host.
func (r *Registry) store(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	good := req.URL.Query().Get("signature") == fmt.Sprint(r.link)
	if req.Header.Get("Authorization") != "" {
		r.counts.Leaked++
		good = false
	}
	r.mu.Unlock()
	if !good {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	r.blob(w, req)
}

// hold waits while the registry is silent.
func (r *Registry) hold(ctx context.Context) {
	for {
		r.mu.Lock()
		silent, changed := r.faults.Silent, r.changed
		r.mu.Unlock()
		if !silent {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// met gives the faults that a request for a blob meets.
func (r *Registry) met() Faults {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.faults
	if r.hit++; f.Times > 0 && r.hit > f.Times {
		return Faults{Chunked: f.Chunked}
	}
	return f
}

// content is a blob, and the part of it that is asked for.
func (r *Registry) content(req *http.Request) (b []byte, from, to int, ok bool) {
	all := req.Clone(req.Context())
	all.Header.Del("Range")
	rec := httptest.NewRecorder()
	r.good.ServeHTTP(rec, all)
	if rec.Code != http.StatusOK {
		return nil, 0, 0, false
	}
	b = rec.Body.Bytes()
	if n, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil || n != 2 {
		return b, 0, len(b), true
	}
	return b, from, min(to+1, len(b)), true
}

// blob answers a request for a blob.
func (r *Registry) blob(w http.ResponseWriter, req *http.Request) {
	f := r.met()
	if f.Hang {
		<-req.Context().Done()
		return
	}
	if f.Status != 0 {
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(f.RetryAfter))
		}
		w.WriteHeader(f.Status)
		return
	}
	all, from, to, ok := r.content(req)
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	part := to-from < len(all)
	said := from // the first byte, as it is called
	if part {
		switch f.Range {
		case RangeIgnored:
			part, from, to = false, 0, len(all)
		case RangeRefused:
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		case RangeShort:
			to = from + max((to-from)/2, 1)
		case RangeWrong, RangeMislabels:
			n := to - from
			from = (from + 1) % (len(all) - n + 1)
			to = from + n
			if f.Range == RangeWrong {
				said = from
			}
		}
	}
	body := bytes.Clone(all[from:to])
	if f.Corrupt {
		body[len(body)/2] ^= 0x10
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if !f.Chunked && !f.Endless {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	if part {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", said, said+len(body)-1, len(all)))
		w.WriteHeader(http.StatusPartialContent)
	}
	r.send(w, req, body, f)
}

// send sends a body, slowly enough that a silence finds it under way.
func (r *Registry) send(w http.ResponseWriter, req *http.Request, body []byte, f Faults) {
	flush := http.NewResponseController(w).Flush
	for at := 0; at < len(body); {
		r.hold(req.Context())
		end := min(at+64<<10, len(body))
		if f.Cut || f.Stall {
			if end = min(end, len(body)/2); end == at {
				_ = flush() // what fails with the client is no fault of ours
				if f.Stall {
					<-req.Context().Done()
				}
				panic(http.ErrAbortHandler)
			}
		}
		n, err := w.Write(body[at:end])
		at += n
		r.mu.Lock()
		r.counts.Sent += int64(n)
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
	for more := make([]byte, 64<<10); f.Endless && req.Context().Err() == nil; {
		if _, err := w.Write(more); err != nil {
			return
		}
	}
}
