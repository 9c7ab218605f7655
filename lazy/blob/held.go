package blob

import (
	"context"
	"io"
	"sync"
)

// Held is a range of a blob that is read into memory. Its methods may be called concurrently.
type Held struct {
	off int64

	mu   sync.Mutex // guards what follows; what is before have doesn't change
	more chan struct{}
	buf  []byte
	have int
	err  error // why no more will come
}

// NewHeld makes a Held of the n bytes at off, in buf if that is large enough. Fill is to be called.
func NewHeld(off, n int64, buf []byte) *Held {
	if int64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	return &Held{off: off, buf: buf[:n], more: make(chan struct{})}
}

// Fill fetches the range from src. It is called once.
func (h *Held) Fill(ctx context.Context, src Source) {
	rc, err := src.Fetch(ctx, h.off, int64(len(h.buf)))
	if err != nil {
		h.add(0, err)
		return
	}
	for have := 0; have < len(h.buf) && err == nil; {
		var n int
		if n, err = rc.Read(h.buf[have:]); err == io.EOF && have+n < len(h.buf) {
			err = io.ErrUnexpectedEOF
		}
		have += n
		h.add(n, err)
	}
	_ = rc.Close() // all is read, or an error is known
}

func (h *Held) add(n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.have += n
	h.err = err
	close(h.more)
	h.more = make(chan struct{})
}

// Off and Len say which range it is.
func (h *Held) Off() int64 { return h.off }
func (h *Held) Len() int64 { return int64(len(h.buf)) }

// ReadAt reads what has come at off, which is within the range, and waits until there is something. Its error is why nothing will come,
// or ctx's. It is not io.ReaderAt's: it may read less than it was asked for, without an error.
func (h *Held) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	at := int(off - h.off)
	for {
		h.mu.Lock()
		have, err, more := h.have, h.err, h.more
		h.mu.Unlock()
		switch {
		case have > at:
			return copy(p, h.buf[at:have]), nil
		case err != nil:
			return 0, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
