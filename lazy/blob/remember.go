package blob

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Remember is src, which answers with its last failure for as long as that is younger than d: many may have waited for the same, and would
// meet it one after the other. Failures that are of a range only (ErrDigestMismatch, ErrRangeUnsupported), and those that are a context's
// end, aren't remembered.
func Remember(src Source, d time.Duration) Source { return &remembering{Source: src, life: d} }

type remembering struct {
	Source
	life time.Duration

	mu  sync.Mutex // guards what follows
	err error
	at  time.Time
}

func (s *remembering) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	err, at := s.err, s.at
	s.mu.Unlock()
	if err != nil && time.Since(at) < s.life {
		return nil, err
	}
	rc, err := s.Source.Fetch(ctx, off, n)
	if err != nil {
		s.note(ctx, err)
		return nil, err
	}
	return &rememberingReader{rc, s, ctx}, nil
}

func (s *remembering) note(ctx context.Context, err error) {
	if ctx.Err() != nil || errors.Is(err, errClosed) || errors.Is(err, ErrDigestMismatch) || errors.Is(err, ErrRangeUnsupported) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.at = err, time.Now()
}

type rememberingReader struct {
	io.ReadCloser
	s   *remembering
	ctx context.Context
}

func (r *rememberingReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		r.s.note(r.ctx, err)
	}
	return n, err
}
