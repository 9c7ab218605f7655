package lazy

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/pexfs/pex/lazy/store"
)

// makeRoom removes images that nobody uses, the one first whose last use is longest ago, until there is room.
func (c *Cache) makeRoom(ctx context.Context, room func() bool) bool {
	select {
	case c.evicting <- struct{}{}:
		defer func() { <-c.evicting }()
	case <-ctx.Done():
		return false
	}
	if room() { // another has made it
		return true
	}
	all, err := c.st.Uses()
	if err != nil {
		c.log.Warn("making room", "err", err)
	}
	for _, u := range all {
		if ctx.Err() != nil {
			return false
		}
		if im, ok := ctx.Value(asker{}).(*Image); ok && im.file.Info.Key == u.Key {
			continue // he would wait for himself
		}
		if gone, err := c.evict(ctx, u.Key, false); err != nil {
			c.log.Warn("making room", "image", u.Key, "err", err)
		} else if gone {
			c.evicted.Add(1)
			c.log.Info("image is evicted", "image", u.Key, "used", u.Last)
			if room() {
				return true
			}
		}
	}
	return false
}

// Evicted is how many images were removed to make room.
func (c *Cache) Evicted() int64 { return c.evicted.Load() }

// expect keeps an image that an opening makes from being evicted before the opening has it, until done is called.
func (c *Cache) expect(k store.Key) (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.coming[k]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.coming[k]--; c.coming[k] == 0 {
			delete(c.coming, k)
		}
	}
}

// evict removes an image unless it is of use to somebody: leased, pinned, read by a process that the daemon doesn't know, or worked on.
// With dry it only tells.
func (c *Cache) evict(ctx context.Context, k store.Key, dry bool) (gone bool, err error) {
	if !c.idle(k) || c.st.Pinned(k) {
		return false, nil
	}
	if c.opts.Claim != nil {
		done, ok := c.opts.Claim(k)
		if !ok {
			return false, nil
		}
		defer done()
	}
	if c.st.Used(k) || c.st.Pinned(k) { // whoever pins it holds a lease until the pin is written
		return false, nil
	}
	if dry {
		return true, nil
	}
	if err = c.Remove(ctx, k); errors.Is(err, store.ErrNotCached) {
		return false, nil
	}
	return err == nil, err
}

// idle tells whether there is no work on an image, but for a filler that rests since there is no room.
func (c *Cache) idle(k store.Key) bool {
	c.mu.Lock()
	im, coming := c.images[k], c.coming[k] > 0
	c.mu.Unlock()
	if im == nil || coming {
		return !coming
	}
	rests := im.filling.Load() && !im.checking.Load() && c.troubled() != nil
	im.mu.Lock()
	defer im.mu.Unlock()
	users := im.users
	if im.early != nil { // nobody has come for it
		users--
	}
	return (users == 0 || users == 1 && rests) && len(im.jobsOf) == 0
}

// Idle lists the images in memory on which there is no work.
func (c *Cache) Idle() (idle []store.Key) {
	c.mu.Lock()
	keys := slices.Collect(maps.Keys(c.images))
	c.mu.Unlock()
	for _, k := range keys {
		if im := c.Loaded(k); c.idle(k) && im != nil && !im.Filling() {
			idle = append(idle, k)
		}
	}
	return idle
}

// Unload takes an image out of memory, if it is there. Whoever uses it is told ErrReopened and asks for it again.
func (c *Cache) Unload(ctx context.Context, k store.Key) error {
	return c.change(ctx, k, func(*Image) error { return nil })
}
