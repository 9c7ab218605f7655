package lazy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// build makes the image of a recipe: scan, merge, lay out, and copy what streamed layers brought.
func (c *Cache) build(ctx context.Context, r *recipe, tell func(Event)) (*Image, error) {
	sources := r.sources()
	if r.first == nil {
		return c.put(ctx, r, sources, tell)
	}
	has, err := c.elsewhere()
	if err != nil {
		return nil, err
	}
	e := fetchEarly(sources, has, r.first)
	im, err := c.put(ctx, r, sources, tell)
	if err != nil || im.plan == nil {
		e.end()
		e.work.Wait()
		return im, err
	}
	im.setEarly(e)
	return im, nil
}

func (c *Cache) put(ctx context.Context, r *recipe, sources []source, tell func(Event)) (made *Image, err error) {
	done, err := c.use(ctx, sources)
	if err != nil {
		return nil, err
	}
	defer func() { done(made) }()
	lim := c.limits(r.opts)
	s := c.newScan(lim, r.opts.Stream, tell)
	for range 2 {
		layers, err := s.layers(ctx, r, sources)
		if err != nil {
			return nil, err
		}
		if r.opts.Verify {
			if err := c.verifyNew(ctx, sources, layers, lim, tell); err != nil {
				return nil, err
			}
		}
		im, missing, err := c.make(ctx, r, sources, layers, tell)
		if err != nil || missing == nil {
			return im, err
		}
		s.again = missing
	}
	return nil, errors.New("contents of streamed layers went away while the image was made")
}

// make makes the image's files and shows them in the cache. Where contents of streamed layers are in no spool and no
// image any more, it returns those layers instead.
func (c *Cache) make(ctx context.Context, r *recipe, sources []source, layers []*layer.Packed, tell func(Event)) (*Image, map[string]bool, error) {
	key := r.key(layers)
	defer c.expect(key)()
	im, err := c.load(ctx, key, true)
	if err == nil { // another manifest with the same layers
		if info := im.Info(); r.opts.Strict && len(info.Ambiguous) > 0 {
			return nil, nil, fmt.Errorf("%w: %s", ErrAmbiguous, info.Ambiguous[0])
		}
		return im, nil, c.record(r, key)
	}
	tell(Event{Stage: "laying out"})
	t, ambiguous, err := r.merge(layers)
	if err != nil {
		return nil, nil, err
	}
	if r.opts.Strict && len(ambiguous) > 0 {
		return nil, nil, fmt.Errorf("%w: %s", ErrAmbiguous, ambiguous[0])
	}
	l, err := layOut(t, layers, key)
	if err != nil {
		return nil, nil, err
	}
	first := r.parts[0]
	info := store.Info{
		Key: key, Ref: first.ref, Manifest: first.manifest, Size: l.Size(), MetaOff: l.MetaOffset(), Inodes: int64(t.Len()),
		Dropped: l.Dropped(), Ambiguous: ambiguous, UUID: uuidOf(key),
	}
	t = nil
	for i, s := range sources {
		ly := store.Layer{Digest: s.d.Digest.String(), Size: s.d.Size, MediaType: string(s.d.MediaType), Format: uint8(layers[i].Format), DiffID: s.diffID.Hex}
		if layers[i].Source == layer.FromTOC {
			ly.TOC, ly.Index = true, tocName(s.d)
		}
		info.Layers = append(info.Layers, ly)
	}
	chunks := 0
	for _, e := range l.Extents() {
		chunks += int(layers[e.Content.Layer].Contents[e.Content.Index].Chunks)
	}
	w := newPlanWriter(len(l.Extents()), chunks)
	for _, e := range l.Extents() {
		ix := layers[e.Content.Layer]
		ct := ix.Contents[e.Content.Index]
		w.add(e.Off, e.Size, ct.Key, int(e.Content.Layer), ix.Chunks[ct.FirstChunk:][:ct.Chunks])
		if ix.Source == layer.FromTar {
			info.Stream += ct.Size
		}
	}
	info.Plan = w.bytes()
	need := info.Overhead() + info.Size - info.MetaOff
	for _, e := range l.Extents() {
		if layers[e.Content.Layer].Source == layer.FromTar {
			need += blocksEnd(0, e.Size)
		}
	}
	release, err := c.st.Reserve(ctx, need)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	f, err := c.st.Create(info)
	if err != nil {
		return nil, nil, err
	}
	missing, err := c.write(ctx, f, l, sources, layers, tell)
	if err == nil && missing == nil {
		if err = c.st.Publish(f); err == nil {
			err = f.Close()
		} else if errors.Is(err, fs.ErrExist) { // another opening was faster
			err = c.st.Discard(f)
		}
		if err == nil {
			err = c.record(r, key)
		}
		if err != nil {
			return nil, nil, err
		}
		im, err := c.load(ctx, key, false)
		return im, nil, err
	}
	return nil, missing, errors.Join(err, c.st.Discard(f))
}

