package lazy

import (
	"context"
	"errors"
	"fmt"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/store"
)

const (
	pieceMax = 1 << 20 // bytes that one Read gives at most
	pieceNow = 16      // Reads that fetch or hold chunks at once
)

// Read gives n bytes from off on, or the first MiB of them, whether or not the folder takes what must be fetched for that. Its errors are those
// of Need but for store.ErrUnwritable.
func (im *Image) Read(ctx context.Context, off, n int64) ([]byte, error) {
	n = min(n, pieceMax)
	err := im.Need(ctx, off, n)
	if err != nil && !errors.Is(err, store.ErrUnwritable) {
		return nil, err
	}
	ctx, done, err := im.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	b := make([]byte, n)
	if im.file.Has(off, n) {
		return b, im.readFile(b, off)
	}
	if im.plan == nil {
		return nil, ErrReopened
	}
	select {
	case im.c.reading <- struct{}{}:
		defer func() { <-im.c.reading }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := im.c.patience(im.purpose(ctx, blob.ForReader))
	defer cancel()
	return b, im.compose(ctx, b, off)
}

// compose reads into p, which is zeros, what is at off: from the file what is there, and the rest from other images and from chunks.
func (im *Image) compose(ctx context.Context, p []byte, off int64) error {
	for at, end := off, off+int64(len(p)); at < end; {
		i := im.plan.find(at)
		to := end
		if i < im.plan.extents {
			e := im.plan.extent(i)
			if e.off <= at {
				to = min(end, e.off+e.size)
				if err := im.composeContent(ctx, p[at-off:to-off], i, e, at); err != nil {
					return err
				}
				at = to
				continue
			}
			to = min(end, e.off)
		}
		// between contents all is there, but for what a content leaves of its last block: zeros
		if block := blocksEnd(0, at); block > at && !im.file.Has(at, 1) {
			at = min(block, to)
			continue
		}
		if !im.file.Has(at, to-at) {
			return fmt.Errorf("%w: what lies between contents is lost in image %s", store.ErrDamaged, im.file.Info.Key)
		}
		if err := im.readFile(p[at-off:to-off], at); err != nil {
			return err
		}
		at = to
	}
	return nil
}

func (im *Image) readFile(p []byte, off int64) error {
	if _, err := im.file.File().ReadAt(p, off); err != nil {
		return fmt.Errorf("reading image %s: %w", im.file.Info.Key, err)
	}
	return nil
}

// composeContent reads what is at off in extent i.
func (im *Image) composeContent(ctx context.Context, p []byte, i int, e extent, off int64) error {
	n := int64(len(p))
	if im.file.Has(off, n) {
		return im.readFile(p, off)
	}
	if cl, ok := im.clones[i]; ok && cl.from.Intact(ctx, cl.off+(off-e.off)/store.BlockSize*store.BlockSize, n+(off-e.off)%store.BlockSize) {
		_, err := cl.from.File().ReadAt(p, cl.off+off-e.off)
		return err
	}
	if e.chunks == 0 {
		return fmt.Errorf("%w: a content of a streamed layer is lost in image %s", store.ErrDamaged, im.file.Info.Key)
	}
	for k := im.plan.chunkAt(e, off-e.off); len(p) > 0; k++ {
		ch := im.plan.chunk(k)
		n := min(int64(len(p)), e.off+ch.Off+ch.Size-off)
		if err := im.composeChunk(ctx, p[:n], i, k, off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// composeChunk reads what is at off in a chunk, fetching it unless it was written or is held.
func (im *Image) composeChunk(ctx context.Context, p []byte, i, k int, off int64) error {
	defer im.c.unwritten.await(im, k)()
	e, ch := im.plan.extent(i), im.plan.chunk(k)
	r := run{ext: []int{i}, chunk: []int{k}, wanted: []int{k}, layer: e.layer, start: ch.Start, end: ch.End}
	for {
		if im.hasChunk(e, k) {
			return im.readFile(p, off)
		}
		if b := im.c.unwritten.get(im, k); b != nil {
			copy(p, b[off-e.off-ch.Off:])
			return nil
		}
		if err := im.fetch(ctx, r); err != nil {
			return err
		}
	}
}

// keep writes a verified chunk, or holds it where that can't be.
func (im *Image) keep(e extent, k int, p []byte) error {
	im.mayWrite(im.ctx)
	err := im.place(e, k, im.plan.chunk(k), p)
	if !errors.Is(err, store.ErrUnwritable) {
		return err
	}
	im.c.met(err, int64(len(p)))
	im.c.unwritten.put(im, k, p)
	return nil
}

// retry writes a chunk that is held, if it is now possible, and tells whether the chunk is held or written.
func (im *Image) retry(e extent, k int) bool {
	p := im.c.unwritten.get(im, k)
	if p == nil {
		return false
	}
	if im.mayWrite(im.ctx) && im.place(e, k, im.plan.chunk(k), p) == nil {
		im.c.unwritten.drop(im, k)
	}
	return true
}

// writeHeld writes those chunks of a run that are held, and tells whether all of the run are written.
func (im *Image) writeHeld(r run) bool {
	for i, k := range r.chunk {
		if e := im.plan.extent(r.ext[i]); !im.hasChunk(e, k) {
			im.retry(e, k)
			if !im.hasChunk(e, k) {
				return false
			}
		}
	}
	return true
}
