package lazy

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pexfs/pex/lazy/store"
)

// TestTogether does to one image, all at once, whatever can be done: it is opened, read, filled, replayed, looked at, damaged, checked and
// healed, and removed, and many give up. Nobody is told anything but that it was opened anew, is busy or is gone; and in the
// end it is what it was.
func TestTogether(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.gzipLayer(t, tarOf(t, files, names[:5]...)), r.stargzLayer(t, tarOf(t, files, names[5:]...), 5000))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	im := mustOpen(t, c, r, "a:1")
	key, dir, size, root := im.Info().Key, im.Dir(), im.Info().Size, fill(t, im)
	p := mustProfile(t, im, readsOf(im, []int{7, 8, 9}))
	repo := func(store.Info) (Repo, error) { return r, nil }
	expected := func(err error) bool {
		for _, e := range []error{nil, ErrReopened, ErrBusy, store.ErrNotCached, context.Canceled} {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	steps := []func(ctx context.Context, rnd *rand.Rand) error{
		func(ctx context.Context, _ *rand.Rand) error {
			o, err := open(t, c, r, "a:1")
			if err == nil {
				o.Image.Replay(p)
			}
			return err
		},
		func(ctx context.Context, rnd *rand.Rand) error {
			im, err := c.Image(ctx, key)
			if err != nil {
				return err
			}
			im.SetRepo(r)
			off := rnd.Int64N(size)
			return im.Need(ctx, off, 1+rnd.Int64N(min(size-off, 100_000)))
		},
		func(ctx context.Context, _ *rand.Rand) error {
			im, err := c.Image(ctx, key)
			if err != nil {
				return err
			}
			im.SetRepo(r)
			return im.Fill(ctx)
		},
		func(ctx context.Context, _ *rand.Rand) error {
			_, err := c.Fsck(ctx, key, repo, true, func(Event) {})
			return err
		},
		func(ctx context.Context, rnd *rand.Rand) error {
			if rnd.IntN(4) > 0 {
				if im := c.Loaded(key); im != nil {
					im.Layers()
				}
				return nil
			}
			return c.Remove(ctx, key)
		},
		func(ctx context.Context, rnd *rand.Rand) error {
			f, err := os.OpenFile(filepath.Join(dir, "image.erofs"), os.O_WRONLY, 0)
			if err != nil {
				return nil
			}
			defer f.Close()
			_, err = f.WriteAt([]byte{byte(rnd.Uint32())}, rnd.Int64N(size))
			return err
		},
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(n), 1))
			for range 60 {
				ctx, cancel := context.WithCancel(t.Context())
				if rnd.IntN(3) == 0 {
					time.AfterFunc(time.Duration(rnd.IntN(20))*time.Millisecond, cancel)
				}
				k := rnd.IntN(len(steps))
				if err := steps[k](ctx, rnd); !expected(err) {
					t.Errorf("step %d: %v", k, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	for fsck(t, c, mustOpen(t, c, r, "a:1").Info().Key, r, true).Healed {
	}
	im = mustOpen(t, c, r, "a:1")
	if got := fill(t, im); got != root {
		t.Errorf("the root is %s, it was %s", got, root)
	}
	if rep := fsck(t, c, key, r, false); !rep.None() {
		t.Errorf("%+v", rep)
	}
	check(t, im, files)
	if err := c.Remove(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if left := mapped(t, dir); len(left) > 0 {
		t.Errorf("still mapped: %q", left)
	}
}
