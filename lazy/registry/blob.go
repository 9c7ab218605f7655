package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
)

// maxMoves is how many addresses one fetch tries that others have found meanwhile.
const maxMoves = 3

// source is a blob of a repository.
type source struct {
	repo   *Repo
	digest v1.Hash
	size   int64
	places map[*endpoint]*place

	mu   sync.Mutex
	last *place // that gave something
}

// place is where an endpoint has a blob.
type place struct {
	src *source
	e   *endpoint

	// turn is held by the one who asks the server for another address, in place of one that has failed: whoever waits for it uses what he
	// finds. Taken before mu.
	turn chan struct{}
	mu   sync.Mutex // guards what follows
	// location is where the server sent the last fetch, on another host, or "". It is asked first, until it fails: a signed URL is
	// good for many ranges.
	location string
	moved    bool  // there was a location once
	absent   error // the server hasn't got the blob, it said
	absentAt time.Time
}

func newSource(r *Repo, d v1.Descriptor) *source {
	s := &source{repo: r, digest: d.Digest, size: d.Size, places: make(map[*endpoint]*place)}
	for _, e := range r.endpoints {
		s.places[e] = &place{src: s, e: e, turn: make(chan struct{}, 1)}
	}
	return s
}

var _ blob.Source = (*source)(nil)

func (s *source) Size() int64 { return s.size }

// Where is the URL that the blob's bytes come from, without its query.
func (s *source) Where() string {
	s.mu.Lock()
	p := s.last
	s.mu.Unlock()
	if p == nil {
		p = s.places[s.repo.endpoints[0]]
	}
	if at, _ := p.known(); at != "" {
		if u, err := url.Parse(at); err == nil {
			return redact(u)
		}
	}
	return redact(p.home())
}

