package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
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

// down is an error of a server that is not to be reached.
type down struct{ host string }

func (d *down) Error() string   { return d.host + " is down" }
func (d *down) Temporary() bool { return true }
func (d *down) Down() string    { return d.host }

func read(ctx context.Context, src blob.Source) error {
	rc, err := src.Fetch(ctx, 5, 90)
	if err != nil {
		return err
	}
	_, err = io.ReadAll(rc)
	return errors.Join(err, rc.Close())
}

func TestCircuitBreaks(t *testing.T) {
	gone := errors.New("gone")
	for _, tt := range []struct {
		name     string
		err      error
		within   bool
		canceled bool
		want     int // fetches of three one after another
		later    int // of three more after a second
	}{
		{name: "at once", err: gone, want: 1, later: 1},
		{name: "of a server", err: &down{"x:1"}, want: 6, later: 1},
		{name: "within", err: gone, within: true, want: 1, later: 1},
		{name: "of a range", err: fmt.Errorf("%w: here", blob.ErrDigestMismatch), want: 3, later: 3},
		{name: "without ranges", err: blob.ErrRangeUnsupported, want: 3, later: 3},
		{name: "of a reader", err: context.Canceled, canceled: true, want: 0, later: 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &failing{Bytes: blobtest.Random(100), err: tt.err, within: tt.within}
				var cs blob.Circuits
				src := guard(&cs, f, "http://x:1/v2/")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.canceled {
					cancel()
				}
				for _, want := range []int{tt.want, tt.later} {
					f.fetches = 0
					for range 3 {
						if err := read(ctx, src); !errors.Is(err, tt.err) {
							t.Errorf("error %v", err)
						}
					}
					if f.fetches != want {
						t.Errorf("%d fetches, want %d", f.fetches, want)
					}
					time.Sleep(time.Second)
				}
				f.err = nil
				if err := read(ctx, src); err != nil && !tt.canceled {
					t.Errorf("when it was over: %v", err)
				}
			})
		})
	}
	blobtest.Run(t, func(t *testing.T, content []byte) blob.Source {
		return guard(new(blob.Circuits), blobtest.Bytes(content), "")
	})
}

func guard(cs *blob.Circuits, src blob.Source, at string) blob.Source {
	return cs.Guard(blob.Retry(src, blob.Policy{}), blob.Retry(src, blob.Policy{Attempts: 1}), func() string { return at })
}

// TestCircuitOfServer has a server that isn't to be reached: of its blobs one is tried, and another server's aren't concerned.
func TestCircuitOfServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cs blob.Circuits
		a := &failing{Bytes: blobtest.Random(100), err: &down{"x:1"}}
		b := &failing{Bytes: blobtest.Random(100), err: &down{"x:1"}}
		c := &failing{Bytes: blobtest.Random(100)}
		srcA, srcB, srcC := guard(&cs, a, "http://x:1/a"), guard(&cs, b, "http://x:1/b"), guard(&cs, c, "http://y/c")
		if err := read(t.Context(), srcA); err == nil {
			t.Error("no error")
		}
		began := time.Now()
		for range 1000 { // as one who reads on does
			if err := read(t.Context(), srcB); err == nil {
				t.Fatal("no error")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n := b.fetches; n < 5 || n > 10 {
			t.Errorf("%d fetches in %v", n, time.Since(began))
		}
		if err := read(t.Context(), srcC); err != nil {
			t.Error(err)
		}
		a.err, b.err = nil, nil
		time.Sleep(time.Second)
		var all sync.WaitGroup
		for i := range 16 { // one tries, and the others get what it gets
			all.Go(func() {
				if err := read(t.Context(), []blob.Source{srcA, srcB}[i%2]); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()

		a.err, a.fetches = &down{"x:1"}, 0
		if err := read(t.Context(), srcA); err == nil || a.fetches != 6 {
			t.Errorf("error %v after %d fetches", err, a.fetches)
		}
		a.fetches = 0
		time.Sleep(time.Minute) // nobody knows any more
		if err := read(t.Context(), srcA); err == nil || a.fetches != 6 {
			t.Errorf("after a while: error %v after %d fetches", err, a.fetches)
		}
	})
}

// TestCircuitTrial cuts the fetch of the one who tries: it goes on as any other.
func TestCircuitTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := blobtest.Random(100)
		f := &faulty{Source: blobtest.Bytes(content), fault: func(call int, _, _ int64) fault {
			switch {
			case call < 6:
				return fault{open: &down{"x:1"}}
			case call < 9:
				return fault{after: 7, err: io.ErrUnexpectedEOF}
			}
			return none
		}}
		src := guard(new(blob.Circuits), f, "http://x:1/a")
		if err := read(t.Context(), src); err == nil {
			t.Error("no error")
		}
		time.Sleep(time.Second)
		rc, err := src.Fetch(t.Context(), 5, 90)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, content[5:95]) {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCircuitSilence has a server say nothing for ten minutes. Readers have a minute each; when one has lost his patience, others need less.
func TestCircuitSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := &faulty{Source: blobtest.Bytes(blobtest.Random(100)), fault: func(int, int64, int64) fault {
			if time.Since(began) < 10*time.Minute {
				return fault{after: 0}
			}
			return none
		}}
		src := guard(new(blob.Circuits), f, "http://x:1/a")
		try := func(patience time.Duration) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			at := time.Now()
			err := read(ctx, src)
			return time.Since(at), err
		}
		for _, tt := range []struct{ patience, want time.Duration }{
			{time.Second, time.Second}, {40 * time.Second, 40 * time.Second}, {time.Minute, time.Minute}, // nobody knows yet
			{time.Minute, 15 * time.Second}, // he tries
			{time.Minute, 0}, {time.Minute, 0},
		} {
			if took, err := try(tt.patience); err == nil || took != tt.want {
				t.Errorf("patience %v: error %v after %v", tt.patience, err, took)
			}
		}
		time.Sleep(time.Second)
		if took, err := try(time.Minute); err == nil || took != 15*time.Second {
			t.Errorf("the one who tries: error %v after %v", err, took)
		}
		time.Sleep(10 * time.Minute)
		if _, err := try(time.Minute); err != nil {
			t.Errorf("when it was over: %v", err)
		}
	})
}
