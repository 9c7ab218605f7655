package lazy

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// lastMoment calls a function when a blob was read to its end.
type lastMoment struct {
	*memRepo
	end func()
}

func (r *lastMoment) Blob(d v1.Descriptor) blob.Source { return &lastBlob{r.memRepo.Blob(d), r.end} }

type lastBlob struct {
	blob.Source
	end func()
}

func (b *lastBlob) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := b.Source.Fetch(ctx, off, n)
	return &lastReader{r, b.end}, err
}

type lastReader struct {
	io.ReadCloser
	end func()
}

func (r *lastReader) Close() error {
	r.end()
	return r.ReadCloser.Close()
}

// TestUnusedSpool gives up an opening at the very moment at which its layer was read: what was kept of it goes away again.
func TestUnusedSpool(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	l := r.gzipLayer(t, tarOf(t, files, names...))
	r.image(t, l)
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	n, err := ref.Parse("localhost/a:1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan struct{})
	late := &lastMoment{r, func() { cancel(); <-gaveUp }}
	if _, err := c.Open(ctx, n, late, OpenOptions{Platform: amd64}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	c.opening.wait() // it has nobody any more
	c.trims.Wait()
	close(gaveUp)
	c.scans.wait()
	c.trims.Wait()
	if sp, err := c.st.LayerSpool(l.d.Digest.Hex); !errors.Is(err, store.ErrNotCached) {
		t.Error("the layer's contents are kept:", sp, err)
	}
	check(t, mustOpen(t, c, r, "a:1"), files)
}
