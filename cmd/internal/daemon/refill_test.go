package daemon

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/store"
)

// refusing are blobs that nobody gets until granted.
type refusing struct {
	lazy.Blobs
	granted atomic.Bool
	asked   atomic.Int64
}

func (r *refusing) Blob(d v1.Descriptor) blob.Source { return &refusedBlob{r.Blobs.Blob(d), r} }

type refusedBlob struct {
	blob.Source
	r *refusing
}

func (b *refusedBlob) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.r.asked.Add(1)
	if !b.r.granted.Load() {
		return nil, errors.New("access denied")
	}
	return b.Source.Fetch(ctx, off, n)
}

// TestRefill has a registry refuse an image that is to be filled: it is asked again now and then, as long as somebody has the image.
func TestRefill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, filepath.Join(t.TempDir(), "cache"))
		defer func() {
			s.stop()
			s.end()
			if err := errors.Join(s.cache.Close(), s.st.Close()); err != nil {
				t.Error(err)
			}
		}()
		key := testImage(t, s, writeLayout(t)).Key
		im, err := s.fetchable(s.ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		from, err := s.repoOf(s.ctx, im.Info(), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		repo := &refusing{Blobs: from}
		im.SetRepo(repo)
		l := &lease{who: "test"}
		s.addLease(key, l)
		s.fill(im)
		time.Sleep(refillFirst - time.Second)
		if n := repo.asked.Swap(0); n != 1 || im.Err() == nil || im.Filling() {
			t.Fatalf("%d requests at first, error %v, filling: %v", n, im.Err(), im.Filling())
		}
		time.Sleep(6 * time.Hour)
		if n := repo.asked.Swap(0); n < 6 || n > 12 {
			t.Errorf("%d requests in six hours", n)
		}
		s.dropLease(key, l)
		time.Sleep(6 * time.Hour)
		if n := repo.asked.Load(); n != 0 {
			t.Errorf("%d requests for nobody", n)
		}
		s.addLease(key, l)
		s.fill(im)
		synctest.Wait()
		repo.granted.Store(true)
		time.Sleep(refillFirst + time.Second)
		if im.State() != store.Sealed || im.Err() != nil {
			t.Errorf("in the end it is %s, error %v", im.State(), im.Err())
		}
	})
}
