package lazy

import (
	"context"
	"errors"
	"fmt"

	"github.com/pexfs/pex/lazy/store"
)

// FsckReport is what a check of an image has found and done.
type FsckReport struct {
	Checked int64   `json:"checked"` // bytes that are present and were read
	Bad     int64   `json:"bad"`     // blocks of 4,096 bytes that were damaged
	Offsets []int64 `json:"offsets"` // of the first of them in the image, in bytes
	Tree    bool    `json:"tree"`    // the Merkle tree was damaged
	Map     bool    `json:"map"`     // the map of a sealed image was damaged
	Root    bool    `json:"root"`    // the root that was recorded is not that of the data and the Merkle tree, which agree
	Layers  bool    `json:"layers"`  // what is kept of its layers for other images was damaged
	Files   string  `json:"files"`   // what is wrong with its other files, so that it can't be used at all
	Healed  bool    `json:"healed"`  // all of it is right now, or will be as soon as it is read, filled or opened
}

// None tells whether nothing was damaged.
func (r FsckReport) None() bool {
	return r.Bad == 0 && !r.Tree && !r.Map && !r.Root && !r.Layers && r.Files == ""
}

const maxOffsets = 100 // in a report

// Fsck reads all that is present of an image and compares it with the image's Merkle tree. With heal, damaged metadata is made
// anew from what is known of the layers, damaged contents of streamed layers by streaming these again, and all other damaged
// contents are forgotten, so that they are fetched by the next reader or filler. Contents that the tree doesn't vouch for, but
// the digests of the layers do, are not damaged. So a root that is wrong is found anew, too. What is kept of its layers for other images is removed if it is damaged; an image whose other files are is
// removed, to be made anew when it is opened. repo is asked for where to fetch from when that is known to be necessary. The
// image may be in use; what its users have read or mapped of damaged blocks already, they have. The error wraps ErrBusy while the
// image is being filled.
func (c *Cache) Fsck(ctx context.Context, k store.Key, repo func(store.Info) (Repo, error), heal bool, tell func(Event)) (FsckReport, error) {
	rep := FsckReport{Offsets: []int64{}}
	var l loss
	im, err := c.Image(ctx, k)
	if err == nil {
		l, err = c.fsck(ctx, im, repo, heal, tell, &rep)
	} else if errors.Is(err, store.ErrDamaged) {
		rep.Files, err = err.Error(), nil
	}
	if err != nil || !heal || rep.None() {
		return rep, err
	}
	if rep.Files != "" || len(l.blocks) > 0 || l.root {
		err = c.change(ctx, k, func(now *Image) error {
			switch {
			case now != im: // another one has changed it meanwhile
				return ErrReopened
			case rep.Files != "":
				return c.st.RemoveImage(k)
			}
			return im.file.Forget(l.blocks, l.root)
		})
	}
	if err == nil && len(l.blocks) > 0 {
		if im, err = c.Image(ctx, k); err == nil {
			im.setRepo(l.repo)
		}
	}
	rep.Healed = err == nil
	return rep, err
}

// loss is what an image is to forget; with root its root, too, which vouches for none of what was damaged, or not for what was right.
// repo has these contents.
type loss struct {
	blocks []int64
	root   bool
	repo   Repo
}

// fsck does what can be done while the image is in use.
func (c *Cache) fsck(ctx context.Context, im *Image, repo func(store.Info) (Repo, error), heal bool, tell func(Event), rep *FsckReport) (loss, error) {
	ctx, done, err := im.begin(ctx)
	if err != nil {
		return loss{}, err
	}
	defer done()
	var p *plan
	if err = im.file.CheckFiles(); err == nil {
		p, err = im.readPlan()
	}
	if errors.Is(err, store.ErrDamaged) {
		rep.Files = err.Error()
		return loss{}, nil
	}
	if err != nil {
		return loss{}, err
	}
	if !im.filling.CompareAndSwap(false, true) {
		return loss{}, fmt.Errorf("checking image %s: %w", im.file.Info.Key, ErrBusy)
	}
	defer im.filling.Store(false)
	im.checking.Store(true)
	defer im.checking.Store(false)
	rep.Checked = im.file.Present()
	d, err := im.file.Fsck(ctx, func(n int64) { tell(Event{Stage: "checking", Bytes: n, Total: im.file.Info.Size}) })
	if err != nil {
		return loss{}, err
	}
	rep.Bad, rep.Tree, rep.Map, rep.Root = int64(len(d.Blocks)), d.Tree, d.Map, d.Root
	for _, b := range d.Blocks[:min(len(d.Blocks), maxOffsets)] {
		rep.Offsets = append(rep.Offsets, b*store.BlockSize)
	}
	if rep.Layers = errors.Is(c.st.CheckPack(im.file.Info.Key), store.ErrDamaged); rep.Layers && heal { // all of it can be fetched
		if err := c.st.RemovePack(im.file.Info.Key); err != nil {
			return loss{}, err
		}
	}
	switch {
	case d.None() || !heal:
		return loss{}, nil
	case len(d.Blocks) == 0 && !d.Root:
		return loss{}, im.file.Rebuild(ctx, false)
	}
	// of an image that isn't sealed each block is vouched for by its leaf, whatever the root: it gets another when it is sealed
	forget := d.Root && im.file.State() != store.Sealed
	if forget && len(d.Blocks) == 0 {
		return loss{root: true}, nil
	}
	from, err := repo(im.file.Info)
	if err != nil {
		return loss{}, err
	}
	d.Root = d.Root && !forget
	l, err := c.heal(ctx, im, p, d, from, tell)
	l.root = l.root || forget
	return l, err
}
