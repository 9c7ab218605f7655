package blob

import (
	"context"
	"io"
	"sync"
	"time"
)

// Stall is a silence: fetches from one place wait, and get nothing.
type Stall struct {
	Where   string // the place: an URL without its query
	Off, N  int64  // the range that has waited first
	Waited  time.Duration
	Fetches int  // how many wait
	Over    bool // something came again
}

// Stalls tells of fetches that get no byte for a while: once after each of 5, 10, 20, 40… seconds for each place, however many wait there,
// and once when something comes again. Its methods may be called concurrently.
type Stalls struct {
	tell  func(Stall)
	first time.Duration

	mu sync.Mutex // guards m and what it holds
	m  map[string]*silence
}

// silence is one place's.
type silence struct {
	off, n  int64
	since   time.Time
	next    time.Duration // after which it is told of again
	waiting int
}

// NewStalls makes Stalls that call tell, from several goroutines.
func NewStalls(tell func(Stall)) *Stalls {
	return &Stalls{tell: tell, first: 5 * time.Second, m: make(map[string]*silence)}
}

// Watch is src with its fetches watched, which come from the place that where names. Put around Retry it watches what a reader waits for.
func (s *Stalls) Watch(src Source, where func() string) Source { return &watched{src, s, where} }

type watched struct {
	Source
	s     *Stalls
	where func() string
}

func (w *watched) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r := &watchedReader{w: w, off: off, n: n}
	r.wait()
	rc, err := w.Source.Fetch(ctx, off, n)
	r.came(err == nil)
	if err != nil {
		return nil, err
	}
	r.ReadCloser = rc
	return r, nil
}

type watchedReader struct {
	io.ReadCloser
	w      *watched
	off, n int64 // what is left to be read

	timer *time.Timer
	since time.Time

	mu      sync.Mutex // guards what follows
	stalled string     // where; "" if it isn't, or hasn't been for long
	over    bool
}

func (r *watchedReader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return r.ReadCloser.Read(p) // nothing is to come
	}
	r.wait()
	n, err := r.ReadCloser.Read(p)
	r.came(n > 0)
	r.off += int64(n)
	r.n -= int64(n)
	return n, err
}

// wait begins to wait for bytes, and came ends that.
func (r *watchedReader) wait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since, r.over = time.Now(), false
	if r.timer == nil {
		r.timer = time.AfterFunc(r.w.s.first, r.still)
	} else {
		r.timer.Reset(r.w.s.first)
	}
}

func (r *watchedReader) came(bytes bool) {
	r.timer.Stop()
	r.mu.Lock()
	where := r.stalled
	r.stalled, r.over = "", true
	r.mu.Unlock()
	if where != "" {
		r.w.s.end(where, bytes)
	}
}

// still is called from time to time while nothing comes.
func (r *watchedReader) still() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	before := r.stalled
	if before == "" {
		r.stalled = r.w.where()
	}
	r.w.s.still(r.stalled, before == "", r)
	r.timer.Reset(r.w.s.first)
}

func (s *Stalls) still(where string, fresh bool, r *watchedReader) {
	s.mu.Lock()
	h := s.m[where]
	if h == nil { // the first, or the first since something came to another
		h = &silence{off: r.off, n: r.n, since: r.since, next: time.Since(r.since)}
		fresh = true
		s.m[where] = h
	}
	if fresh {
		h.waiting++
	}
	waited := time.Since(h.since)
	due := waited >= h.next
	told := Stall{where, h.off, h.n, waited, h.waiting, false}
	if due {
		h.next = 2 * waited
	}
	s.mu.Unlock()
	if due {
		s.tell(told)
	}
}

func (s *Stalls) end(where string, bytes bool) {
	s.mu.Lock()
	h := s.m[where]
	if h == nil {
		s.mu.Unlock()
		return
	}
	if h.waiting--; bytes || h.waiting <= 0 {
		delete(s.m, where)
	}
	told := Stall{where, h.off, h.n, time.Since(h.since), max(h.waiting, 0), true}
	s.mu.Unlock()
	if bytes {
		s.tell(told)
	}
}