// record remembers which image a manifest became.
func (c *Cache) record(r *recipe, key store.Key) error {
	if !r.plain() {
		return nil
	}
	p := r.parts[0]
	return c.st.PutRecord(p.manifest, store.Record{Image: key, Config: p.m.Config.Digest.Hex})
}

// write puts into a new image all that is known: metadata, gaps, and the contents of streamed layers.
func (c *Cache) write(ctx context.Context, f *store.Image, l *erofs.Layout, sources []source, layers []*layer.Packed, tell func(Event)) (missing map[string]bool, err error) {
	put := &metaWriter{f: f}
	if err := l.WriteTo(put); err != nil {
		return nil, err
	}
	// the gaps: before, between and behind the contents
	const block = store.BlockSize
	at := int64(block)
	for _, e := range l.Extents() {
		if at < e.Off {
			if err := f.PutZeros(at, e.Off); err != nil {
				return nil, err
			}
		}
		at = (e.Off + e.Size + block - 1) / block * block
	}
	if err := errors.Join(f.PutZeros(at, l.MetaOffset()), f.PutZeros(put.end(l.MetaOffset()), l.Size())); err != nil {
		return nil, err
	}

	spools := c.openSpools(sources, layers)
	defer spools.close()
	var done int64
	left, err := spools.copyTo(ctx, f, l.Extents(), layers, func(n int64) {
		done += n
		tell(Event{Stage: "copying", Bytes: done, Total: f.Info.Stream})
	})
	if err != nil {
		return nil, err
	}
	if left, err = c.copyHeld(ctx, f, left, layers); err != nil {
		return nil, err
	}
	if left, err = c.copyRests(f, left, sources, layers); err != nil {
		return nil, err
	}
	for _, e := range left {
		if missing == nil {
			missing = make(map[string]bool)
		}
		missing[sources[e.Content.Layer].d.Digest.Hex] = true
	}
	return missing, nil
}

// copyHeld copies contents of streamed layers that other images show, and returns those that none does.
func (c *Cache) copyHeld(ctx context.Context, f *store.Image, extents []erofs.Extent, layers []*layer.Packed) (left []erofs.Extent, err error) {
	elsewhere := make(map[layer.Key]erofs.Extent)
	keys := make(map[layer.Key]bool)
	for _, e := range extents {
		k := layers[e.Content.Layer].Contents[e.Content.Index].Key
		elsewhere[k] = e
		keys[k] = true
	}
	if len(keys) == 0 {
		return nil, nil
	}
	var cerr error
	err = c.holders(ctx, keys, f.Info.Key, func(k layer.Key, from *store.Image, e extent) bool {
		if leaves := from.Leaves(e.off, e.size); cerr == nil && layer.BlocksKey(e.size, leaves) == k { // else it is damaged
			cerr = f.Clone(elsewhere[k].Off, from.File(), e.off, e.size, leaves)
			delete(elsewhere, k)
		}
		return false
	})
	for _, e := range elsewhere {
		left = append(left, e)
	}
	return left, errors.Join(err, cerr)
}

// metaWriter passes on what a layout writes, in whole blocks, as present.
type metaWriter struct {
	f    *store.Image
	last int64
}

func (w *metaWriter) WriteAt(p []byte, off int64) (int, error) {
	if off%store.BlockSize != 0 {
		return 0, fmt.Errorf("metadata is written at %d, within a block", off)
	}
	if err := w.f.Put(off, p); err != nil {
		return 0, err
	}
	w.last = max(w.last, off+int64(len(p)))
	return len(p), nil
}

// end is where the first block behind what was written begins.
func (w *metaWriter) end(least int64) int64 {
	return (max(w.last, least) + store.BlockSize - 1) / store.BlockSize * store.BlockSize
}
