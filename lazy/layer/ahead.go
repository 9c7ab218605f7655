package layer

import (
	"context"
	"io"
)

const (
	aheadBufs = 4
	aheadSize = 256 << 10
)

// ahead reads from r in a goroutine of its own, a few buffers ahead of its reader.
type ahead struct {
	full   chan aheadBuf
	empty  chan []byte
	cur    aheadBuf
	pos    int
	cancel context.CancelFunc
	ended  chan struct{}
}

type aheadBuf struct {
	b   []byte
	err error
}

func newAhead(ctx context.Context, r io.Reader) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{full: make(chan aheadBuf, aheadBufs), empty: make(chan []byte, aheadBufs), cancel: cancel, ended: make(chan struct{})}
	for range aheadBufs {
		a.empty <- make([]byte, aheadSize)
	}
	go func() {
		defer close(a.ended)
		defer close(a.full)
		for {
			var b []byte
			select {
			case b = <-a.empty:
			case <-ctx.Done():
				return
			}
			n := 0
			var err error
			for n < len(b) && err == nil && ctx.Err() == nil {
				var k int
				k, err = r.Read(b[n:])
				n += k
			}
			if err == nil {
				err = ctx.Err()
			}
			a.full <- aheadBuf{b[:n], err} // never blocks: there are no more buffers than places
			if err != nil {
				return
			}
		}
	}()
	return a
}

func (a *ahead) Read(p []byte) (int, error) {
	for a.pos == len(a.cur.b) {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.b != nil {
			a.empty <- a.cur.b[:cap(a.cur.b)]
		}
		next, ok := <-a.full
		if !ok {
			next.err = context.Canceled
		}
		a.cur, a.pos = next, 0
	}
	n := copy(p, a.cur.b[a.pos:])
	a.pos += n
	return n, nil
}

// stop ends the goroutine and waits for it: r is then no longer in use. A Read of r that hangs has to be ended by r's owner.
func (a *ahead) stop() {
	a.cancel()
	<-a.ended
}
