package lazy

import (
	"context"
	"sync"
	"time"

	"github.com/pexfs/pex/lazy/store"
)

// Where the folder takes no more, readers go on: verified chunks stay in memory for a while, and who asked for them gets bytes (Image.Read)
// rather than blocks that are present. Fillers and replays rest until a look at the folder, now and then, finds that it takes more again.
const (
	roomLook  = 2 * time.Second // between two looks
	roomQuiet = time.Minute     // trouble that comes again so soon is the same
)

// trouble is what keeps the folder from being written to.
type trouble struct {
	every time.Duration // between two looks

	mu    sync.Mutex // guards what follows
	err   error      // nil: nothing does
	need  int64      // bytes that were to be written last
	tried time.Time  // when that was tried last
	over  time.Time  // when the last one ended
}

// met notes the error of writing n bytes, and says it to the log once.
func (c *Cache) met(err error, n int64) {
	t := &c.trouble
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil && time.Since(t.over) > roomQuiet {
		c.log.Warn("the cache takes no more: filling rests, and what is read isn't kept", "cache", c.st.Dir(), "err", err)
	}
	if t.err == nil {
		t.tried = time.Now()
	}
	t.err, t.need = err, n
}

// Trouble is why the folder can't be written to, or nil, after a look at it if the last one is a while ago. The look may make room, and ends
// with ctx. The error wraps store.ErrUnwritable.
func (c *Cache) Trouble(ctx context.Context) error {
	c.look(ctx)
	return c.troubled()
}

// Resting is Trouble as it was found last. It makes no room, so Options.Claim, which is asked while that is made, may call it.
func (c *Cache) Resting() error { return c.troubled() }

func (c *Cache) troubled() error {
	c.trouble.mu.Lock()
	defer c.trouble.mu.Unlock()
	return c.trouble.err
}

// look tells whether the folder can be written to. After trouble it tries, not too often.
func (c *Cache) look(ctx context.Context) bool {
	t := &c.trouble
	t.mu.Lock()
	if t.err == nil || time.Since(t.tried) < t.every {
		defer t.mu.Unlock()
		return t.err == nil
	}
	t.tried = time.Now() // others wait for it to pass
	n := max(t.need, store.BlockSize)
	t.mu.Unlock()
	err := c.st.TryWriting(ctx, n)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err == nil:
		return true
	case err != nil && ctx.Err() != nil:
		return false
	case err != nil:
		t.err = err
		return false
	}
	t.err = nil
	t.over = time.Now()
	c.log.Info("the cache can be written to again", "cache", c.st.Dir())
	return true
}

// asker is the key of a context's value: the *Image for which room is asked for.
type asker struct{}

// mayWrite is look for those who work on an image, which can't be removed to make room for itself.
func (im *Image) mayWrite(ctx context.Context) bool {
	return im.c.look(context.WithValue(ctx, asker{}, im))
}

// reserve is store.Store.Reserve for those who work on an image. As long as there is trouble nothing is tried but by look.
func (im *Image) reserve(ctx context.Context, n int64) (release func(), err error) {
	if err := im.c.troubled(); err != nil {
		return nil, err
	}
	return im.c.st.Reserve(context.WithValue(ctx, asker{}, im), n)
}

// awaitRoom waits until the folder can be written to.
func (im *Image) awaitRoom(ctx context.Context) error {
	for !im.mayWrite(ctx) {
		if err := sleep(ctx, im.c.trouble.every/2); err != nil {
			return err
		}
	}
	return nil
}
