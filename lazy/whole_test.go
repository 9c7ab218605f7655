package lazy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

// TestNoRanges opens and reads an image from a registry that gives no parts of layers: each is fetched once, and the image is the same.
func TestNoRanges(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	a, b := r.stargzLayer(t, tarOf(t, files, names[:4]...), 5000), r.stargzLayer(t, tarOf(t, files, names[4:]...), 5000)
	r.image(t, a, b)
	with := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	fill(t, with)
	r.noRanges = true
	r.requests.Store(0)
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	im := mustOpen(t, c, r, "a:1")
	var wg sync.WaitGroup
	for i := range int64(8) {
		wg.Go(func() {
			if err := im.Need(t.Context(), im.Info().Size/8*i, 1); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	fill(t, im)
	check(t, im, files)
	want := int64(2)
	for _, l := range []madeLayer{a, b} {
		if l.d.Size <= 128<<10 { // where its table is looked for is all of it
			want++
		}
	}
	if n := r.requests.Load(); n != want {
		t.Errorf("2 layers were fetched by %d requests, not %d", n, want)
	}
	if im.Info().Key != with.Info().Key || im.Root() != with.Root() {
		t.Error("it is another image than one fetched in parts")
	}
}

// TestChangedOnTheWay has bytes changed on their way, once or always.
func TestChangedOnTheWay(t *testing.T) {
	for _, tt := range []struct {
		name     string
		noRanges bool
		always   bool
	}{{name: "once"}, {name: "once, as a whole", noRanges: true}, {name: "always", always: true}, {name: "always, as a whole", noRanges: true, always: true}} {
		t.Run(tt.name, func(t *testing.T) {
			files, names := testFiles()
			r := newRepo()
			r.image(t, r.stargzLayer(t, tarOf(t, files, names...), 5000))
			c := newCache(t, filepath.Join(t.TempDir(), "c"))
			im := mustOpen(t, c, r, "a:1")
			r.noRanges = tt.noRanges
			var calls atomic.Int64
			r.change = func(off int64, p []byte) {
				if calls.Add(1) == 1 || tt.always {
					p[len(p)/2] ^= 1
				}
			}
			err := im.Fill(context.Background())
			if tt.always {
				if !errors.Is(err, blob.ErrDigestMismatch) {
					t.Errorf("error %v", err)
				}
				r.change = nil
				c.wholes.distrust(im.Info().Layers[0].Digest)
				im.ResetErr()
				err = im.Fill(context.Background())
			}
			if err != nil {
				t.Fatal(err)
			}
			check(t, im, files)
		})
	}
}

// flaky is a blob without ranges whose streams end as cut says.
type flaky struct {
	blobtest.Bytes
	fetches atomic.Int64
	cut     func(fetch int64) error
	step    chan struct{} // each read of a stream takes one; nil: as it comes
}

func (f *flaky) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := blob.CheckRange(f.Size(), off, n); err != nil {
		return nil, err
	}
	if n < f.Size() {
		return nil, blob.ErrRangeUnsupported
	}
	k := f.fetches.Add(1)
	return &flakyReader{f, ctx, bytes.NewReader(f.Bytes), k}, nil
}

type flakyReader struct {
	f   *flaky
	ctx context.Context
	r   io.Reader
	k   int64
}

func (r *flakyReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, r.ctx.Err()
	}
	if r.f.step != nil {
		select {
		case <-r.f.step:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	n, err := r.r.Read(p[:min(len(p), 1000)])
	if r.f.cut != nil {
		if e := r.f.cut(r.k); e != nil {
			return n, e
		}
	}
	return n, err
}
func (r *flakyReader) Close() error { return nil }

// TestWholes reads parts of blobs that come as a whole.
func TestWholes(t *testing.T) {
	content := blobtest.Random(50_000)
	temp := func() (scratch, error) { return os.CreateTemp(t.TempDir(), "") }
	read := func(src blob.Source, off, n int64) ([]byte, error) {
		rc, err := src.Fetch(t.Context(), off, n)
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		return io.ReadAll(rc)
	}
	want := func(t *testing.T, src blob.Source, off, n int64) {
		t.Helper()
		if b, err := read(src, off, n); err != nil || !bytes.Equal(b, content[off:off+n]) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
	t.Run("conformance", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, content []byte) blob.Source {
			ws := &wholes{scratch: temp, idle: time.Minute}
			t.Cleanup(ws.close)
			return ws.parts(&flaky{Bytes: content}, "x")
		})
	})
	t.Run("what has come is read at once", func(t *testing.T) {
		ws := &wholes{scratch: temp, idle: time.Minute}
		f := &flaky{Bytes: content, step: make(chan struct{})}
		go func() {
			for range 2 {
				f.step <- struct{}{}
			}
		}()
		src := ws.parts(f, "x")
		want(t, src, 500, 1000)
		ctx, cancel := context.WithCancel(t.Context())
		rc, err := src.Fetch(ctx, 40_000, 10)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(rc); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		rc.Close()
		ws.close()
		if n := f.fetches.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
	t.Run("a stream that breaks is begun anew by the next reader", func(t *testing.T) {
		ws := &wholes{scratch: temp, idle: time.Minute}
		t.Cleanup(ws.close)
		broken := errors.New("broken")
		f := &flaky{Bytes: content, cut: func(k int64) error {
			if k == 1 {
				return broken
			}
			return nil
		}}
		src := ws.parts(f, "x")
		if _, err := read(src, 10_000, 10); !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
		for { // until it is forgotten
			if b, err := read(src, 10_000, 10); err == nil && bytes.Equal(b, content[10_000:10_010]) {
				break
			} else if !errors.Is(err, broken) {
				t.Fatal(err)
			}
		}
		want(t, src, 49_000, 1000)
	})
	t.Run("it goes when nobody reads it", func(t *testing.T) {
		ws := &wholes{scratch: temp, idle: time.Millisecond}
		t.Cleanup(ws.close)
		f := &flaky{Bytes: content}
		src := ws.parts(f, "x")
		want(t, src, 10, 10)
		for {
			ws.mu.Lock()
			n := len(ws.m)
			ws.mu.Unlock()
			if n == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		want(t, src, 10, 10)
		if n := f.fetches.Load(); n != 2 {
			t.Errorf("%d fetches", n)
		}
	})
	t.Run("it stays for a reader who comes when its time is over", func(t *testing.T) {
		ws := &wholes{scratch: temp, idle: time.Minute}
		t.Cleanup(ws.close)
		f := &flaky{Bytes: content, step: make(chan struct{})}
		rc, err := ws.parts(f, "x").Fetch(t.Context(), 10, 10)
		if err != nil {
			t.Fatal(err)
		}
		ws.expire("x", ws.m["x"]) // the timer has fired before he came, and waited for the lock
		f.step <- struct{}{}
		if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, content[10:20]) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		rc.Close()
	})
	t.Run("no room", func(t *testing.T) {
		full := errors.New("full")
		ws := &wholes{scratch: func() (scratch, error) { return nil, full }, idle: time.Minute}
		if _, err := read(ws.parts(&flaky{Bytes: content}, "x"), 5, 5); !errors.Is(err, full) {
			t.Errorf("error %v", err)
		}
	})
}
