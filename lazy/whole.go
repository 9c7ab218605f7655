package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/pexfs/pex/lazy/blob"
)

// wholeIdle is how long a layer that is had only as a whole stays without a reader.
const wholeIdle = time.Minute

// wholes are layers whose registry gives no parts of them. One is fetched once, as a stream, into a file that has no name, and its ranges
// are read from there as they arrive, by however many want some. The file goes when nobody has read for a while.
type wholes struct {
	scratch func() (scratch, error)
	idle    time.Duration
	work    sync.WaitGroup

	mu     sync.Mutex // guards what follows, and what a whole says it does
	m      map[string]*whole
	closed bool
}

// scratch is a file that is gone when it is closed.
type scratch interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// whole is one of them.
type whole struct {
	f      scratch
	cancel context.CancelFunc // of the stream

	// Guarded by the wholes' mu. The file is closed when nobody uses it any more, and nobody will.
	readers            int
	streaming, dropped bool
	timer              *time.Timer // since the last reader has gone

	mu   sync.Mutex // guards what follows
	have int64
	err  error // why no more comes
	more chan struct{}
}

// parts is src with ranges also where its medium gives none. digest names the blob.
func (ws *wholes) parts(src blob.Source, digest string) blob.Source {
	return &parted{src, ws, digest}
}

type parted struct {
	blob.Source
	ws     *wholes
	digest string
}

func (p *parted) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := blob.CheckRange(p.Size(), off, n); err != nil {
		return nil, err
	}
	if r := p.ws.reader(ctx, p.digest, off, n); r != nil {
		return r, nil
	}
	rc, err := p.Source.Fetch(ctx, off, n)
	if !errors.Is(err, blob.ErrRangeUnsupported) || n == p.Size() {
		return rc, err
	}
	r, serr := p.ws.start(ctx, p.digest, p.Source, off, n)
	if serr != nil {
		return nil, errors.Join(err, serr)
	}
	return r, nil
}

// reader reads a range of a whole, or is nil where there is none.
func (ws *wholes) reader(ctx context.Context, digest string, off, n int64) io.ReadCloser {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.m[digest]
	if w == nil {
		return nil
	}
	return ws.join(ctx, w, off, n)
}

// join reads a range of w. ws.mu is held.
func (ws *wholes) join(ctx context.Context, w *whole, off, n int64) io.ReadCloser {
	w.readers++
	w.timer.Stop()
	return &wholeReader{ctx: ctx, ws: ws, w: w, at: off, end: off + n}
}

// start begins to fetch a blob, unless somebody has, and reads a range of it.
func (ws *wholes) start(reading context.Context, digest string, src blob.Source, off, n int64) (io.ReadCloser, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return nil, fmt.Errorf("reading blob %s as a whole: %w", digest, os.ErrClosed)
	}
	if w := ws.m[digest]; w != nil {
		return ws.join(reading, w, off, n), nil
	}
	f, err := ws.scratch()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &whole{f: f, cancel: cancel, streaming: true, more: make(chan struct{})}
	w.timer = time.AfterFunc(ws.idle, func() { ws.expire(digest, w) })
	if ws.m == nil {
		ws.m = make(map[string]*whole)
	}
	ws.m[digest] = w
	ws.work.Go(func() {
		err := w.fill(ctx, src)
		if err != nil { // whoever comes next begins anew
			ws.drop(digest, w)
		}
		ws.mu.Lock()
		defer ws.mu.Unlock()
		w.streaming = false
		w.end()
	})
	return ws.join(reading, w, off, n), nil
}

// fill fetches the blob.
func (w *whole) fill(ctx context.Context, src blob.Source) error {
	rc, err := src.Fetch(ctx, 0, src.Size())
	if err != nil {
		w.add(0, err)
		return err
	}
	buf := make([]byte, 256<<10)
	for at := int64(0); at < src.Size() && err == nil; {
		var n int
		if n, err = rc.Read(buf); n > 0 {
			if _, werr := w.f.WriteAt(buf[:n], at); werr != nil {
				n, err = 0, werr
			}
		}
		at += int64(n)
		if err == io.EOF {
			if err = nil; at < src.Size() {
				err = io.ErrUnexpectedEOF
			}
		}
		w.add(int64(n), err)
	}
	return errors.Join(err, rc.Close())
}

func (w *whole) add(n int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.have += n
	if err != nil {
		w.err = fmt.Errorf("reading the whole for a part: %w", err)
	}
	close(w.more)
	w.more = make(chan struct{})
}

// drop forgets a whole: those who read it may go on with what there is.
func (ws *wholes) drop(digest string, w *whole) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.forget(digest, w)
}

// expire forgets a whole that nobody has read for a while, unless somebody has just come.
func (ws *wholes) expire(digest string, w *whole) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.readers == 0 {
		ws.forget(digest, w)
	}
}

// forget is drop with ws.mu held.
func (ws *wholes) forget(digest string, w *whole) {
	if ws.m[digest] == w {
		delete(ws.m, digest)
	}
	w.timer.Stop()
	w.cancel()
	w.dropped = true
	w.end()
}

// end closes the file if nobody uses it.
func (w *whole) end() {
	if w.dropped && !w.streaming && w.readers == 0 {
		w.f.Close() // it is gone then
	}
}

// distrust forgets what was fetched of a blob: it is not what its digests say.
func (ws *wholes) distrust(digest string) {
	ws.mu.Lock()
	w := ws.m[digest]
	ws.mu.Unlock()
	if w != nil {
		ws.drop(digest, w)
	}
}

// leave ends a reader's use of a whole.
func (ws *wholes) leave(w *whole) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.readers--; w.readers == 0 && !w.dropped {
		w.timer.Reset(ws.idle)
	}
	w.end()
}

// close ends all streams and waits for them. What is read fails.
func (ws *wholes) close() {
	ws.mu.Lock()
	ws.closed = true
	all := ws.m
	ws.m = nil
	ws.mu.Unlock()
	for digest, w := range all {
		ws.drop(digest, w)
	}
	ws.work.Wait()
}

// wholeReader reads a range of a whole.
type wholeReader struct {
	ctx     context.Context
	ws      *wholes
	w       *whole
	at, end int64
	closed  bool
}

func (r *wholeReader) Read(p []byte) (int, error) {
	for {
		if r.ctx.Err() != nil {
			return 0, context.Cause(r.ctx)
		}
		if r.at == r.end {
			return 0, io.EOF
		}
		r.w.mu.Lock()
		have, err, more := r.w.have, r.w.err, r.w.more
		r.w.mu.Unlock()
		if have > r.at {
			n, err := r.w.f.ReadAt(p[:min(int64(len(p)), have-r.at, r.end-r.at)], r.at)
			r.at += int64(n)
			return n, err
		}
		if err != nil {
			return 0, err
		}
		select {
		case <-more:
		case <-r.ctx.Done():
		}
	}
}

func (r *wholeReader) Close() error {
	if !r.closed {
		r.closed = true
		r.ws.leave(r.w)
	}
	return nil
}
