package layer

import (
	"context"
	"io"
	"sync"
)

const (
	aheadBufs = 4
	aheadSize = 256 << 10
)

// feed gives the next bytes of a stream, p, which lie in the buffer mem: in empty, or in the one that it was given before.
// Bytes come without an error.
type feed func(ctx context.Context, empty []byte) (mem, p []byte, err error)

// readFeed is the feed of a reader.
func readFeed(r io.Reader) feed {
	var ended error
	return func(ctx context.Context, empty []byte) (mem, p []byte, err error) {
		n := 0
		for n < len(empty) && ended == nil {
			if ctx.Err() != nil {
				ended = context.Cause(ctx)
				break
			}
			var k int
			k, ended = r.Read(empty[n:])
			n += k
		}
		if n == 0 {
			return nil, nil, ended
		}
		return empty, empty[:n], nil
	}
}

// ahead takes bytes from a feed in a goroutine of its own, a few buffers ahead of whoever reads them.
type ahead struct {
	full   <-chan aheadBuf
	empty  chan []byte
	cur    aheadBuf
	cancel context.CancelFunc
	run    sync.WaitGroup
}

// aheadBuf is a buffer, what of it is to be read, and the error that came behind that.
type aheadBuf struct {
	mem, p []byte
	err    error
}

// newAhead takes buffers of size bytes. Each piece passes the stages, in goroutines of their own, before it can be read.
func newAhead(ctx context.Context, size int, next feed, stages ...func(p []byte)) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{empty: make(chan []byte, aheadBufs+1), cancel: cancel}
	// each channel has room for all buffers and an error, which comes last
	first := make(chan aheadBuf, aheadBufs+2)
	a.run.Go(func() {
		defer close(first)
		a.take(ctx, size, next, first)
	})
	full := first
	for _, stage := range stages {
		from, to := full, make(chan aheadBuf, cap(full))
		a.run.Go(func() {
			defer close(to)
			for b := range from {
				stage(b.p)
				to <- b
			}
		})
		full = to
	}
	a.full = full
	return a
}

func (a *ahead) take(ctx context.Context, size int, next feed, full chan<- aheadBuf) {
	for made := 0; ; {
		var b []byte
		if made < aheadBufs && len(a.empty) == 0 {
			b = make([]byte, size)
			made++
		} else {
			select {
			case b = <-a.empty:
			case <-ctx.Done():
				full <- aheadBuf{err: context.Cause(ctx)}
				return
			}
		}
		if ctx.Err() != nil {
			full <- aheadBuf{err: context.Cause(ctx)}
			return
		}
		mem, p, err := next(ctx, b)
		full <- aheadBuf{mem, p, err}
		if err != nil {
			return
		}
	}
}

// Read gives what was taken ahead.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.cur.p) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.mem != nil {
			a.empty <- a.cur.mem
		}
		a.cur = <-a.full
	}
	n := copy(p, a.cur.p)
	a.cur.p = a.cur.p[n:]
	return n, nil
}

// stop ends the goroutines and waits for them: then the feed is no longer in use. A call of it that hangs has to be ended by
// its owner.
func (a *ahead) stop() {
	a.cancel()
	a.run.Wait()
}
