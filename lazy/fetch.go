package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// Fetches of neighbouring chunks are merged up to fetchMax compressed bytes over gaps of at most fetchGap.
const (
	fetchMax = 4 << 20
	fetchGap = 64 << 10
	fetchers = 8 // at once for one Need
)

// run is the work of one job: chunks of one layer in the order of their places in its blob. ext and chunk go together.
type run struct {
	ext, chunk []int
	wanted     []int // those of chunk that were asked for
	layer      uint32
	start, end int64
}

// runs groups pairs of (extent, chunk) into fetches of at most most bytes, in the order in which the chunks lie in their layers. A chunk
// that is larger makes one by itself.
func (im *Image) runs(pairs []int, most int64) []run {
	type want struct {
		ext, chunk int
		layer      uint32
		at         layer.Chunk
	}
	wants := make([]want, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		wants = append(wants, want{pairs[i], pairs[i+1], im.plan.extent(pairs[i]).layer, im.plan.chunk(pairs[i+1])})
	}
	slices.SortStableFunc(wants, func(a, b want) int {
		return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.at.Start, b.at.Start), cmp.Compare(a.at.Inner, b.at.Inner))
	})
	var all []run
	for _, w := range wants {
		if n := len(all); n > 0 {
			r := &all[n-1]
			if r.layer == w.layer && w.at.Start <= r.end+fetchGap && max(w.at.End, r.end)-r.start <= most {
				r.ext, r.chunk, r.end = append(r.ext, w.ext), append(r.chunk, w.chunk), max(r.end, w.at.End)
				r.wanted = r.chunk
				continue
			}
		}
		all = append(all, run{ext: []int{w.ext}, chunk: []int{w.chunk}, wanted: []int{w.chunk}, layer: w.layer, start: w.at.Start, end: w.at.End})
	}
	return all
}

// fetchAll fetches these chunks for a reader, or waits for those that are being fetched.
func (im *Image) fetchAll(ctx context.Context, pairs []int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, fetchers)
	for _, r := range im.runs(pairs, fetchMax) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			im.ahead(&r)
			if err := im.fetch(ctx, r); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// fetch waits until every chunk of r that is asked for was written, by a job of its own or by others.
func (im *Image) fetch(ctx context.Context, r run) error { return im.fetchAs(ctx, r, false) }

// fetchBehind does it for what nobody waits for.
func (im *Image) fetchBehind(ctx context.Context, r run) error { return im.fetchAs(ctx, r, true) }

func (im *Image) fetchAs(ctx context.Context, r run, behind bool) error {
	ext := make(map[int]extent, len(r.chunk))
	for i, k := range r.chunk {
		ext[k] = im.plan.extent(r.ext[i])
	}
	purpose := blob.PurposeOf(ctx) // the job's context is another
	return im.obtain(ctx, r.wanted, r.chunk, behind, func(k int) bool { return im.hasChunkLocked(ext[k], k) }, func(ctx context.Context, j *job) error {
		return im.fetchRun(blob.WithPurpose(ctx, purpose), r, j)
	})
}

// purpose is ctx for fetching bytes of the image.
func (im *Image) purpose(ctx context.Context, why blob.Reason) context.Context {
	return blob.WithPurpose(ctx, blob.Purpose{Reason: why, Image: string(im.file.Info.Key)})
}

// fetchRun fetches those chunks of r that j has taken over. Bytes that aren't what their digest says are fetched once more: they may have
// been changed on their way.
func (im *Image) fetchRun(ctx context.Context, r run, j *job) error {
	if err := im.c.fetches.take(ctx, j.line, j.turn); err != nil {
		return err
	}
	defer im.c.fetches.give(j.line, j.turn)
	err := im.fetchOnce(ctx, r, j)
	if !errors.Is(err, blob.ErrDigestMismatch) || ctx.Err() != nil {
		return err
	}
	ly := im.file.Info.Layers[r.layer]
	im.c.log.Warn("wrong bytes came, and are fetched again", "layer", ly.Digest, "from", r.start, "to", r.end, "err", err)
	im.distrust(ly.Digest)
	return im.fetchOnce(ctx, r, j)
}

// distrust says that bytes of a layer weren't what their digests say.
func (im *Image) distrust(digest string) {
	im.c.wholes.distrust(digest)
	im.mu.Lock()
	repo := im.repo
	im.mu.Unlock()
	h, err := v1.NewHash(digest)
	if d, ok := repo.(interface{ Distrust(v1.Hash) }); ok && err == nil {
		d.Distrust(h)
	}
}

