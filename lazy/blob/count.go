package blob

import (
	"context"
	"io"
	"sync/atomic"
)

// Counter counts what a source was asked for and what it gave. The zero value is ready; all may use it at once, and
// several sources may share one.
type Counter struct{ requests, bytes atomic.Int64 }

// Requests is the number of calls of Fetch, whatever became of them.
func (c *Counter) Requests() int64 { return c.requests.Load() }

// Bytes is the number of bytes read.
func (c *Counter) Bytes() int64 { return c.bytes.Load() }

// Count is src with its use counted in c. Put inside of Retry it counts every attempt, around it what was asked for.
func Count(src Source, c *Counter) Source { return &counted{src, c} }

type counted struct {
	Source
	c *Counter
}

func (s *counted) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.c.requests.Add(1)
	rc, err := s.Source.Fetch(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return &countedReader{rc, s.c}, nil
}

type countedReader struct {
	io.ReadCloser
	c *Counter
}

func (r *countedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.c.bytes.Add(int64(n))
	return n, err
}
