package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

func TestConformance(t *testing.T) {
	t.Run("bytes", func(t *testing.T) {
		blobtest.Run(t, func(_ *testing.T, b []byte) blob.Source { return blobtest.Bytes(b) })
	})
	t.Run("retry", func(t *testing.T) {
		blobtest.Run(t, func(_ *testing.T, b []byte) blob.Source {
			return blob.Retry(blobtest.Bytes(b), blob.Policy{})
		})
	})
	t.Run("count", func(t *testing.T) {
		blobtest.Run(t, func(_ *testing.T, b []byte) blob.Source {
			return blob.Count(blobtest.Bytes(b), new(blob.Counter))
		})
	})
	t.Run("cut every 40 KiB", func(t *testing.T) {
		blobtest.Run(t, func(_ *testing.T, b []byte) blob.Source {
			return blob.Retry(&faulty{Source: blobtest.Bytes(b), fault: func(int, int64, int64) fault {
				return fault{after: 40 << 10, err: io.ErrUnexpectedEOF}
			}}, blob.Policy{MinWait: time.Microsecond, Attempts: 20})
		})
	})
}

// fault is what happens to a fetch: an error at once, or after some bytes; hang instead of an error if there is none.
type fault struct {
	open  error
	after int64 // -1: never
	err   error
}

var none = fault{after: -1}

type faulty struct {
	blob.Source
	fault func(call int, off, n int64) fault
	calls atomic.Int64
}

func (f *faulty) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	what := f.fault(int(f.calls.Add(1)-1), off, n)
	if what.open != nil {
		return nil, what.open
	}
	rc, err := f.Source.Fetch(ctx, off, n)
	if err != nil || what.after < 0 || what.after >= n {
		return rc, err
	}
	return &cut{ctx, rc, what.after, what.err}, nil
}

type cut struct {
	ctx context.Context
	io.ReadCloser
	left int64
	err  error
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left == 0 {
		if c.err != nil {
			return 0, c.err
		}
		<-c.ctx.Done()
		return 0, c.ctx.Err()
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// busy is an error that passes.
type busy struct{ after time.Duration }

func (*busy) Error() string               { return "busy" }
func (*busy) Temporary() bool             { return true }
func (b *busy) RetryAfter() time.Duration { return b.after }

var errPermanent = errors.New("permanent")

func TestRetry(t *testing.T) {
	content := blobtest.Random(1 << 20)
	for _, tt := range []struct {
		name     string
		policy   blob.Policy
		fault    func(call int, off, n int64) fault
		calls    int
		min, max time.Duration
		wantErr  error
	}{
		{name: "no fault", fault: func(int, int64, int64) fault { return none }, calls: 1},
		{
			name: "opens at the third try",
			fault: func(call int, _, _ int64) fault {
				if call < 2 {
					return fault{open: &busy{}}
				}
				return none
			},
			calls: 3, min: 150 * time.Millisecond, max: 300 * time.Millisecond,
		},
		{
			name: "server asks for time",
			fault: func(call int, _, _ int64) fault {
				if call == 0 {
					return fault{open: &busy{7 * time.Second}}
				}
				return none
			},
			calls: 2, min: 7 * time.Second, max: 7200 * time.Millisecond,
		},
		{
			name:  "server asks for too much",
			fault: func(int, int64, int64) fault { return fault{open: &busy{time.Hour}} },
			calls: 1, wantErr: &busy{},
		},
		{
			name:   "never opens",
			policy: blob.Policy{Attempts: 3, MinWait: time.Second, MaxWait: 3 * time.Second},
			fault:  func(int, int64, int64) fault { return fault{open: &busy{}} },
			calls:  3, min: 1500 * time.Millisecond, max: 3 * time.Second, wantErr: &busy{},
		},
		{
			name:  "cut often with progress",
			fault: func(int, int64, int64) fault { return fault{after: 100_000, err: io.ErrUnexpectedEOF} },
			calls: 11, min: 500 * time.Millisecond, max: time.Second,
		},
		{
			name:  "cut often without",
			fault: func(int, int64, int64) fault { return fault{after: 1, err: io.ErrUnexpectedEOF} },
			calls: 6, min: 1500 * time.Millisecond, max: 3100 * time.Millisecond, wantErr: io.ErrUnexpectedEOF,
		},
		{
			name: "hangs once", policy: blob.Policy{Idle: 10 * time.Second},
			fault: func(call int, _, _ int64) fault {
				if call == 0 {
					return fault{after: 5000}
				}
				return none
			},
			calls: 2, min: 10 * time.Second, max: 10100 * time.Millisecond,
		},
		{
			name:  "permanent at once",
			fault: func(int, int64, int64) fault { return fault{open: errPermanent} },
			calls: 1, wantErr: errPermanent,
		},
		{
			name:  "permanent within",
			fault: func(int, int64, int64) fault { return fault{after: 500, err: errPermanent} },
			calls: 1, wantErr: errPermanent,
		},
		{
			name: "digest is permanent",
			fault: func(int, int64, int64) fault {
				return fault{after: 500, err: fmt.Errorf("%w: %w", blob.ErrDigestMismatch, &busy{})}
			},
			calls: 1, wantErr: blob.ErrDigestMismatch,
		},
		{
			name: "no ranges: from the start again",
			fault: func(call int, off, _ int64) fault {
				switch {
				case call == 0:
					return fault{after: 200_000, err: io.ErrUnexpectedEOF}
				case off > 100:
					return fault{open: blob.ErrRangeUnsupported}
				}
				return none
			},
			calls: 3, min: 50 * time.Millisecond, max: 100 * time.Millisecond,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const off = 100
				src := &faulty{Source: blobtest.Bytes(content), fault: tt.fault}
				var counter blob.Counter
				start := time.Now()
				rc, err := blob.Retry(blob.Count(src, &counter), tt.policy).Fetch(t.Context(), off, int64(len(content)-off))
				var got []byte
				if err == nil {
					got, err = io.ReadAll(rc)
					if err := rc.Close(); err != nil {
						t.Error(err)
					}
				}
				took := time.Since(start) // of the bubble's clock
				if src.calls.Load() != int64(tt.calls) || counter.Requests() != int64(tt.calls) {
					t.Errorf("%d fetches, counted %d, want %d", src.calls.Load(), counter.Requests(), tt.calls)
				}
				if took < tt.min || took > tt.max {
					t.Errorf("waited %v, want %v to %v", took, tt.min, tt.max)
				}
				if tt.wantErr != nil {
					var b *busy
					if !errors.Is(err, tt.wantErr) && !(errors.As(tt.wantErr, &b) && errors.As(err, &b)) {
						t.Fatalf("error %v, want %v", err, tt.wantErr)
					}
					if !bytes.HasPrefix(content[off:], got) {
						t.Error("other bytes before the error")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, content[off:]) {
					t.Error("other bytes")
				}
				if counter.Bytes() < int64(len(got)) {
					t.Errorf("counted %d bytes of %d", counter.Bytes(), len(got))
				}
			})
		})
	}
}

