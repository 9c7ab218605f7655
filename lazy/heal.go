package lazy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/leaf"
	"github.com/pexfs/pex/lazy/store"
)

// heal makes anew what can't be fetched by itself and tells what is to be fetched.
func (c *Cache) heal(ctx context.Context, im *Image, p *plan, d store.Damage, repo Repo, tell func(Event)) (loss, error) {
	info := im.file.Info
	bad := d.Blocks
	blocks := info.Size / store.BlockSize
	if d.Root {
		bad = make([]int64, blocks)
		for i := range bad {
			bad[i] = int64(i)
		}
	}
	l := loss{root: int64(len(bad)) == blocks, repo: repo}
	var remake []int64
	streamed := make(map[int]bool) // extents
	for n := 0; len(bad) > 0; bad = bad[n:] {
		i := p.find(bad[0] * store.BlockSize)
		if i == p.extents || p.extent(i).off > bad[0]*store.BlockSize {
			n = 1
			remake = append(remake, bad[0])
			continue
		}
		e := p.extent(i)
		n, _ = slices.BinarySearch(bad, blocksEnd(e.off, e.size)/store.BlockSize)
		wrong, err := im.sift(ctx, p, e, bad[:n])
		if err != nil {
			return loss{}, err
		}
		l.root = l.root || len(wrong) < n
		if e.chunks > 0 {
			l.blocks = append(l.blocks, wrong...)
		} else if len(wrong) > 0 {
			streamed[i] = true
			remake = append(remake, wrong...)
		}
	}
	if len(remake) > 0 {
		if err := c.remake(ctx, im, p, remake, streamed, repo, tell); err != nil {
			return loss{}, fmt.Errorf("healing image %s: %w", info.Key, err)
		}
	}
	if len(l.blocks) > 0 || im.file.State() != store.Sealed {
		return l, nil
	}
	return loss{}, im.file.Rebuild(ctx, true)
}

// sift gives those of a content's blocks that are not what its layer says. The leaves of the others are made anew.
func (im *Image) sift(ctx context.Context, p *plan, e extent, blocks []int64) (wrong []int64, err error) {
	whole := true
	if e.chunks == 0 { // there is but one digest
		if whole, err = im.keyRight(ctx, e); err != nil {
			return nil, err
		}
	}
	var right []int64
	verdicts := make(map[int]bool) // by chunk
	for _, n := range blocks {
		off := n*store.BlockSize - e.off
		ok := whole && im.zeros(e.off+e.size, (n+1)*store.BlockSize)
		for k := p.chunkAt(e, off); ok && k < int(e.first+e.chunks) && p.chunk(k).Off < off+store.BlockSize; k++ {
			known := false
			if ok, known = verdicts[k]; !known {
				if ok, err = im.chunkRight(ctx, e, p.chunk(k)); err != nil {
					return nil, err
				}
				verdicts[k] = ok
			}
		}
		if ok {
			right = append(right, n)
		} else {
			wrong = append(wrong, n)
		}
	}
	return wrong, im.file.Rehash(right)
}

// zeros tells whether what lies from off to end, less than a block, is zeros.
func (im *Image) zeros(off, end int64) bool {
	var b, zero [store.BlockSize]byte
	if off >= end {
		return true
	}
	_, err := im.file.File().ReadAt(b[:end-off], off)
	return err == nil && b == zero
}

// chunkRight tells whether a chunk is what its digest says.
func (im *Image) chunkRight(ctx context.Context, e extent, ch layer.Chunk) (bool, error) {
	h := sha256.New()
	err := im.pieces(ctx, e.off+ch.Off, ch.Size, func(p []byte) { h.Write(p) })
	return [32]byte(h.Sum(nil)) == ch.Digest, err
}

// keyRight tells whether a content of a streamed layer is what its key says.
func (im *Image) keyRight(ctx context.Context, e extent) (bool, error) {
	var leaves []byte
	err := im.pieces(ctx, e.off, blocksEnd(0, e.size), func(p []byte) {
		n := len(leaves)
		leaves = append(leaves, make([]byte, len(p)/leaf.Block*leaf.Size)...)
		leaf.Sums(leaves[n:], p)
	})
	return layer.BlocksKey(e.size, leaves) == e.key, err
}

