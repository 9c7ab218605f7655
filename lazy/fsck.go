package lazy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// FsckReport is what a check of an image has found and done.
type FsckReport struct {
	Checked int64   `json:"checked"` // bytes that are present and were read
	Bad     int64   `json:"bad"`     // blocks of 4,096 bytes that were damaged
	Offsets []int64 `json:"offsets"` // of the first of them in the image, in bytes
	Tree    bool    `json:"tree"`    // the Merkle tree was damaged
	Map     bool    `json:"map"`     // the map of a sealed image was damaged
	Files   string  `json:"files"`   // what is wrong with its other files, so that it can't be used at all
	Healed  bool    `json:"healed"`  // all of it is right now, or will be as soon as it is read, filled or opened
}

// None tells whether nothing was damaged.
func (r FsckReport) None() bool { return r.Bad == 0 && !r.Tree && !r.Map && r.Files == "" }

const maxOffsets = 100 // in a report

// Fsck reads all that is present of an image and compares it with the image's Merkle tree. With heal, damaged metadata is made
// anew from what is known of the layers, damaged contents of streamed layers by streaming these again, and all other damaged
// contents are forgotten, so that they are fetched by the next reader or filler; an image whose other files are damaged is removed, to be
// made anew when it is opened. repo is asked for where to fetch from when that is known to be necessary. The image may be in
// use; what its users have read or mapped of damaged blocks already, they have. The error wraps ErrBusy while the image
// is being filled.
func (c *Cache) Fsck(ctx context.Context, k store.Key, repo func(store.Info) (Repo, error), heal bool, tell func(Event)) (FsckReport, error) {
	rep := FsckReport{Offsets: []int64{}}
	im, err := c.Image(ctx, k)
	if err == nil {
		err = im.file.CheckFiles()
	}
	var p *plan
	if err == nil {
		p, err = im.readPlan()
	}
	if errors.Is(err, store.ErrDamaged) {
		rep.Files = err.Error()
		if heal {
			if err := c.Remove(k); err != nil {
				return rep, err
			}
			rep.Healed = true
		}
		return rep, nil
	}
	if err != nil {
		return rep, err
	}
	if !im.filling.CompareAndSwap(false, true) {
		return rep, fmt.Errorf("checking image %s: %w", k, ErrBusy)
	}
	defer im.filling.Store(false)
	rep.Checked = im.Present()
	d, err := im.file.Fsck(ctx, func(n int64) { tell(Event{Stage: "checking", Bytes: n, Total: im.file.Info.Size}) })
	if err != nil {
		return rep, err
	}
	rep.Bad, rep.Tree, rep.Map = int64(len(d.Blocks)), d.Tree, d.Map
	for _, b := range d.Blocks[:min(len(d.Blocks), maxOffsets)] {
		rep.Offsets = append(rep.Offsets, b*store.BlockSize)
	}
	switch {
	case d.None() || !heal:
		return rep, nil
	case len(d.Blocks) == 0:
		err = im.file.Rebuild()
	default:
		var from Repo
		if from, err = repo(im.file.Info); err == nil {
			err = c.heal(ctx, im, p, d.Blocks, from, tell)
		}
	}
	rep.Healed = err == nil
	return rep, err
}

// heal makes anew what can't be fetched by itself, forgets the other damaged blocks, and opens the image anew.
func (c *Cache) heal(ctx context.Context, im *Image, p *plan, bad []int64, repo Repo, tell func(Event)) error {
	info := im.file.Info
	var fetch, remake []int64
	streamed := make(map[int]bool) // extents
	for _, n := range bad {
		off := n * store.BlockSize
		i := p.find(off)
		if i == p.extents || p.extent(i).off > off {
			remake = append(remake, n)
			continue
		}
		if p.extent(i).chunks > 0 {
			fetch = append(fetch, n)
			continue
		}
		streamed[i] = true
		remake = append(remake, n)
	}
	if len(remake) > 0 {
		if err := c.remake(ctx, im, p, remake, streamed, repo, tell); err != nil {
			return fmt.Errorf("healing image %s: %w", info.Key, err)
		}
	}
	if len(fetch) == 0 {
		if im.State() != store.Sealed {
			return nil
		}
		return im.file.Rebuild()
	}
	if err := im.file.Forget(fetch); err != nil {
		return err
	}
	// what is known of it in memory is not so any more
	c.mu.Lock()
	delete(c.images, info.Key)
	c.mu.Unlock()
	im.jobs.Wait()
	im.cancel()
	im.closeClones()
	if err := im.file.Retire(); err != nil {
		return err
	}
	fresh, err := c.Image(ctx, info.Key)
	if err != nil {
		return err
	}
	fresh.setRepo(repo)
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
	defer c.use(sources)()
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
