package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	piece = 16 << 10 // bytes that are sent at once
	gap   = 64 << 10 // of what is there already, fetched again rather than asking twice
)

// registry serves images from memory and knows what it has sent of each blob.
//
// What is sent of a blob a second time for one image is repeated, with these exceptions: a stretch of at most gap bytes with others before
// and behind it in the same request, which are gaps; the end of a blob, which is asked for to find the table of contents, with
// contents in it by chance; and all that forget was told of. What may be repeated after a kill is what was in flight then: what the
// last request of each connection asked for, and all of a layer that is read whole of which one of the last two requests was. What was
// sent for one image and then for another is shared.
type registry struct {
	addr string
	srv  *http.Server
	rate int64 // bytes a second in all; 0: no limit

	mu      sync.Mutex // guards what follows
	images  map[string]*image
	blobs   map[string]*blob
	asked   map[net.Conn][]ask // the last ones
	next    time.Time          // when more may be sent
	silent  bool               // blobs are not sent until this ends
	changed chan struct{}      // closed when it does
	counts  sends
	open    int // requests for blobs being answered
}

// sends are counts since the beginning, in bytes but for Requests and Most.
type sends struct {
	Requests int64 // for blobs
	Most     int64 // of them at once
	Sent     int64
	Repeated int64
	Gaps     int64
	Tables   int64 // in requests for the ends of blobs
	Shared   int64
	InFlight int64 // at kills
}

// ask is a range of a blob that was asked for.
type ask struct {
	b        *blob
	off, end int64
}

type connKey struct{}

// serve starts a registry on loopback.
func serve(rate int64) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{
		addr: l.Addr().String(), rate: rate, images: make(map[string]*image), blobs: make(map[string]*blob), asked: make(map[net.Conn][]ask),
		changed: make(chan struct{}),
	}
	r.srv = &http.Server{
		Handler: r, ReadHeaderTimeout: time.Minute,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState: func(c net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				r.mu.Lock()
				delete(r.asked, c)
				r.mu.Unlock()
			}
		},
	}
	go r.srv.Serve(l) // ends with close
	return r, nil
}

func (r *registry) close() error {
	r.hush(false)
	return r.srv.Close()
}

// add serves an image, and gives its reference.
func (r *registry) add(im *image) (ref string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[im.name] = im
	for _, b := range im.blobs {
		r.blobs[b.digest] = b
	}
	return r.addr + "/" + im.name + ":1"
}

// hush makes the registry accept requests for blobs and answer none, or answer them.
func (r *registry) hush(silent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent && !silent {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	r.silent = silent
}

// counted gives the counts.
func (r *registry) counted() sends {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// forget says that all of an image may be fetched again: it was removed.
func (r *registry) forget(im *image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range im.blobs {
		delete(b.sent, im.name)
	}
}

// during calls kill, which ends those who fetch, while nothing is sent, and counts what was in flight.
func (r *registry) during(kill func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := kill(); err != nil {
		return err
	}
	whole := make(map[*blob]bool)
	for c, asks := range r.asked {
		for i, a := range asks {
			switch {
			case !a.b.whole && i < len(asks)-1:
			case !a.b.whole:
				r.counts.InFlight += a.end - a.off
			case !whole[a.b]:
				whole[a.b] = true
				r.counts.InFlight += int64(len(a.b.bytes))
			}
		}
		delete(r.asked, c)
	}
	return nil
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	if len(parts) != 3 {
		w.WriteHeader(http.StatusOK)
		return
	}
	r.mu.Lock()
	im, b := r.images[parts[0]], r.blobs[parts[2]]
	r.mu.Unlock()
	switch {
	case im == nil:
	case parts[1] == "manifests" && (parts[2] == "1" || parts[2] == im.digest):
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", im.digest)
		w.Header().Set("Content-Length", strconv.Itoa(len(im.manifest)))
		if req.Method != http.MethodHead {
			_, _ = w.Write(im.manifest) // who is gone needs none
		}
		return
	case parts[1] == "blobs" && b != nil:
		r.send(w, req, im, b)
		return
	}
	http.NotFound(w, req)
}

// send answers with a blob or a range of it.
func (r *registry) send(w http.ResponseWriter, req *http.Request, im *image, b *blob) {
	size := int64(len(b.bytes))
	off, end, status := int64(0), size, http.StatusOK
	if s := req.Header.Get("Range"); s != "" {
		var last int64
		if n, err := fmt.Sscanf(s, "bytes=%d-%d", &off, &last); n != 2 || err != nil || off < 0 || off > last || off >= size {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		end, status = min(last+1, size), http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, size))
	}
	conn := req.Context().Value(connKey{}).(net.Conn)
	r.mu.Lock()
	r.counts.Requests++
	r.open++
	r.counts.Most = max(r.counts.Most, int64(r.open))
	sent := b.sent[im.name] // of this life of the image
	if sent == nil {
		sent = make([]bool, size)
		b.sent[im.name] = sent
	}
	asks := append(r.asked[conn], ask{b, off, end})
	r.asked[conn] = asks[max(0, len(asks)-2):]
	for r.silent {
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-req.Context().Done():
		}
		r.mu.Lock()
		if req.Context().Err() != nil { // who asked is gone
			r.open--
			r.mu.Unlock()
			return
		}
	}
	r.mu.Unlock()
	w.Header().Set("Content-Length", strconv.FormatInt(end-off, 10))
	w.WriteHeader(status)
	at := off
	for at < end {
		r.slow(min(piece, end-at))
		n, err := w.Write(b.bytes[at:min(at+piece, end)])
		at += int64(n)
		if err != nil {
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
	r.counts.Sent += at - off
	if end == size && !b.whole {
		r.counts.Tables += at - off
		return
	}
	b.send(&r.counts, sent, off, at, end)
}

// slow waits until n more bytes may be sent.
func (r *registry) slow(n int64) {
	if r.rate == 0 {
		return
	}
	r.mu.Lock()
	now := time.Now()
	if r.next.Before(now) {
		r.next = now
	}
	wait := r.next.Sub(now)
	r.next = r.next.Add(time.Duration(n) * time.Second / time.Duration(r.rate))
	r.mu.Unlock()
	time.Sleep(wait)
}

// send notes that bytes up to at were sent of a request for [off, end) for an image, and what of them had been sent before.
func (b *blob) send(c *sends, sent []bool, off, at, end int64) {
	for i := off; i < at; {
		j := i
		for j < at && sent[j] == sent[i] {
			j++
		}
		switch {
		case !sent[i]:
			for _, other := range b.sent {
				if other[i] { // others are not looked at byte by byte
					c.Shared += j - i
					break
				}
			}
		case i > off && j < end && j-i <= gap:
			c.Gaps += j - i
		default:
			c.Repeated += j - i
		}
		i = j
	}
	for i := off; i < at; i++ {
		sent[i] = true
	}
}