func TestRetryEndsWithContext(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault fault
	}{
		{"while waiting to retry", fault{open: &busy{time.Minute}}},
		{"while reading", fault{after: 10}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				start := time.Now()
				src := &faulty{Source: blobtest.Bytes(blobtest.Random(1000)), fault: func(int, int64, int64) fault { return tt.fault }}
				rc, err := blob.Retry(src, blob.Policy{Idle: time.Hour}).Fetch(ctx, 0, 1000)
				if err == nil {
					_, err = io.ReadAll(rc)
					rc.Close()
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
				if took := time.Since(start); took != 5*time.Second {
					t.Errorf("ended after %v", took)
				}
			})
		})
	}
}

func TestReadAfterClose(t *testing.T) {
	rc, err := blob.Retry(blobtest.Bytes("abc"), blob.Policy{}).Fetch(t.Context(), 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := rc.Read(make([]byte, 3)); err == nil || n != 0 {
		t.Errorf("Read gave %d, %v", n, err)
	}
}

func TestDo(t *testing.T) {
	for _, tt := range []struct {
		name  string
		f     func(call int, ctx context.Context, alive func()) error
		calls int
		want  string
	}{
		{"works", func(int, context.Context, func()) error { return nil }, 1, ""},
		{"permanent", func(int, context.Context, func()) error { return errPermanent }, 1, "permanent"},
		{"passes", func(call int, _ context.Context, _ func()) error {
			if call < 3 {
				return &busy{}
			}
			return nil
		}, 4, ""},
		{"goes on", func(int, context.Context, func()) error { return &busy{} }, 6, "giving up after 6 attempts: busy"},
		{"hangs", func(_ int, ctx context.Context, _ func()) error {
			<-ctx.Done()
			return ctx.Err()
		}, 6, "nothing received for 15s"},
		{"slow but alive", func(_ int, ctx context.Context, alive func()) error {
			for range 10 {
				time.Sleep(14 * time.Second)
				alive()
			}
			return ctx.Err()
		}, 1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				err := blob.Policy{}.Do(t.Context(), func(ctx context.Context, alive func()) error {
					calls++
					return tt.f(calls-1, ctx, alive)
				})
				if calls != tt.calls {
					t.Errorf("%d calls, want %d", calls, tt.calls)
				}
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
			})
		})
	}
}
