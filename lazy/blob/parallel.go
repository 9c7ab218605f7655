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
	pieceSize   = 1 << 20 // bytes
	parallelMin = 8 << 20 // a smaller range comes as soon over a connection that is open already
)

// Parallel is src with ranges of 8 MiB and more fetched in pieces, several at once: many servers give each connection but a part of
// what the line could carry. A fetch holds up to 4 MiB that nobody has read yet. Where src gives no parts, the whole is read as one.
func Parallel(src Source) Source { return &parallel{src} }

type parallel struct{ Source }

func (s *parallel) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if n < parallelMin || CheckRange(s.Size(), off, n) != nil {
		return s.Source.Fetch(ctx, off, n)
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &piecewise{src: s.Source, ctx: ctx, cancel: cancel, at: off, next: off, end: off + n}
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

	at, next, end int64 // where the reader is, where the next piece begins, where the range ends
	queue         []*Held
	fetches       sync.WaitGroup
	whole         io.ReadCloser // instead of pieces, where there are none to be had
	err           error
}

// start begins to fetch the next piece, if there is one left, into buf, if that is large enough.
func (r *piecewise) start(buf []byte) {
	n := min(pieceSize, r.end-r.next)
	if n == 0 {
		return
	}
	p := NewHeld(r.next, n, buf)
	r.next += n
	r.queue = append(r.queue, p)
	r.fetches.Go(func() { p.Fill(r.ctx, r.src) })
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
	n, err := p.ReadAt(r.ctx, b, r.at)
	if errors.Is(err, ErrRangeUnsupported) {
		if err = r.readWhole(); err == nil {
			return r.Read(b)
		}
	}
	if err != nil {
		r.err = err
		r.cancel()
		return 0, err
	}
	if r.at += int64(n); r.at == p.off+p.Len() {
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
