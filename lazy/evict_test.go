package lazy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/pexfs/pex/lazy/store"
)

// TestRestingWhileRoomIsMade has Claim, which is asked while room is made, ask for the trouble of the folder: it is not looked at, for the
// look would make room itself.
func TestRestingWhileRoomIsMade(t *testing.T) {
	r := newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, map[string][]byte{"a": random(6<<20, 1)}, "a"), 900_000))
	var c *Cache
	asked := 0
	c = newCacheOf(t, filepath.Join(t.TempDir(), "c"), Options{Size: 12 << 20, Claim: func(store.Key) (func(), bool) {
		asked++
		return func() {}, c.Resting() != nil
	}})
	c.trouble.every = 0
	fill(t, mustOpen(t, c, r, "a:1"))
	c.met(fmt.Errorf("writing: %w", store.ErrUnwritable), 6<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	release, err := c.st.Reserve(ctx, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	release()
	if asked != 1 || c.Evicted() != 1 {
		t.Errorf("asked %d times, %d images evicted", asked, c.Evicted())
	}
}

// TestEvictPinned pins an image after the eviction has looked for a pin, and before it claims the image.
func TestEvictPinned(t *testing.T) {
	r := newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, map[string][]byte{"a": random(300_000, 1)}, "a"), 100_000))
	var c *Cache
	c = newCacheOf(t, filepath.Join(t.TempDir(), "c"), Options{Claim: func(k store.Key) (func(), bool) {
		if err := c.st.SetPinned(k, true); err != nil {
			t.Error(err)
		}
		return func() {}, true
	}})
	im := mustOpen(t, c, r, "a:1")
	fill(t, im)
	if gone, err := c.evict(t.Context(), im.Info().Key, false); gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}
}

// TestTooLargeEvictsNothing asks for more room than the whole cache has: no image is removed for that.
func TestTooLargeEvictsNothing(t *testing.T) {
	c := newCacheOf(t, filepath.Join(t.TempDir(), "c"), Options{Size: 20 << 20})
	for i := range 2 {
		r := newRepo()
		r.image(t, r.stargzLayer(t, tarOf(t, map[string][]byte{"a": random(1<<20, uint64(i+1))}, "a"), 100_000))
		fill(t, mustOpen(t, c, r, fmt.Sprintf("s%d:1", i)))
	}
	var full *store.FullError
	if _, err := c.st.Reserve(t.Context(), 100<<20); !errors.As(err, &full) {
		t.Errorf("got %v", err)
	}
	all, err := c.st.Uses()
	if err != nil || len(all) != 2 || c.Evicted() != 0 {
		t.Errorf("%d of 2 images are left, %v", len(all), err)
	}
}

// TestCheckedIsNotIdle has the folder take no more while an image is being checked: the check is no filler that rests.
func TestCheckedIsNotIdle(t *testing.T) {
	r := newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, map[string][]byte{"a": random(300_000, 1)}, "a"), 100_000))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	key := mustOpen(t, c, r, "a:1").Info().Key
	c.met(fmt.Errorf("writing: %w", store.ErrUnwritable), 0)
	told := false
	_, err := c.Fsck(t.Context(), key, nil, false, func(Event) {
		told = true
		if c.idle(key) {
			t.Error("it can be evicted while it is checked")
		}
	})
	if err != nil || !told || !c.idle(key) {
		t.Errorf("told %v, idle afterwards %v, %v", told, c.idle(key), err)
	}
}
