package lazy

import (
	"context"

	"github.com/pexfs/pex/lazy/store"
)

// CollectOptions of one Collect.
type CollectOptions struct {
	All     bool // remove every image that nobody uses, too
	Dry     bool // only tell
	Opening bool // images may be opened meanwhile: what refers to none may be one's beginning
}

// Collect removes what no image and no opening needs: what store.Store.Collect does, and contents and indexes of layers that an opening left
// behind which came to a sudden end.
func (c *Cache) Collect(ctx context.Context, o CollectOptions) (gone []store.Removed, err error) {
	if o.All {
		if gone, err = c.collectImages(ctx, o.Dry); err != nil {
			return gone, err
		}
	}
	if !o.Opening {
		more, err := c.st.Collect(o.Dry)
		gone = append(gone, more...)
		if err != nil {
			return gone, err
		}
	}
	layers, err := c.st.Layers()
	if err != nil {
		return gone, err
	}
	for _, hexDigest := range layers {
		n, err := c.collectLayer(ctx, hexDigest, o.Dry)
		if err != nil {
			return gone, err
		}
		if n > 0 {
			gone = append(gone, store.Removed{What: "layer", Name: "sha256:" + hexDigest, Bytes: n})
		}
	}
	return gone, nil
}

// collectImages removes all images that nobody uses.
func (c *Cache) collectImages(ctx context.Context, dry bool) (gone []store.Removed, err error) {
	u, err := c.st.Usage()
	if err != nil {
		return nil, err
	}
	images, err := c.st.Uses()
	if err != nil {
		return nil, err
	}
	for _, im := range images {
		if ctx.Err() != nil {
			return gone, context.Cause(ctx)
		}
		ok, err := c.evict(ctx, im.Key, dry)
		if err != nil {
			return gone, err
		}
		if ok {
			gone = append(gone, store.Removed{What: "image", Name: string(im.Key), Bytes: u.Images[im.Key]})
		}
	}
	return gone, nil
}

// collectLayer removes what is known of a layer but for verdicts, unless an opening uses it.
func (c *Cache) collectLayer(ctx context.Context, hexDigest string, dry bool) (n int64, err error) {
	unlock, err := c.spools.Lock(ctx, hexDigest)
	if err != nil {
		return 0, err
	}
	defer unlock()
	c.mu.Lock()
	used := c.using[hexDigest] > 0
	c.mu.Unlock()
	if used {
		return 0, nil
	}
	return c.st.ForgetLayer(hexDigest, dry)
}
