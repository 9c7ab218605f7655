package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

const mib = 1 << 20

func TestParallel(t *testing.T) {
	content := blobtest.Random(40*mib + 17)
	size := int64(len(content))
	t.Run("conformance", func(t *testing.T) {
		blobtest.Run(t, func(_ *testing.T, b []byte) blob.Source { return blob.Parallel(blobtest.Bytes(b)) })
	})
	for _, r := range [][2]int64{{0, size}, {0, mib}, {5, 8 * mib}, {size - 9*mib, 9 * mib}, {1234567, 33*mib + 1}, {7, mib - 1}} {
		t.Run(fmt.Sprintf("bytes %d+%d", r[0], r[1]), func(t *testing.T) {
			if err := sameBytes(blob.Parallel(blobtest.Bytes(content)), r[0], r[1], content); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("pieces", func(t *testing.T) {
		var used blob.Counter
		if err := sameBytes(blob.Parallel(blob.Count(blobtest.Bytes(content), &used)), 0, size, content); err != nil {
			t.Fatal(err)
		}
		if used.Requests() != 41 || used.Bytes() != size {
			t.Errorf("%d requests for %d bytes, want 41 for %d", used.Requests(), used.Bytes(), size)
		}
	})
	t.Run("in order behind a slow beginning", func(t *testing.T) {
		src := &gated{Source: blobtest.Bytes(content), open: make(chan struct{})}
		go func() {
			for src.fetches.Load() < 4 { // the others are there
			}
			close(src.open)
		}()
		if err := sameBytes(blob.Parallel(src), 0, size, content); err != nil {
			t.Error(err)
		}
	})
	t.Run("no ranges", func(t *testing.T) {
		for _, from := range []int64{0, 1, 3 * mib} {
			src := &wholeOnly{Source: blobtest.Bytes(content), from: from}
			if err := sameBytes(blob.Parallel(src), 0, size, content); err != nil {
				t.Errorf("ranges from %d on refused: %v", from, err)
			}
		}
	})
	t.Run("fault", func(t *testing.T) {
		broken := errors.New("broken")
		src := &faulty{Source: blobtest.Bytes(content), fault: func(_ int, off, n int64) fault {
			if off >= 20*mib {
				return fault{after: mib / 2, err: broken}
			}
			return none
		}}
		rc, err := blob.Parallel(src).Fetch(t.Context(), 0, size)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		if !errors.Is(err, broken) || !bytes.Equal(got, content[:20*mib+mib/2]) {
			t.Errorf("%d bytes and error %v, want %d and %v", len(got), err, 20*mib+mib/2, broken)
		}
		if _, err := rc.Read(make([]byte, 1)); !errors.Is(err, broken) {
			t.Errorf("reading on: %v", err)
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("cut short", func(t *testing.T) {
		src := &faulty{Source: blobtest.Bytes(content), fault: func(call int, _, _ int64) fault {
			if call == 2 {
				return fault{after: 5, err: io.EOF}
			}
			return none
		}}
		if err := sameBytes(blob.Parallel(src), 0, size, content); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v, want %v", err, io.ErrUnexpectedEOF)
		}
	})
	t.Run("given up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			src := &faulty{Source: blobtest.Bytes(content), fault: func(int, int64, int64) fault { return fault{after: 10} }} // then nothing
			ctx, cancel := context.WithCancel(t.Context())
			rc, err := blob.Parallel(src).Fetch(ctx, 0, size)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			go func() {
				_, err := io.ReadAll(rc)
				ended <- err
			}()
			synctest.Wait()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want %v", err, context.Canceled)
			}
			rc.Close() // waits for the fetches; a goroutine that is left fails the test
		})
	})
	t.Run("closed early", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rc, err := blob.Parallel(blobtest.Bytes(content)).Fetch(t.Context(), 0, size)
			if err != nil {
				t.Fatal(err)
			}
			if err := rc.Close(); err != nil {
				t.Error(err)
			}
			if _, err := rc.Read(make([]byte, 1)); err == nil {
				t.Error("reading what is closed gave no error")
			}
		})
	})
}

func sameBytes(src blob.Source, off, n int64, content []byte) error {
	rc, err := src.Fetch(context.Background(), off, n)
	if err != nil {
		return err
	}
	defer rc.Close()
	got, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, content[off:off+n]) {
		return fmt.Errorf("%d bytes, not those of %d+%d", len(got), off, n)
	}
	return nil
}

// gated keeps the fetch of the blob's beginning until it is opened.
type gated struct {
	blob.Source
	open    chan struct{}
	fetches atomic.Int64
}

func (g *gated) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	g.fetches.Add(1)
	if off == 0 {
		<-g.open
	}
	return g.Source.Fetch(ctx, off, n)
}

// wholeOnly gives no ranges that begin at from or later.
type wholeOnly struct {
	blob.Source
	from int64
}

func (w *wholeOnly) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if n < w.Size() && off >= w.from {
		return nil, fmt.Errorf("%w: not here", blob.ErrRangeUnsupported)
	}
	return w.Source.Fetch(ctx, off, n)
}
