package lazy

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// placed is a repo in a place.
type placed struct {
	*scripted
	origin string
}

func (r placed) Origin() string { return r.origin }

// openPlaced opens an image of one lazy layer of 100 files of its own, from a place.
func openPlaced(t *testing.T, c *Cache, name, origin string, seed uint64) (placed, *Image) {
	t.Helper()
	files, names := make(map[string][]byte), []string(nil)
	for i := range 100 {
		n := name + string(rune('A'+i))
		files[n], names = random(4000, seed+uint64(i)), append(names, n)
	}
	m := newRepo()
	m.image(t, m.stargzLayer(t, tarOf(t, files, names...), 0))
	r := placed{&scripted{memRepo: m}, origin}
	return r, mustOpen(t, c, r, name+":1")
}

// fetchOne fetches a file as a reader does, but nothing with it.
func fetchOne(ctx context.Context, im *Image, file int) error {
	e := im.plan.extent(file)
	k := int(e.first)
	ch := im.plan.chunk(k)
	return im.fetch(ctx, run{ext: []int{file}, chunk: []int{k}, wanted: []int{k}, layer: e.layer, start: ch.Start, end: ch.End})
}

// TestFairImages has an image with very many readers, and another with one: his turn comes next but one, in the same registry.
func TestFairImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, filepath.Join(t.TempDir(), "c"))
		var underway atomic.Int64
		step := make(chan struct{})
		slow := func(ctx context.Context, _ int, _, _ int64) error {
			underway.Add(1)
			defer underway.Add(-1)
			select {
			case <-step:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		busyRepo, busy := openPlaced(t, c, "a", "x", 0)
		loneRepo, lone := openPlaced(t, c, "b", "x", 1000)
		begun := make(chan struct{})
		busyRepo.begin(slow)
		loneRepo.begin(func(context.Context, int, int64, int64) error { close(begun); return nil })
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				if err := fetchOne(t.Context(), busy, i%100); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := underway.Load(); n != fetchesEach {
			t.Errorf("%d fetches are under way from one registry, want %d", n, fetchesEach)
		}
		wg.Go(func() {
			if err := fetchOne(t.Context(), lone, 50); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		served := 0
		waits := func() bool {
			select {
			case <-begun:
				return false
			default:
				return true
			}
		}
		for ; waits(); served++ {
			step <- struct{}{}
			synctest.Wait()
		}
		if served > 2 {
			t.Errorf("the lone reader waited for %d of the other image's", served)
		}
		close(step)
		wg.Wait()
	})
}

// TestSilentPlace has a registry that doesn't answer its readers. An image from elsewhere is filled and read meanwhile, and its filler
// waits for no reader but its own.
func TestSilentPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, filepath.Join(t.TempDir(), "c"))
		silent, stuck := openPlaced(t, c, "a", "x", 0)
		_, im := openPlaced(t, c, "b", "y", 1000)
		silent.begin(func(ctx context.Context, _ int, _, _ int64) error {
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := stuck.Need(ctx, stuck.plan.extent(i).off, 1); err == nil {
					t.Error("read")
				}
			})
		}
		synctest.Wait()
		came := time.Now() // as the bubble has it
		if err := fetchOne(t.Context(), im, 7); err != nil {
			t.Error(err)
		}
		if err := im.Fill(t.Context()); err != nil {
			t.Error(err)
		}
		if waited := time.Since(came); waited >= fillPatience {
			t.Errorf("filled after %v", waited)
		}
		cancel()
		wg.Wait()
	})
}