// pieces reads n bytes from off on.
func (im *Image) pieces(ctx context.Context, off, n int64, f func([]byte)) error {
	buf := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; off += int64(len(buf)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		buf = buf[:min(int64(len(buf)), end-off)]
		if _, err := im.file.File().ReadAt(buf, off); err != nil {
			return fmt.Errorf("reading image %s: %w", im.file.Info.Key, err)
		}
		f(buf)
	}
	return nil
}

// remake writes blocks of metadata, of gaps, and of contents of streamed layers, as they were when the image was made.
func (c *Cache) remake(ctx context.Context, im *Image, p *plan, bad []int64, streamed map[int]bool, repo Repo, tell func(Event)) error {
	info := im.file.Info
	raw, err := c.st.Blob(info.Manifest)
	if err != nil {
		return err
	}
	pt, err := newPart("sha256:"+info.Manifest, repo, v1.Hash{Algorithm: "sha256", Hex: info.Manifest}, raw)
	if err != nil {
		return err
	}
	r := &recipe{parts: []*part{pt}}
	sources := r.sources()
	done, err := c.use(ctx, sources)
	if err != nil {
		return err
	}
	defer done(im)
	s := c.newScan(c.opts.Limits, false, tell)
	for i := range streamed {
		s.again[sources[p.extent(i).layer].d.Digest.Hex] = true
	}
	layers, err := s.layers(ctx, r, sources)
	if err != nil {
		return err
	}
	if key := r.key(layers); key != info.Key {
		return fmt.Errorf("its layers make image %s now", key)
	}
	t, _, err := r.merge(layers)
	if err != nil {
		return err
	}
	l, err := layOut(t, layers, info.Key)
	if err != nil {
		return err
	}
	if l.Size() != info.Size || l.MetaOffset() != info.MetaOff || len(l.Extents()) != p.extents {
		return errors.New("its layout is another now")
	}
	for _, n := range bad { // gaps; all else is written below
		if i := p.find(n * store.BlockSize); i == p.extents || p.extent(i).off > n*store.BlockSize {
			if err := im.file.Put(n*store.BlockSize, make([]byte, store.BlockSize)); err != nil {
				return err
			}
		}
	}
	if err := l.WriteTo(&patcher{im.file, bad}); err != nil {
		return err
	}
	for i := range streamed {
		if err := c.remakeContent(im, p.extent(i), sources, layers); err != nil {
			return err
		}
	}
	return nil
}

// remakeContent copies a content from its layer's spool again.
func (c *Cache) remakeContent(im *Image, e extent, sources []source, layers []*layer.Packed) error {
	s := sources[e.layer]
	sp, err := c.st.LayerSpool(s.d.Digest.Hex)
	if err != nil {
		return err
	}
	defer sp.Close()
	for _, ct := range layers[e.layer].Contents {
		if ct.Key != e.key {
			continue
		}
		leaves, ok := sp.LeavesOf(ct.SpoolOff, ct.Size)
		if !ok || layer.BlocksKey(ct.Size, leaves) != ct.Key {
			break
		}
		return im.file.Clone(e.off, sp.Data, ct.SpoolOff, ct.Size, leaves)
	}
	return fmt.Errorf("layer %s has no content of key %x", s.d.Digest, e.key)
}

// patcher writes, of what a layout writes, only damaged blocks.
type patcher struct {
	f   *store.Image
	bad []int64
}

func (w *patcher) WriteAt(p []byte, off int64) (int, error) {
	first := off / store.BlockSize
	i, _ := slices.BinarySearch(w.bad, first)
	for ; i < len(w.bad) && w.bad[i] < first+int64(len(p))/store.BlockSize; i++ {
		at := (w.bad[i] - first) * store.BlockSize
		if err := w.f.Put(w.bad[i]*store.BlockSize, p[at:at+store.BlockSize]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