// fetchOnce fetches those of them that have not been written.
func (im *Image) fetchOnce(ctx context.Context, r run, j *job) error {
	var ext, nums []int
	var chunks []layer.Chunk
	for i, k := range r.chunk {
		if _, mine := j.got[k]; mine && !j.has(k) {
			ext, nums, chunks = append(ext, r.ext[i]), append(nums, k), append(chunks, im.plan.chunk(k))
		}
	}
	if len(chunks) == 0 {
		return nil
	}
	im.mu.Lock()
	repo, early := im.repo, im.early
	im.mu.Unlock()
	if repo == nil {
		return fmt.Errorf("image %s: nobody has said where to fetch it from", im.file.Info.Key)
	}
	ly := im.file.Info.Layers[r.layer]
	digest, err := v1.NewHash(ly.Digest)
	if err != nil {
		return err
	}
	start, end := chunks[0].Start, chunks[0].End
	for _, ch := range chunks {
		start, end = min(start, ch.Start), max(end, ch.End)
	}
	src := im.c.wholes.parts(repo.Blob(v1.Descriptor{Digest: digest, Size: ly.Size, MediaType: types.MediaType(ly.MediaType)}), ly.Digest)
	if early != nil {
		src = early.source(src, ly.Digest)
	}
	rd, err := src.Fetch(ctx, start, end-start)
	if err != nil {
		return fmt.Errorf("fetching from layer %s: %w", ly.Digest, err)
	}
	defer rd.Close()
	if _, held := rd.(*earlyReader); !held {
		im.fetched.Add(end - start)
	}
	dec := im.c.decoders.Get().(*layer.ChunkReader)
	defer im.c.decoders.Put(dec)
	err = dec.Read(ctx, layer.Format(ly.Format), rd, start, chunks, func(i int, p []byte) error {
		if err := im.keep(im.plan.extent(ext[i]), nums[i], p); err != nil {
			return err
		}
		close(j.got[nums[i]])
		return nil
	})
	if err != nil {
		if early != nil && errors.Is(err, blob.ErrDigestMismatch) {
			im.dropEarly(early) // another fetch may be right
		}
		return fmt.Errorf("reading layer %s: %w", ly.Digest, err)
	}
	return nil
}

// place writes a verified chunk. Blocks that it shares with its neighbours become present with the last of them.
func (im *Image) place(e extent, k int, ch layer.Chunk, p []byte) error {
	const block = store.BlockSize
	off, end := e.off+ch.Off, e.off+ch.Off+ch.Size
	last := end == e.off+e.size // the rest of the last block is padding
	whole0, whole1 := (off+block-1)/block*block, end/block*block
	release, err := im.reserve(im.ctx, blocksEnd(0, end)-off/block*block)
	if err != nil {
		return err
	}
	defer release()
	if last {
		whole1 = end
	}
	if whole0 < whole1 {
		if err := im.file.Put(whole0, p[whole0-off:whole1-off]); err != nil {
			return err
		}
	}
	if err := im.part(e, k, off, min(whole0, end), p); err != nil {
		return err
	}
	if !last && whole1 >= whole0 {
		if err := im.part(e, k, whole1, end, p[whole1-off:]); err != nil {
			return err
		}
	}
	im.mu.Lock()
	im.done[k] = true
	im.mu.Unlock()
	return nil
}

// part writes bytes [off, end) of a block that chunk k has a part of. A chunk may come twice, after a fault between its
// parts: so each is counted once.
func (im *Image) part(e extent, k int, off, end int64, p []byte) error {
	if off >= end {
		return nil
	}
	if err := im.file.PutPart(off, p[:end-off]); err != nil {
		return err
	}
	at := off / store.BlockSize * store.BlockSize
	if im.file.Has(at, 1) { // by an earlier process, or again
		return nil
	}
	im.mu.Lock()
	if im.parts[at] == nil {
		im.parts[at] = make(map[int]int64)
	}
	im.parts[at][k] = end - off
	var have int64
	for _, n := range im.parts[at] {
		have += n
	}
	used := min(store.BlockSize, e.off+e.size-at)
	im.mu.Unlock()
	if have < used {
		return nil
	}
	if err := im.file.FinishBlock(at, int(used)); err != nil { // whoever comes again does
		return err
	}
	im.mu.Lock()
	delete(im.parts, at)
	im.mu.Unlock()
	return nil
}
