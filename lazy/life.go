package lazy

import (
	"context"
	"errors"

	"github.com/pexfs/pex/lazy/store"
)

// An image in memory lives from load to change. Who touches its files is counted, so that change can wait for all of them; then the
// files are closed and unmapped, and whoever has the image still is told ErrReopened. Files are opened for filling, removed, and
// changed otherwise than by filling only under the lock of their image's key, so that there is one image in memory at a time, and none
// of files that are gone.

// begin counts the caller among the users of the image's files until done is called. The context given is ctx, ended with the image. The
// error is ErrReopened where the image has ended.
func (im *Image) begin(ctx context.Context) (_ context.Context, done func(), err error) {
	if !im.enter() {
		return nil, nil, ErrReopened
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(im.ctx, func() { cancel(ErrReopened) })
	return ctx, func() { stop(); cancel(nil); im.leave() }, nil
}

// look calls f, which waits for nothing, unless the image has ended.
func (im *Image) look(f func()) {
	if im.enter() {
		defer im.leave()
		f()
	}
}

func (im *Image) enter() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.ctx.Err() != nil {
		return false
	}
	im.jobs.Add(1)
	im.users++
	return true
}

func (im *Image) leave() {
	im.mu.Lock()
	im.users--
	im.mu.Unlock()
	im.jobs.Done()
}

// end ends the work on the image's files, waits for it and lets nobody begin again.
func (im *Image) end() {
	im.mu.Lock()
	im.cancel()
	im.mu.Unlock()
	im.jobs.Wait()
}

// change takes an image out of memory and lets f change its files, which nobody has open for filling then but f's image: that which
// was in memory, ended, or nil. The image is loaded anew afterwards.
func (c *Cache) change(ctx context.Context, k store.Key, f func(*Image) error) error {
	unlock, err := c.keys.Lock(ctx, k)
	if err != nil {
		return err
	}
	defer unlock()
	c.mu.Lock()
	im := c.images[k]
	delete(c.images, k)
	c.mu.Unlock()
	if im == nil {
		return f(nil)
	}
	im.end()
	c.unwritten.drop(im, -1)
	im.closeClones()
	err = f(im)
	return errors.Join(err, im.file.Close())
}

// load gives an image of the cache. With clear, one that is damaged is removed: it isn't in the cache then.
func (c *Cache) load(ctx context.Context, k store.Key, clear bool) (*Image, error) {
	if im := c.Loaded(k); im != nil {
		return im, nil
	}
	unlock, err := c.keys.Lock(ctx, k)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if im := c.Loaded(k); im != nil {
		return im, nil
	}
	f, err := c.st.Image(ctx, k)
	if err == nil {
		var im *Image
		if im, err = c.newImage(ctx, f); err == nil {
			c.mu.Lock()
			c.images[k] = im
			c.mu.Unlock()
			return im, nil
		}
		err = errors.Join(err, f.Close())
	}
	if clear && errors.Is(err, store.ErrDamaged) {
		c.log.Warn("making image anew", "image", k, "err", err)
		if err = c.st.RemoveImage(k); err == nil {
			err = store.ErrNotCached
		}
	}
	return nil, err
}
