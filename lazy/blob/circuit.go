package blob

import (
	"context"
	"errors"
	"io"
	"net/url"
	"sync"
	"time"
)

// Circuits spare readers what others have waited for in vain. When a fetch has failed for good, further ones of the same blob, or of the same
// server if that was not to be reached at all, get its error at once for a second. Then one tries again, once; those who come meanwhile
// get what it gets. The first success ends it, and so does a while in which nobody has asked. Methods may be called concurrently.
// The zero value is ready.
type Circuits struct {
	mu      sync.Mutex          // guards servers, not what it holds
	servers map[string]*circuit // by host and port
}

const (
	circuitOpen    = time.Second      // after a failure nobody tries
	circuitLife    = 10 * time.Second // after that, it is forgotten
	circuitWait    = time.Second      // for the one who tries
	circuitSilence = 45 * time.Second // without a byte, after which the end of a reader's patience is a failure
	maxServers     = 1024
)

// circuit is what is known of a blob or a server.
type circuit struct {
	mu    sync.Mutex    // guards what follows
	err   error         // nil: nothing bad
	until time.Time     // nobody tries
	trial chan struct{} // closed when the one who tries knows; nil: nobody tries
}

// enter waits until the caller may fetch. If it is a trial, know is to be called with that, after broke if it has failed; the error is
// the last failure, or ctx's.
func (c *circuit) enter(ctx context.Context) (trial bool, err error) {
	for waited := false; ; waited = true {
		c.mu.Lock()
		now := time.Now()
		switch {
		case c.err == nil || now.After(c.until.Add(circuitLife)) && c.trial == nil:
			c.err = nil
			c.mu.Unlock()
			return false, nil
		case now.Before(c.until) || c.trial != nil && waited:
			defer c.mu.Unlock()
			return false, c.err
		case c.trial == nil:
			c.trial = make(chan struct{})
			c.mu.Unlock()
			return true, nil
		}
		other := c.trial
		c.mu.Unlock()
		t := time.NewTimer(circuitWait)
		select {
		case <-other:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false, context.Cause(ctx)
		}
		t.Stop()
	}
}

// broke notes that a fetch has failed; nobody tries for so long.
func (c *circuit) broke(err error, open time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err, c.until = err, time.Now().Add(open)
}

// know notes that a fetch has succeeded, or, with left, that nothing is known of it.
func (c *circuit) know(left, trial bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !left {
		c.err = nil
	}
	if trial {
		close(c.trial)
		c.trial = nil
	}
}

// server is the circuit of a server, or nil where its name isn't known.
func (cs *Circuits) server(host string) *circuit {
	if host == "" {
		return nil
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.servers[host]
	if c == nil {
		if cs.servers == nil || len(cs.servers) >= maxServers {
			cs.servers = make(map[string]*circuit)
		}
		c = new(circuit)
		cs.servers[host] = c
	}
	return c
}

// Guard is src with these circuits; once is the same with one attempt instead of many. where, which may be nil, gives the URL that fetches are
// made from. An error tells by a method Down() string that a server, by host and port, wasn't to be reached. Failures that are of a range
// only (ErrDigestMismatch, ErrRangeUnsupported) break nothing, nor does the end of a context, unless nothing had come for long.
func (cs *Circuits) Guard(src, once Source, where func() string) Source {
	return &guarded{Source: src, once: once, where: where, cs: cs}
}

type guarded struct {
	Source
	once  Source
	where func() string
	cs    *Circuits
	own   circuit
}

// host is the server that the blob comes from.
func (s *guarded) host() string {
	if s.where == nil {
		return ""
	}
	u, err := url.Parse(s.where())
	if err != nil {
		return ""
	}
	return u.Host
}

func (s *guarded) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := CheckRange(s.Size(), off, n); err != nil {
		return nil, err
	}
	r := &guardedReader{ctx: ctx, s: s, off: off, n: n, since: time.Now()}
	for _, c := range []*circuit{&s.own, s.cs.server(s.host())} {
		if c == nil {
			continue
		}
		trial, err := c.enter(ctx)
		if err != nil {
			r.know(true)
			return nil, err
		}
		r.circuits = append(r.circuits, entered{c, trial})
		r.trial = r.trial || trial
	}
	from := s.Source
	if r.trial {
		from = s.once
	}
	var err error
	if r.rc, err = from.Fetch(ctx, off, n); err != nil {
		r.failed(err)
		return nil, err
	}
	return r, nil
}

type entered struct {
	*circuit
	trial bool
}

// guardedReader is a fetch that tells what becomes of it.
type guardedReader struct {
	ctx    context.Context
	s      *guarded
	rc     io.ReadCloser
	off, n int64     // what is left
	since  time.Time // when the last byte came

	circuits []entered // until it is known whether they hold
	trial    bool
}

// know tells all circuits, once.
func (r *guardedReader) know(left bool) {
	for _, c := range r.circuits {
		c.know(left, c.trial)
	}
	r.circuits = nil
}

// failed notes the end of the fetch.
func (r *guardedReader) failed(err error) {
	open := circuitOpen
	if r.ctx.Err() != nil {
		if silence := time.Since(r.since); silence >= circuitSilence {
			err, open = &idleError{silence.Round(time.Second)}, 0 // it may end just now
		} else {
			err = nil
		}
	}
	if err == nil || errors.Is(err, errClosed) || errors.Is(err, ErrDigestMismatch) || errors.Is(err, ErrRangeUnsupported) {
		r.know(true)
		return
	}
	r.s.own.broke(err, open)
	var of interface{ Down() string }
	if errors.As(err, &of) {
		if c := r.s.cs.server(of.Down()); c != nil {
			c.broke(err, open)
		}
	}
	r.know(true)
}

func (r *guardedReader) Read(p []byte) (int, error) {
	n, err := r.rc.Read(p)
	if n > 0 {
		r.know(false)
		r.off, r.n, r.since = r.off+int64(n), r.n-int64(n), time.Now()
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	if r.trial && r.circuits == nil && r.ctx.Err() == nil && Temporary(err) { // the trial has succeeded: it goes on as others do
		_ = r.rc.Close() // it has failed already
		r.trial = false
		if r.rc, err = r.s.Source.Fetch(r.ctx, r.off, r.n); err == nil {
			return n, nil
		}
		r.rc = io.NopCloser(failedReader{err})
	}
	r.failed(err)
	return n, err
}

type failedReader struct{ err error }

func (r failedReader) Read([]byte) (int, error) { return 0, r.err }

func (r *guardedReader) Close() error {
	r.know(true)
	return r.rc.Close()
}
