package lazy

import (
	"context"
	"errors"

	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// use keeps the spools of these layers while an opening may copy from them; done ends that, and has those trimmed that no other
// opening uses. Nobody waits for that but who wants to use them again, and Close. The error is that of ctx.
func (c *Cache) use(ctx context.Context, sources []source) (done func(), err error) {
	for i, s := range sources {
		hexDigest := s.d.Digest.Hex
		unlock, err := c.spools.Lock(ctx, hexDigest)
		if err != nil {
			c.unuse(sources[:i])
			return nil, err
		}
		c.mu.Lock()
		c.using[hexDigest]++
		c.mu.Unlock()
		unlock()
	}
	return func() { c.unuse(sources) }, nil
}

func (c *Cache) unuse(sources []source) {
	for _, s := range sources {
		hexDigest := s.d.Digest.Hex
		c.mu.Lock()
		c.using[hexDigest]--
		last := c.using[hexDigest] == 0
		if last {
			delete(c.using, hexDigest)
		}
		c.mu.Unlock()
		if last && s.diffID.Hex != "" { // else nothing was read
			c.trims.Go(func() {
				if err := c.trimUnused(hexDigest, s.tarName()); err != nil {
					c.log.Warn("trimming layer", "layer", s.d.Digest, "err", err)
				}
			})
		}
	}
}

// trimUnused trims a layer's spool unless an opening uses it, which has it trimmed itself.
func (c *Cache) trimUnused(hexDigest, name string) error {
	unlock, err := c.spools.Lock(context.Background(), hexDigest)
	if err != nil {
		return err
	}
	defer unlock()
	c.mu.Lock()
	used := c.using[hexDigest] > 0
	c.mu.Unlock()
	if used {
		return nil
	}
	return c.trim(hexDigest, name)
}

// keepHidden bounds what is kept of a streamed layer for the next image on the same base although no image shows it: up to
// 1/keepHidden of the layer's contents. Where more is hidden, the layer would be streamed again.
const keepHidden = 2

// trim gives up what images hold of a layer's spool, and the rest too if that is much. It depends on nothing but the
// cache folder, so that it can run again after a crash.
func (c *Cache) trim(hexDigest, name string) error {
	sp, err := c.st.LayerSpool(hexDigest)
	if errors.Is(err, store.ErrNotCached) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sp.Close()
	ix, err := c.cachedIndex(hexDigest, name)
	if err != nil {
		return errors.Join(err, c.st.DropSpool(hexDigest))
	}
	want := make(map[layer.Key]bool, len(ix.Contents))
	var total, hidden int64
	for _, ct := range ix.Contents {
		want[ct.Key] = true
		total += ct.Size
	}
	held := make(map[layer.Key]bool)
	err = c.holders(context.Background(), want, "", func(k layer.Key, im *store.Image, e extent) bool { held[k] = true; return false })
	if err != nil {
		return err
	}
	for _, ct := range ix.Contents {
		if !held[ct.Key] {
			hidden += ct.Size
		}
	}
	if hidden == 0 || hidden > total/keepHidden {
		return c.st.DropSpool(hexDigest)
	}
	for i := 0; i < len(ix.Contents); i++ { // neighbours at once
		first := ix.Contents[i]
		if !held[first.Key] {
			continue
		}
		end := blocksEnd(first.SpoolOff, first.Size)
		for ; i+1 < len(ix.Contents); i++ {
			if next := ix.Contents[i+1]; held[next.Key] && next.SpoolOff == end {
				end = blocksEnd(next.SpoolOff, next.Size)
			} else {
				break
			}
		}
		if err := sp.Punch(first.SpoolOff, end-first.SpoolOff); err != nil {
			return err
		}
	}
	return nil
}
