package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
)

// maxSkip is how much of a whole blob is read and thrown away for a part of it, in bytes, where the registry doesn't
// serve ranges.
const maxSkip = 1 << 20

// source is a blob of a repository.
type source struct {
	repo *Repo
	desc v1.Descriptor
	// location is where the registry sent the last fetch, on another host, or nil. It is asked first, until it fails:
	// a signed URL is good for many ranges.
	location atomic.Pointer[string]
}

var _ blob.Source = (*source)(nil)

func (s *source) Size() int64 { return s.desc.Size }

// Fetch asks for one range of bytes, or for the blob as a whole by a request without a range. An answer that isn't the
// range asked for wraps blob.ErrRangeUnsupported, unless it is the whole blob and the range near its beginning.
func (s *source) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := checkDescriptor(s.desc); err != nil {
		return nil, err
	}
	if err := blob.CheckRange(s.desc.Size, off, n); err != nil {
		return nil, err
	}
	what := "blob " + s.desc.Digest.String()
	if n < s.desc.Size {
		what = fmt.Sprintf("bytes %d-%d of %s", off, off+n-1, what)
	}
	if at := s.location.Load(); at != nil {
		rc, err := s.fetch(ctx, what, *at, off, n)
		if err == nil || ctx.Err() != nil {
			return rc, err
		}
		s.location.CompareAndSwap(at, nil)
	}
	return s.fetch(ctx, what, s.repo.url("blobs", s.desc.Digest.String()), off, n)
}

func (s *source) fetch(ctx context.Context, what, at string, off, n int64) (io.ReadCloser, error) {
	h := http.Header{}
	if n < s.desc.Size {
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := s.repo.do(ctx, http.MethodGet, what, at, h)
	if err != nil {
		return nil, err
	}
	r := &rangeReader{ctx: ctx, body: resp.Body, what: what, url: resp.Request.URL, left: n}
	if err := r.begin(s, resp, off, n); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	if !s.repo.session.home(resp.Request.URL) {
		s.location.Store(new(resp.Request.URL.String()))
	}
	return r, nil
}

// rangeReader yields the bytes of a range from the body of an answer.
type rangeReader struct {
	ctx  context.Context // of the Fetch: its end ends the reader
	body io.ReadCloser
	what string
	url  *url.URL
	left int64 // to be yielded
	have int64 // of them, what the body will hold; -1: not known
}

// begin judges the answer and puts the body at the range's first byte.
func (r *rangeReader) begin(s *source, resp *http.Response, off, n int64) error {
	size := s.desc.Size
	switch resp.StatusCode {
	case http.StatusPartialContent:
		first, last, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || first != off || last < first || last >= off+n || total >= 0 && total != size {
			return r.unusable("Content-Range %q for bytes %d-%d of %d", resp.Header.Get("Content-Range"), off, off+n-1, size)
		}
		// A server may send less than was asked for (RFC 9110, section 15.3.7). The rest is for the next fetch.
		r.have = last - first + 1
		return nil
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return &Error{What: r.what, URL: redact(r.url), Status: resp.StatusCode,
				err: fmt.Errorf("%w: it has %d bytes, want %d", blob.ErrDigestMismatch, resp.ContentLength, size)}
		}
		if off > maxSkip {
			return r.unusable("the whole blob for bytes %d-%d of %d", off, off+n-1, size)
		}
		if _, err := io.CopyN(io.Discard, r.body, off); err != nil {
			return r.broken(err)
		}
		r.have = n
		return nil
	}
	defer discard(resp)
	return refusal(r.what, resp, s.repo.session.home(resp.Request.URL))
}

func (r *rangeReader) unusable(format string, args ...any) error {
	return &Error{What: r.what, URL: redact(r.url), err: fmt.Errorf("%w: got %s", blob.ErrRangeUnsupported,
		printable(fmt.Sprintf(format, args...)))}
}

// broken is the error for a body that ended, or failed, too early.
func (r *rangeReader) broken(err error) error {
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	return failure(r.what, r.url, err)
}

func (r *rangeReader) Read(p []byte) (int, error) {
	switch {
	case r.ctx.Err() != nil:
		return 0, r.ctx.Err()
	case r.left == 0:
		return 0, io.EOF
	case r.have == 0:
		return 0, r.broken(io.ErrUnexpectedEOF)
	}
	if int64(len(p)) > r.have {
		p = p[:r.have]
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	r.have -= int64(n)
	switch {
	case r.left == 0:
		return n, nil
	case err != nil:
		return n, r.broken(err)
	}
	return n, nil
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