// Fetch asks for one range of bytes, or for the blob as a whole by a request without a range. An answer that isn't the
// range asked for wraps blob.ErrRangeUnsupported.
func (s *source) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := checkDescriptor(v1.Descriptor{Digest: s.digest, Size: s.size}); err != nil {
		return nil, err
	}
	if err := blob.CheckRange(s.size, off, n); err != nil {
		return nil, err
	}
	what := "blob " + s.digest.String()
	if n < s.size {
		what = fmt.Sprintf("bytes %d-%d of %s", off, off+n-1, what)
	}
	var r *rangeReader
	several := len(s.repo.endpoints) > 1
	err := s.repo.each(ctx, pulls, func(e *endpoint) (err error) {
		p := s.places[e]
		if several {
			if err := p.missing(); err != nil {
				return err
			}
		}
		r, err = p.open(ctx, what, off, n)
		if errors.Is(err, ErrNotFound) {
			p.miss(err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.last = r.place
	s.mu.Unlock()
	return r, nil
}

// Distrust says that bytes of a blob weren't what their digests say: whoever gave them is not asked for a while, if there is another, and
// is asked anew where the blob is, if he had sent elsewhere.
func (r *Repo) Distrust(digest v1.Hash) {
	r.mu.Lock()
	var from *place
	for id, s := range r.sources {
		if id.digest == digest {
			s.mu.Lock()
			from = s.last
			s.mu.Unlock()
		}
	}
	r.mu.Unlock()
	if from == nil {
		return
	}
	from.e.leaveOut(wrongTime)
	if at, _ := from.known(); at != "" {
		from.forget(at)
	}
}

// home is where the server itself has the blob.
func (p *place) home() *url.URL { return p.e.url("blobs", p.src.digest.String()) }

// open fetches from where the blob is.
func (p *place) open(ctx context.Context, what string, off, n int64) (*rangeReader, error) {
	for range maxMoves {
		at, moved := p.known()
		if at == "" {
			if !moved {
				break
			}
			r, again, err := p.renew(ctx, what, off, n)
			if !again {
				return r, err
			}
			continue
		}
		r, err := p.fetch(ctx, what, at, off, n)
		if err == nil || ctx.Err() != nil || errors.Is(err, blob.ErrRangeUnsupported) {
			return r, err
		}
		p.forget(at)
	}
	return p.fetch(ctx, what, "", off, n)
}

// missing tells why the server is not to be asked for the blob, or nil.
func (p *place) missing() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.absentAt) < failedTime && p.e != p.src.repo.endpoints[len(p.src.repo.endpoints)-1] {
		return p.absent
	}
	return nil
}

func (p *place) miss(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.absent, p.absentAt = err, time.Now()
}

// known is where the blob is, if it is elsewhere, and whether it ever was.
func (p *place) known() (location string, moved bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.location, p.moved
}

// forget says that a location has failed.
func (p *place) forget(location string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.location == location {
		p.location = ""
	}
}

// renew asks the server where the blob is, unless somebody else has done that: again says so.
func (p *place) renew(ctx context.Context, what string, off, n int64) (r *rangeReader, again bool, err error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if at, _ := p.known(); at != "" {
		return nil, true, nil
	}
	r, err = p.fetch(ctx, what, "", off, n)
	return r, false, err
}

// fetch asks for a range at a location, or at the server itself if that is "".
func (p *place) fetch(ctx context.Context, what, location string, off, n int64) (*rangeReader, error) {
	h := http.Header{}
	if n < p.src.size {
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := p.e.do(ctx, http.MethodGet, what, cmp.Or(location, p.home().String()), h)
	if err != nil {
		return nil, err
	}
	r := &rangeReader{ctx: ctx, place: p, body: resp.Body, what: what, url: resp.Request.URL, at: off, left: n, more: maxMore + n/minMore}
	if err := r.begin(resp, off, n); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	if !p.e.session.home(resp.Request.URL) {
		p.mu.Lock()
		if location == "" || p.location == location { // one that was forgotten meanwhile stays so
			p.location, p.moved = resp.Request.URL.String(), true
		}
		p.mu.Unlock()
	}
	return r, nil
}

// rangeReader yields the bytes of a range from the body of an answer.
type rangeReader struct {
	ctx   context.Context // of the Fetch: its end ends the reader
	place *place
	body  io.ReadCloser
	what  string
	url   *url.URL
	at    int64 // where the next byte is
	left  int64 // to be yielded
	have  int64 // of them, what the body will hold
	more  int64 // requests for what an answer left out, at most
}

// A fetch makes up to maxMore requests more than its first, and one for each minMore bytes, for what a server leaves out of its answers.
const (
	maxMore = 32
	minMore = 64 << 10
)

// begin judges the answer and puts the body at the range's first byte.
func (r *rangeReader) begin(resp *http.Response, off, n int64) error {
	size := r.place.src.size
	switch resp.StatusCode {
	case http.StatusPartialContent:
		first, last, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || first != off || last < first || last >= off+n || total >= 0 && total != size {
			return r.unusable("Content-Range %q for bytes %d-%d of %d", resp.Header.Get("Content-Range"), off, off+n-1, size)
		}
		// A server may send less than was asked for (RFC 9110, section 15.3.7), and is asked for the rest then.
		r.have = last - first + 1
		return nil
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return &Error{What: r.what, URL: redact(r.url), Status: resp.StatusCode,
				err: fmt.Errorf("%w: it has %d bytes, want %d", blob.ErrDigestMismatch, resp.ContentLength, size)}
		}
		if n < size {
			return r.unusable("the whole blob for bytes %d-%d of %d", off, off+n-1, size)
		}
		r.have = n
		return nil
	}
	defer discard(resp)
	s := r.place.e.session
	return s.refusal(r.what, resp, s.home(resp.Request.URL))
}

func (r *rangeReader) unusable(format string, args ...any) error {
	return &Error{What: r.what, URL: redact(r.url), err: fmt.Errorf("%w: got %s", blob.ErrRangeUnsupported,
		printable(fmt.Sprintf(format, args...)))}
}

// broken is the error for a body that ended, or failed, too early.
func (r *rangeReader) broken(err error) error {
	if r.ctx.Err() != nil {
		if cause := context.Cause(r.ctx); blob.Temporary(cause) { // nothing came for too long
			r.place.e.failed(cause)
		}
		return r.ctx.Err()
	}
	err = failure(r.what, r.url, err)
	r.place.e.failed(err)
	return err
}

func (r *rangeReader) Read(p []byte) (int, error) {
	switch {
	case r.ctx.Err() != nil:
		return 0, r.broken(nil)
	case r.left == 0:
		return 0, io.EOF
	case r.have == 0:
		if err := r.goOn(); err != nil {
			return 0, err
		}
	}
	if int64(len(p)) > r.have {
		p = p[:r.have]
	}
	n, err := r.body.Read(p)
	r.at += int64(n)
	r.left -= int64(n)
	r.have -= int64(n)
	switch {
	case r.have == 0:
		return n, nil
	case err != nil:
		return n, r.broken(err)
	}
	return n, nil
}

// goOn asks for what the answer left out.
func (r *rangeReader) goOn() error {
	if r.more--; r.more < 0 {
		return r.broken(io.ErrUnexpectedEOF)
	}
	discard(&http.Response{Body: r.body})
	next, err := r.place.fetch(r.ctx, r.what, r.url.String(), r.at, r.left)
	if err != nil {
		return err
	}
	r.body, r.have = next.body, next.have
	return nil
}

func (r *rangeReader) Close() error { return r.body.Close() }

// contentRange reads "bytes FIRST-LAST/TOTAL" (RFC 9110, section 14.4); an unknown total ("*") is -1.
func contentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	s, t, ok := strings.Cut(s, "/")
	if !ok {
		return 0, 0, 0, false
	}
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, 0, false
	}
	total = -1
	if t != "*" {
		if total, ok = decimal(t); !ok {
			return 0, 0, 0, false
		}
	}
	if first, ok = decimal(a); !ok {
		return 0, 0, 0, false
	}
	last, ok = decimal(b)
	return first, last, total, ok
}

func decimal(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}
