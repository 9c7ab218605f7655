package layer

import (
	"context"
	"io"
)

const (
	aheadBufs = 4
	aheadSize = 256 << 10
)

// ahead reads from a reader in a goroutine of its own, a few buffers ahead of whoever reads from it.
type ahead struct {
	full   chan aheadBuf // has room for all buffers and an error; an error comes last
	empty  chan []byte
	cur    aheadBuf
	pos    int // in cur
	cancel context.CancelFunc
	ended  chan struct{}
}

// aheadBuf is some bytes, and the error that came behind them.
type aheadBuf struct {
	b   []byte
	err error
}

func newAhead(ctx context.Context, r io.Reader) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{full: make(chan aheadBuf, aheadBufs+1), empty: make(chan []byte, aheadBufs), cancel: cancel, ended: make(chan struct{})}
	go a.run(ctx, r)
	return a
}

func (a *ahead) run(ctx context.Context, r io.Reader) {
	defer close(a.ended)
	for made := 0; ; {
		var b []byte
		if made < aheadBufs && len(a.empty) == 0 {
			b = make([]byte, aheadSize)
			made++
		} else {
			select {
			case b = <-a.empty:
			case <-ctx.Done():
				a.full <- aheadBuf{err: context.Cause(ctx)}
				return
			}
		}
		n := 0
		var err error
		for n < len(b) && err == nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
				break
			}
			var k int
			k, err = r.Read(b[n:])
			n += k
		}
		a.full <- aheadBuf{b[:n], err}
		if err != nil {
			return
		}
	}
}

// Read gives what was read ahead.
func (a *ahead) Read(p []byte) (int, error) {
	for a.pos == len(a.cur.b) {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.b != nil {
			a.empty <- a.cur.b[:aheadSize]
		}
		a.cur, a.pos = <-a.full, 0
	}
	n := copy(p, a.cur.b[a.pos:])
	a.pos += n
	return n, nil
}

// stop ends the goroutine and waits for it: then the reader is no longer in use. A Read of it that hangs has to be ended
// by its owner.
func (a *ahead) stop() {
	a.cancel()
	<-a.ended
}
