// Package blobtest tests implementations of blob.Source.
package blobtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/pexfs/pex/lazy/blob"
)

// Bytes is a blob in memory.
type Bytes []byte

// Size implements blob.Source.
func (b Bytes) Size() int64 { return int64(len(b)) }

// Fetch implements blob.Source.
func (b Bytes) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := blob.CheckRange(b.Size(), off, n); err != nil {
		return nil, err
	}
	return &reader{ctx, bytes.NewReader(b[off : off+n])}, nil
}

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (r *reader) Close() error { return nil }

// Random gives n bytes that are the same in every run.
func Random(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(b) // documented never to fail
	return b
}

// Run checks that the sources that open makes keep the contract of blob.Source. It calls open once for each subtest.
func Run(t *testing.T, open func(t *testing.T, content []byte) blob.Source) {
	content := Random(300<<10 + 17)
	size := int64(len(content))
	t.Run("size", func(t *testing.T) {
		if got := open(t, content).Size(); got != size {
			t.Errorf("Size() = %d, want %d", got, size)
		}
	})
	t.Run("ranges", func(t *testing.T) {
		src := open(t, content)
		for _, r := range ranges(size) {
			check(t, src, content, r[0], r[1])
		}
	})
	t.Run("one byte", func(t *testing.T) {
		check(t, open(t, []byte("x")), []byte("x"), 0, 1)
	})
	t.Run("bad ranges", func(t *testing.T) {
		src := open(t, content)
		for _, r := range [][2]int64{
			{-1, 1}, {0, 0}, {0, -1}, {0, size + 1}, {size, 1}, {size - 1, 2}, {1, math.MaxInt64}, {math.MaxInt64, math.MaxInt64},
		} {
			if rc, err := src.Fetch(t.Context(), r[0], r[1]); err == nil {
				rc.Close()
				t.Errorf("Fetch(%d, %d) of %d bytes gave no error", r[0], r[1], size)
			}
		}
	})
	t.Run("at once", func(t *testing.T) {
		src := open(t, content)
		var wg sync.WaitGroup
		for _, r := range ranges(size) {
			wg.Go(func() { check(t, src, content, r[0], r[1]) })
		}
		wg.Wait()
	})
	t.Run("closed early", func(t *testing.T) {
		src := open(t, content)
		rc, err := src.Fetch(t.Context(), 0, size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
		check(t, src, content, 5, 1000)
	})
	t.Run("ended before", func(t *testing.T) {
		src := open(t, content)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := drain(ctx, src, 0, size, nil); err == nil {
			t.Error("an ended context gave the whole range")
		}
	})
	t.Run("ended within", func(t *testing.T) {
		src := open(t, content)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := drain(ctx, src, 0, size, cancel); err == nil {
			t.Error("a context that ended after the first bytes gave the whole range")
		}
		check(t, src, content, 0, size)
	})
}

// ranges lists ranges of a blob of size bytes: whole, ends, and some between.
func ranges(size int64) [][2]int64 {
	rs := [][2]int64{{0, size}, {0, 1}, {size - 1, 1}, {1, size - 1}, {0, size - 1}, {4096, 4096}, {4095, 4098}}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		off := rnd.Int64N(size)
		rs = append(rs, [2]int64{off, 1 + rnd.Int64N(size-off)})
	}
	return rs
}

func check(t *testing.T, src blob.Source, content []byte, off, n int64) {
	t.Helper()
	rc, err := src.Fetch(t.Context(), off, n)
	if err != nil {
		t.Errorf("Fetch(%d, %d): %v", off, n, err)
		return
	}
	got, err := io.ReadAll(rc)
	if err != nil {
		t.Errorf("reading %d bytes from %d: %v", n, off, err)
	} else if !bytes.Equal(got, content[off:off+n]) {
		t.Errorf("reading %d bytes from %d: %d other bytes came", n, off, len(got))
	}
	if err := rc.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

// drain reads a range, calling first after the first piece.
func drain(ctx context.Context, src blob.Source, off, n int64, first func()) error {
	rc, err := src.Fetch(ctx, off, n)
	if err != nil {
		return err
	}
	defer rc.Close()
	buf := make([]byte, 1024)
	for {
		if _, err := rc.Read(buf); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading: %w", err)
		}
		if first != nil {
			first()
			first = nil
		}
	}
}
