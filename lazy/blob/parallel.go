package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	pieces      = 4       // of one fetch under way at once
	pieceMin    = 1 << 20 // bytes
	pieceMax    = 2 << 20
	parallelMin = 8 << 20 // a smaller range comes as soon over a connection that is open already
)

// Parallel is src with ranges of 8 MiB and more fetched in pieces, several at once: many servers give each connection but a part of
// what the line could carry. A fetch holds up to 8 MiB that nobody has read yet. Where src gives no parts, the whole is read as one.
func Parallel(src Source) Source { return &parallel{src} }

type parallel struct{ Source }

func (s *parallel) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if n < parallelMin || CheckRange(s.Size(), off, n) != nil {
		return s.Source.Fetch(ctx, off, n)
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &piecewise{src: s.Source, ctx: ctx, cancel: cancel, at: off, next: off, end: off + n, size: max(pieceMin, min(n/16, pieceMax))}
	for range pieces {
		r.start(nil)
	}
	return r, nil
}

// piecewise reads a range from pieces that are fetched meanwhile.
type piecewise struct {
	src    Source
	ctx    context.Context
	cancel context.CancelFunc
	size   int64 // of a piece, but the last

	at, next, end int64 // where the reader is, where the next piece begins, where the range ends
	queue         []*piece
	fetches       sync.WaitGroup
	whole         io.ReadCloser // instead of pieces, where there are none to be had
	err           error
}

// piece is a part of the range that is being fetched.
type piece struct {
	read int // bytes; the reader's own

	mu   sync.Mutex // guards what follows; what is before have doesn't change
	came sync.Cond
	buf  []byte
	have int
	err  error // why no more will come
}

// start begins to fetch the next piece, if there is one left, into buf, if that is large enough.
func (r *piecewise) start(buf []byte) {
	n := min(r.size, r.end-r.next)
	if n == 0 {
		return
	}
	if int64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	p := &piece{buf: buf[:n]}
	p.came.L = &p.mu
	off := r.next
	r.next += n
	r.queue = append(r.queue, p)
	r.fetches.Go(func() { p.fetch(r.ctx, r.src, off) })
}

func (p *piece) fetch(ctx context.Context, src Source, off int64) {
	rc, err := src.Fetch(ctx, off, int64(len(p.buf)))
	if err != nil {
		p.add(0, err)
		return
	}
	for have := 0; have < len(p.buf) && err == nil; {
		var n int
		if n, err = rc.Read(p.buf[have:]); err == io.EOF && have+n < len(p.buf) {
			err = io.ErrUnexpectedEOF
		}
		have += n
		p.add(n, err)
	}
	_ = rc.Close() // all is read, or an error is known
}

func (p *piece) add(n int, err error) {
	p.mu.Lock()
	p.have += n
	p.err = err
	p.mu.Unlock()
	p.came.Signal()
}

// wait gives what has come and the reader hasn't had, or why nothing comes.
func (p *piece) wait() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.have == p.read && p.err == nil {
		p.came.Wait()
	}
	if p.have > p.read {
		return p.buf[p.read:p.have], nil
	}
	return nil, p.err
}

func (r *piecewise) Read(b []byte) (int, error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case r.at == r.end:
		return 0, io.EOF
	case len(b) == 0:
		return 0, nil
	case r.whole != nil:
		n, err := r.whole.Read(b[:min(int64(len(b)), r.end-r.at)])
		r.at += int64(n)
		return n, err
	}
	p := r.queue[0]
	have, err := p.wait()
	if errors.Is(err, ErrRangeUnsupported) {
		if r.err = r.readWhole(); r.err == nil {
			return r.Read(b)
		}
	} else if err != nil {
		r.err = err
	}
	if r.err != nil {
		r.cancel()
		return 0, r.err
	}
	n := copy(b, have)
	p.read += n
	r.at += int64(n)
	if p.read == len(p.buf) {
		r.queue = r.queue[1:]
		r.start(p.buf)
	}
	return n, nil
}

// readWhole goes on where the reader is with the blob as a whole.
func (r *piecewise) readWhole() error {
	r.next = r.end
	rc, err := r.src.Fetch(r.ctx, 0, r.src.Size())
	if err != nil {
		return err
	}
	r.whole = rc
	if _, err := io.CopyN(io.Discard, rc, r.at); err != nil {
		return fmt.Errorf("reading up to %d: %w", r.at, err)
	}
	return nil
}

func (r *piecewise) Close() error {
	r.cancel()
	r.fetches.Wait()
	if r.err == nil {
		r.err = errClosed
	}
	if r.whole != nil {
		return r.whole.Close()
	}
	return nil
}
