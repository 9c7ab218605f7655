package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

// failing is a source whose fetches fail with err, at once or within, and are counted.
type failing struct {
	blobtest.Bytes
	err     error
	within  bool
	fetches int
}

func (f *failing) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	f.fetches++
	switch {
	case f.err != nil && !f.within:
		return nil, f.err
	case f.err != nil:
		return io.NopCloser(io.MultiReader(bytes.NewReader(f.Bytes[off:off+1]), errReader{f.err})), nil
	}
	return f.Bytes.Fetch(ctx, off, n)
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestRemember(t *testing.T) {
	gone := errors.New("gone")
	for _, tt := range []struct {
		name     string
		err      error
		within   bool
		canceled bool
		want     int // fetches of three at once
	}{
		{name: "at once", err: gone, want: 1},
		{name: "within", err: gone, within: true, want: 1},
		{name: "of a range", err: fmt.Errorf("%w: here", blob.ErrDigestMismatch), want: 3},
		{name: "without ranges", err: blob.ErrRangeUnsupported, want: 3},
		{name: "of a reader", err: context.Canceled, canceled: true, want: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &failing{Bytes: blobtest.Random(100), err: tt.err, within: tt.within}
				src := blob.Remember(f, time.Second)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.canceled {
					cancel()
				}
				get := func() error {
					rc, err := src.Fetch(ctx, 5, 10)
					if err != nil {
						return err
					}
					_, err = io.ReadAll(rc)
					return err
				}
				for range 3 {
					if err := get(); !errors.Is(err, tt.err) {
						t.Errorf("error %v", err)
					}
				}
				if f.fetches != tt.want {
					t.Errorf("%d fetches, want %d", f.fetches, tt.want)
				}
				f.err = nil
				time.Sleep(time.Second)
				if err := get(); err != nil && !tt.canceled {
					t.Errorf("when it was over: %v", err)
				}
			})
		})
	}
	blobtest.Run(t, func(t *testing.T, content []byte) blob.Source {
		return blob.Remember(blobtest.Bytes(content), time.Second)
	})
}
