package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Retry is src with fetches that outlast failures: one that can't be opened, is cut, or goes silent is taken up again at
// the byte where it stopped, as p says. Where src turns out to serve no ranges, it is read again from where the fetch
// began and what was had is skipped. Errors that won't pass (see Temporary) and the end of ctx come through at once.
func Retry(src Source, p Policy) Source { return &retried{src, p.withDefaults()} }

type retried struct {
	Source
	p Policy
}

func (s *retried) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := CheckRange(s.Size(), off, n); err != nil {
		return nil, err
	}
	r := &resumer{ctx: ctx, src: s.Source, p: s.p, off: off, n: n}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

// resumer reads one range through as many fetches as it takes.
type resumer struct {
	ctx    context.Context // of the Fetch: its end ends the reader
	src    Source
	p      Policy
	off, n int64 // the range
	done   int64 // how much of it was read

	rc      io.ReadCloser // the fetch under way, or nil
	dog     *watchdog     // of rc
	skip    int64         // bytes of rc that were had before
	restart bool          // src gives no ranges: fetch from off on again

	failures int   // in a row
	fresh    int64 // bytes read since the last failure
	cause    error // the last failure, to wait for
	err      error // what every further Read returns
}

// open makes rc a fetch of what is left. On an error the reader has ended.
func (r *resumer) open() error {
	for {
		if err := r.pause(); err != nil {
			return r.fail(err)
		}
		try := r.ctx
		if r.failures > 0 {
			try = again(try)
		}
		off, n := r.off+r.done, r.n-r.done
		if r.restart {
			off, n = r.off, r.n
		}
		ctx, dog := watch(try, r.p.Idle)
		rc, err := r.src.Fetch(ctx, off, n)
		dog.disarm()
		if err == nil {
			r.rc, r.dog, r.skip = rc, dog, r.off+r.done-off
			return nil
		}
		err = dog.explain(err)
		dog.stop()
		if errors.Is(err, ErrRangeUnsupported) && r.done > 0 && !r.restart {
			r.restart = true
			continue
		}
		r.failed(err)
	}
}

// failed takes note of a failure; the next pause decides what follows.
func (r *resumer) failed(err error) {
	if r.fresh >= progress {
		r.failures = 0
	}
	r.failures++
	r.fresh = 0
	r.cause = err
}

// pause waits as the policy says after a failure; an error is the end.
func (r *resumer) pause() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if r.cause == nil {
		return nil
	}
	cause := r.cause
	r.cause = nil
	d, ok := r.p.wait(r.failures, cause)
	if !ok {
		return fmt.Errorf("reading %d bytes from %d: %w", r.n, r.off, givingUp(r.failures, cause))
	}
	return sleep(r.ctx, d)
}

func (r *resumer) fail(err error) error {
	r.err = err
	return err
}

// drop closes the fetch under way.
func (r *resumer) drop() error {
	if r.rc == nil {
		return nil
	}
	err := r.rc.Close()
	r.dog.stop()
	r.rc = nil
	return err
}

func (r *resumer) Read(p []byte) (int, error) {
	for {
		if r.err != nil {
			return 0, r.err
		}
		if r.done == r.n {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if r.rc == nil {
			if err := r.open(); err != nil {
				return 0, err
			}
		}
		if n := r.read(p); n > 0 {
			return n, nil
		}
	}
}

// read reads once from the fetch under way. Zero bytes are no reason to stop: rc may be gone, or be skipping.
func (r *resumer) read(p []byte) int {
	left := r.skip
	if left == 0 {
		left = r.n - r.done
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	r.dog.arm()
	n, err := r.rc.Read(p)
	r.dog.disarm()
	err = r.dog.explain(err)
	if err == io.EOF && int64(n) < left {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && n == 0 {
		err = io.ErrNoProgress
	}
	if r.skip > 0 {
		r.skip -= int64(n)
		n = 0
	}
	r.done += int64(n)
	r.fresh += int64(n)
	if err != nil && err != io.EOF {
		// The error of closing what has failed already adds nothing.
		_ = r.drop()
		r.failed(err)
	}
	return n
}

func (r *resumer) Close() error {
	if r.err == nil {
		r.err = errClosed
	}
	return r.drop()
}

var errClosed = errors.New("reading a closed fetch")
