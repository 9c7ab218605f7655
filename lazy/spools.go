package lazy

import (
	"context"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/leaf"
	"github.com/pexfs/pex/lazy/store"
)

// copyMax bounds what is copied from a spool at once, in bytes, but for a content that is larger.
const copyMax = 32 << 20

// spools are the spools that layers of one opening have, by layer; nil where there is none.
type spools []*store.Spool

func (c *Cache) openSpools(sources []source, layers []*layer.Packed) spools {
	all := make(spools, len(layers))
	for i, ix := range layers {
		if ix.Source == layer.FromTar {
			if s, err := c.st.LayerSpool(sources[i].d.Digest.Hex); err == nil {
				all[i] = s
			}
		}
	}
	return all
}

func (s spools) close() {
	for _, sp := range s {
		if sp != nil {
			sp.Close()
		}
	}
}

// copyTo copies the contents of streamed layers to their places in an image, neighbours together, and returns those that aren't in their
// spool any more, or not as they were. done is told how many bytes were copied.
func (s spools) copyTo(ctx context.Context, f *store.Image, extents []erofs.Extent, layers []*layer.Packed, done func(n int64)) (left []erofs.Extent, err error) {
	for len(extents) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := 1
		if ly := extents[0].Content.Layer; layers[ly].Source == layer.FromTar {
			ix, sp := layers[ly], s[ly]
			n = neighbours(extents, ix)
			ok, err := copyRun(f, sp, extents[:n], ix)
			for i := 0; i < n && err == nil && !ok; i++ { // one by one, then
				var one bool
				if one, err = copyRun(f, sp, extents[i:i+1], ix); !one {
					left = append(left, extents[i])
				}
			}
			if err != nil {
				return nil, err
			}
			var size int64
			for _, e := range extents[:n] {
				size += e.Size
			}
			done(size)
		}
		extents = extents[n:]
	}
	return left, nil
}

// blocksEnd is where the blocks of size bytes at off end.
func blocksEnd(off, size int64) int64 {
	return off + (size+store.BlockSize-1)/store.BlockSize*store.BlockSize
}

// neighbours is how many of the first extents lie in their layer's spool as they do in the image.
func neighbours(extents []erofs.Extent, ix *layer.Packed) int {
	first := extents[0]
	n, shift := 1, first.Off-ix.Contents[first.Content.Index].SpoolOff
	for end := blocksEnd(first.Off, first.Size); n < len(extents); n++ {
		e := extents[n]
		if e.Content.Layer != first.Content.Layer || e.Off != end || e.Off-ix.Contents[e.Content.Index].SpoolOff != shift {
			break
		}
		if end = blocksEnd(e.Off, e.Size); end-first.Off > copyMax {
			break
		}
	}
	return n
}

// copyRun copies neighbours, if all of it is in the spool as it was.
func copyRun(f *store.Image, sp *store.Spool, extents []erofs.Extent, ix *layer.Packed) (ok bool, err error) {
	if sp == nil {
		return false, nil
	}
	first, last := extents[0], extents[len(extents)-1]
	from, size := ix.Contents[first.Content.Index].SpoolOff, blocksEnd(last.Off, last.Size)-first.Off
	leaves, ok := sp.LeavesOf(from, size)
	if !ok {
		return false, nil
	}
	for _, e := range extents {
		ct := ix.Contents[e.Content.Index]
		at := (e.Off - first.Off) / store.BlockSize * leaf.Size
		if layer.BlocksKey(ct.Size, leaves[at:][:blocksEnd(0, ct.Size)/store.BlockSize*leaf.Size]) != ct.Key {
			return false, nil
		}
	}
	return true, f.Clone(first.Off, sp.Data, from, size, leaves)
}
