package lazy

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/store"
)

// use keeps what the cache has of these layers while an opening may need it; done ends that. What is known of the layers of the
// image that was made, if one was (nil: none was), goes beside it then, and what no other opening uses is removed. Nobody waits for
// that but Close, and for the removal whoever wants to use these layers again. The error is that of ctx.
func (c *Cache) use(ctx context.Context, sources []source) (done func(made *Image), err error) {
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
	return func(made *Image) {
		if made == nil || c.opts.Once {
			c.unuse(sources)
			return
		}
		c.trims.Go(func() {
			if info := made.Info(); !c.st.Packed(info.Key) {
				if err := c.pack(info); err != nil {
					c.log.Warn("keeping what is known of layers", "image", info.Key, "ref", info.Ref, "err", err)
				}
			}
			c.unuse(sources)
		})
	}, nil
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
		if last {
			c.trims.Go(func() {
				if err := c.dropUnused(hexDigest); err != nil {
					c.log.Warn("trimming layer", "layer", s.d.Digest, "err", err)
				}
			})
		}
	}
}

// dropUnused removes what nobody needs of a layer unless an opening uses it, which does it itself.
func (c *Cache) dropUnused(hexDigest string) error {
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
	return c.st.DropLayer(hexDigest)
}

// indexOf is the name of the index that an image's layer was read from, and the layer's digest in hex.
func indexOf(l store.Layer) (hexDigest, name string, err error) {
	d, err := v1.NewHash(l.Digest)
	if err != nil {
		return "", "", fmt.Errorf("reading the layers of an image: %w", err)
	}
	if l.TOC {
		return d.Hex, l.Index, nil
	}
	return d.Hex, source{diffID: v1.Hash{Algorithm: "sha256", Hex: l.DiffID}}.tarName(), nil
}
