package lazy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
	"github.com/pexfs/pex/lazy/tree"
)

// build makes the image of a manifest: scan, merge, lay out, and copy what streamed layers brought.
func (c *Cache) build(ctx context.Context, r ref.Ref, repo Repo, manifest string, m v1.Manifest, config []byte, tell func(Event)) (*Image, error) {
	var cfg v1.ConfigFile
	if err := json.Unmarshal(config, &cfg); err != nil {
		return nil, fmt.Errorf("reading config: %w", err)
	}
	if err := checkLayers(m, &cfg); err != nil {
		return nil, err
	}
	defer c.use(m, &cfg)()
	again := make(map[string]bool)
	for range 2 {
		layers, err := c.scan(ctx, repo, m, &cfg, again, tell)
		if err != nil {
			return nil, err
		}
		im, missing, err := c.layOut(ctx, r, manifest, m, config, layers, tell)
		if err != nil || missing == nil {
			return im, err
		}
		again = missing
	}
	return nil, errors.New("contents of streamed layers went away while the image was made")
}

// imageKey is what an image's bytes depend on: the layout's version, the layers, and what each was read from.
func imageKey(m v1.Manifest, layers []*layer.Index) store.Key {
	h := sha256.New()
	fmt.Fprintf(h, "pex image %d\n", erofs.LayoutVersion)
	for i, d := range m.Layers {
		fmt.Fprintf(h, "%s %d\n", d.Digest, layers[i].Source)
	}
	return store.Key(hex.EncodeToString(h.Sum(nil)))
}

// layOut makes the image's files and shows them in the cache. Where contents of streamed layers are in no spool and no
// image any more, it returns those layers instead.
func (c *Cache) layOut(ctx context.Context, r ref.Ref, manifest string, m v1.Manifest, config []byte, layers []*layer.Index, tell func(Event)) (*Image, map[string]bool, error) {
	key := imageKey(m, layers)
	configHash := sha256.Sum256(config)
	rec := store.Record{Image: key, Config: hex.EncodeToString(configHash[:])}
	if im, err := c.load(ctx, key); err == nil { // another manifest with the same layers
		return im, nil, c.st.PutRecord(manifest, rec)
	}
	tell(Event{Stage: "laying out"})
	b := tree.NewBuilder(tree.Options{})
	for i, ix := range layers {
		if err := b.AddLayer(entries(ix)); err != nil {
			return nil, nil, fmt.Errorf("merging layer %s: %w", m.Layers[i].Digest, err)
		}
	}
	t, err := b.Build()
	if err != nil {
		return nil, nil, fmt.Errorf("merging layers: %w", err)
	}
	keyHash := hashOf(string(key))
	uuid := [16]byte(keyHash[:16])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x80, uuid[8]&0x3f|0x80 // version 8, as RFC 9562 has it for ids of one's own making
	l, err := erofs.NewLayout(t, func(ct tree.Content) [32]byte { return layers[ct.Layer].Contents[ct.Index].Key }, uuid)
	if err != nil {
		return nil, nil, fmt.Errorf("laying out the image: %w", err)
	}
	inodes := int64(t.Len())
	t, b = nil, nil

	info := store.Info{Key: key, Ref: r.String(), Manifest: manifest, Size: l.Size(), MetaOff: l.MetaOffset(), Inodes: inodes, Dropped: l.Dropped(), UUID: uuid}
	for i, d := range m.Layers {
		info.Layers = append(info.Layers, store.Layer{Digest: d.Digest.String(), Size: d.Size, MediaType: string(d.MediaType), TOC: layers[i].Source == layer.FromTOC, Format: uint8(layers[i].Format)})
	}
	var w planWriter
	for _, e := range l.Extents() {
		ix := layers[e.Content.Layer]
		ct := ix.Contents[e.Content.Index]
		w.add(e.Off, e.Size, ct.Key, int(e.Content.Layer), ix.Chunks[ct.FirstChunk:][:ct.Chunks])
		if ix.Source == layer.FromTar {
			info.Stream += ct.Size
		}
	}
	info.Plan = w.bytes()
	f, err := c.st.Create(info)
	if err != nil {
		return nil, nil, err
	}
	missing, err := c.write(ctx, f, l, m, layers, tell)
	if err == nil && missing == nil {
		err = c.st.Publish(f)
	}
	if err == nil && missing == nil {
		err = c.st.PutRecord(manifest, rec)
	}
	if err != nil || missing != nil {
		return nil, missing, errors.Join(err, c.st.Discard(f))
	}
	if err := f.Close(); err != nil {
		return nil, nil, err
	}
	im, err := c.load(ctx, key)
	return im, nil, err
}

func entries(ix *layer.Index) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		for _, e := range ix.Entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// write puts into a new image all that is known: metadata, gaps, and the contents of streamed layers.
func (c *Cache) write(ctx context.Context, f *store.Image, l *erofs.Layout, m v1.Manifest, layers []*layer.Index, tell func(Event)) (missing map[string]bool, err error) {
	put := &metaWriter{f: f}
	if err := l.WriteTo(put); err != nil {
		return nil, err
	}
	// the gaps: before, between and behind the contents
	const block = store.BlockSize
	at := int64(block)
	for _, e := range l.Extents() {
		f.PutZeros(at, e.Off)
		at = (e.Off + e.Size + block - 1) / block * block
	}
	f.PutZeros(at, l.MetaOffset())
	f.PutZeros(put.end(l.MetaOffset()), l.Size())

	spools := make([]*store.Spool, len(layers))
	defer func() {
		for _, s := range spools {
			if s != nil {
				s.Close()
			}
		}
	}()
	for i, ix := range layers {
		if ix.Source == layer.FromTar {
			if s, err := c.st.LayerSpool(m.Layers[i].Digest.Hex); err == nil {
				spools[i] = s
			}
		}
	}
	// what is in no spool must be in another image
	type want struct {
		off   int64
		layer int
	}
	elsewhere := make(map[layer.Key]want)
	keys := make(map[layer.Key]bool)
	var done int64
	for i, e := range l.Extents() {
		ly := int(e.Content.Layer)
		if layers[ly].Source != layer.FromTar {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ct := layers[ly].Contents[e.Content.Index]
		if s := spools[ly]; s != nil {
			if leaves, ok := s.LeavesOf(ct.SpoolOff, ct.Size); ok {
				if err := f.Clone(e.Off, s.Data, ct.SpoolOff, ct.Size, leaves); err != nil {
					return nil, err
				}
				if done += ct.Size; i%256 == 0 {
					tell(Event{Stage: "copying", Bytes: done, Total: f.Info.Stream})
				}
				continue
			}
		}
		elsewhere[ct.Key] = want{e.Off, ly}
		keys[ct.Key] = true
	}
	if len(keys) == 0 {
		return nil, nil
	}
	var cerr error
	err = c.holders(keys, f.Info.Key, func(k layer.Key, from *store.Image, e extent) bool {
		if cerr == nil {
			cerr = f.Clone(elsewhere[k].off, from.File(), e.off, e.size, from.Leaves(e.off, e.size))
			delete(elsewhere, k)
		}
		return false
	})
	if err := errors.Join(err, cerr); err != nil {
		return nil, err
	}
	for _, w := range elsewhere {
		if missing == nil {
			missing = make(map[string]bool)
		}
		missing[m.Layers[w.layer].Digest.Hex] = true
	}
	return missing, nil
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
