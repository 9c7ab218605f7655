package lazy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// Image is an image of the cache that may still be filling.
type Image struct {
	c    *Cache
	file *store.Image
	plan *plan // nil of an image that was sealed when it was opened

	// clones are contents that another image of the cache holds. Fixed after newImage.
	clones map[int]clone // by extent
	others []*store.Image

	fetched   atomic.Int64 // compressed bytes asked of the network, but for what early has
	filling   atomic.Bool  // or being checked: there is no filler meanwhile
	checking  atomic.Bool
	sealed    chan struct{} // closed when the image is
	replaying atomic.Bool
	jobs      sync.WaitGroup  // and all else that begin counts
	ctx       context.Context // ended by end, with mu held
	cancel    context.CancelFunc

	mu      sync.Mutex              // guards what follows; never held over I/O
	repo    Blobs                   // nil until somebody names where to fetch from
	line    *line                   // in which it is fetched
	done    []bool                  // chunks written by this process
	parts   map[int64]map[int]int64 // blocks shared by chunks, by offset: bytes that each chunk wrote
	jobsOf  map[int]*job            // chunks being fetched
	walks   walks                   // of readers
	awaited map[int]*run            // of a replay, by chunk; nil: there is none
	early   *early                  // nil: nothing was fetched early
	err     error                   // why the filler gave up, for status
	users   int                     // that begin counts
}

type clone struct {
	from *store.Image
	off  int64
}

// log is for lines about the image.
func (im *Image) log() *slog.Logger {
	return im.c.log.With("image", im.file.Info.Key, "ref", im.file.Info.Ref)
}

// Info and counters for status.

func (im *Image) Info() store.Info { return im.file.Info }
func (im *Image) Filling() bool    { return im.filling.Load() }
func (im *Image) Dir() string      { return im.file.Dir() }
func (im *Image) File() string     { return im.file.File().Name() }
func (im *Image) Root() string     { return im.file.Root() }

// Fetched is how many compressed bytes were asked of the network since the image is in memory, and early for it.
func (im *Image) Fetched() int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	n := im.fetched.Load()
	if im.early != nil {
		n += im.early.size()
	}
	return n
}

// State is how far the image is; store.Lazy once it has been taken out of memory.
func (im *Image) State() store.State {
	s := store.Lazy
	im.look(func() { s = im.file.State() })
	return s
}

// Present is how many bytes are there; 0 once the image has been taken out of memory.
func (im *Image) Present() (n int64) {
	im.look(func() { n = im.file.Present() })
	return n
}

// Sealed is closed when the image is sealed, or was.
func (im *Image) Sealed() <-chan struct{} { return im.sealed }

// Err is why the filler stopped before the end, or nil.
func (im *Image) Err() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.err
}

// ResetErr forgets why the filler stopped, for one who starts another.
func (im *Image) ResetErr() { im.setErr(nil) }

func (im *Image) setErr(err error) {
	im.mu.Lock()
	im.err = err
	im.mu.Unlock()
}

// LayerProgress is how much of what the image shows of a layer is there, in bytes.
type LayerProgress struct{ Visible, Present int64 }

// Layers tells the progress of each layer, bottom first; nothing of an image that was sealed when it was opened.
func (im *Image) Layers() []LayerProgress {
	if im.plan == nil {
		return nil
	}
	all := make([]LayerProgress, len(im.file.Info.Layers))
	im.look(func() {
		for i := range im.plan.extents {
			e := im.plan.extent(i)
			l := &all[e.layer]
			l.Visible += e.size
			if im.file.Has(e.off, e.size) {
				l.Present += e.size
			}
		}
	})
	return all
}

// HasRepo tells whether the image knows where to fetch from.
func (im *Image) HasRepo() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.repo != nil
}

// SetRepo says where missing chunks are fetched from; the latest holds.
func (im *Image) SetRepo(r Blobs) { im.setRepo(r) }

func (im *Image) setRepo(r Blobs) {
	l := im.c.fetches.line(Origin(r))
	im.mu.Lock()
	im.repo, im.line = r, l
	im.mu.Unlock()
}

// fetchedIn is the line in which the image is fetched now.
func (im *Image) fetchedIn() *line {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.line
}

// findClones looks up missing contents in other images of the cache.
func (c *Cache) findClones(ctx context.Context, im *Image) error {
	want := make(map[layer.Key]bool)
	for i := range im.plan.extents {
		if e := im.plan.extent(i); !im.file.Has(e.off, e.size) {
			want[e.key] = true
		}
	}
	if len(want) == 0 {
		return nil
	}
	found := make(map[layer.Key]clone)
	var failed error
	err := c.holders(ctx, want, im.file.Info.Key, func(k layer.Key, from *store.Image, e extent) bool {
		found[k] = clone{from, e.off}
		if n := len(im.others); n == 0 || im.others[n-1] != from {
			im.others = append(im.others, from)
			failed = errors.Join(failed, from.Hold())
		}
		return true
	})
	err = errors.Join(err, failed)
	if err != nil {
		im.closeClones()
		return err
	}
	im.clones = make(map[int]clone, len(found))
	for i := range im.plan.extents {
		if e := im.plan.extent(i); want[e.key] {
			if cl, ok := found[e.key]; ok {
				im.clones[i] = cl
			}
		}
	}
	return nil
}

// letGo closes the images that contents were copied from, when nothing is missing: somebody may want to remove them. While one is
// still being copied they stay open for as long as the image is in memory.
func (im *Image) letGo() {
	im.mu.Lock()
	defer im.mu.Unlock()
	if len(im.jobsOf) == 0 {
		im.closeClones()
	}
}

func (im *Image) closeClones() {
	for _, o := range im.others {
		o.Close()
	}
	im.others = nil
}

// Need makes the n bytes from off on present, fetching what is missing before any filler's work. Its error tells why it
// can't: the network's, blob.ErrDigestMismatch, store.ErrUnwritable, ctx's, or ErrReopened.
func (im *Image) Need(ctx context.Context, off, n int64) error {
	size := im.file.Info.Size
	if off < 0 || n <= 0 || off > size-n {
		return fmt.Errorf("range %d+%d is outside image %s of %d bytes", off, n, im.file.Info.Key, size)
	}
	ctx, done, err := im.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if im.file.Has(off, n) {
		return nil
	}
	if im.plan == nil {
		return ErrReopened
	}
	ctx, cancel := im.c.patience(im.purpose(ctx, blob.ForReader))
	defer cancel()
	waiting := &im.fetchedIn().readers
	waiting.enter()
	defer waiting.leave()
	var chunks []int
	for i := im.plan.find(off / store.BlockSize * store.BlockSize); i < im.plan.extents; i++ {
		e := im.plan.extent(i)
		if e.off >= off+n {
			break
		}
		if im.file.Has(e.off, e.size) {
			continue
		}
		if _, ok := im.clones[i]; ok {
			if !im.mayWrite(ctx) {
				continue // it can be read there
			}
			if err := im.copyClone(ctx, i, e); err != nil && !errors.Is(err, store.ErrUnwritable) {
				return err
			} else if err != nil || im.file.Has(e.off, e.size) {
				continue
			}
		}
		// whole blocks count, so a chunk that ends in the first block wanted is wanted too
		from, to := max(off/store.BlockSize*store.BlockSize, e.off)-e.off, min((off+n+store.BlockSize-1)/store.BlockSize*store.BlockSize, e.off+e.size)-e.off
		for k := im.plan.chunkAt(e, from); k < int(e.first+e.chunks) && im.plan.chunk(k).Off < to; k++ {
			if !im.hasChunk(e, k) && !im.retry(e, k) {
				chunks = append(chunks, i, k)
			}
		}
	}
	if err := im.fetchAll(ctx, chunks); err != nil || im.file.Has(off, n) {
		return err
	}
	if err := im.c.troubled(); err != nil {
		return err
	}
	return fmt.Errorf("reading image %s: %w", im.file.Info.Key, store.ErrUnwritable) // it has just become writable again
}

// patience bounds how long a reader waits for the network, if he hasn't said it.
func (c *Cache) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, c.opts.ReadTimeout, fmt.Errorf("no data for %v", c.opts.ReadTimeout))
}

// hasChunk tells whether a chunk was written, by this process or an earlier one, and not lost since.
func (im *Image) hasChunk(e extent, k int) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.hasChunkLocked(e, k)
}

func (im *Image) hasChunkLocked(e extent, k int) bool {
	ch := im.plan.chunk(k)
	off, end := e.off+ch.Off, e.off+ch.Off+ch.Size
	if im.file.Has(off, ch.Size) {
		return true
	}
	if !im.done[k] {
		return false
	}
	// blocks that it shares with its neighbours may wait for these; a failing disk may have lost others
	for _, at := range [...]int64{off / store.BlockSize * store.BlockSize, (end - 1) / store.BlockSize * store.BlockSize} {
		if _, waits := im.parts[at][k]; !waits && !im.file.Has(at, 1) {
			return false
		}
	}
	first, last := blocksEnd(0, off), end/store.BlockSize*store.BlockSize
	return first >= last || im.file.Has(first, last-first)
}

// copyClone takes a content from another image, unless it is damaged there: then the content is still missing.
func (im *Image) copyClone(ctx context.Context, i int, e extent) error {
	return im.obtain(ctx, []int{-1 - i}, nil, false, func(int) bool { return im.file.Has(e.off, e.size) }, func(ctx context.Context, j *job) error {
		cl := im.clones[i]
		if !cl.from.Intact(ctx, cl.off, e.size) {
			return ctx.Err()
		}
		release, err := im.reserve(ctx, blocksEnd(0, e.size))
		if err == nil {
			defer release()
			err = im.file.Clone(e.off, cl.from.File(), cl.off, e.size, cl.from.Leaves(cl.off, e.size))
		}
		if errors.Is(err, store.ErrUnwritable) {
			im.c.met(err, e.size)
		}
		return err
	})
}

// Content is the place of the content that has a byte of the image, in bytes; without one, or of an image that was sealed when it was
// opened, it is the byte's block.
func (im *Image) Content(off int64) (start, size int64) {
	if im.plan != nil {
		if i := im.plan.find(off / store.BlockSize * store.BlockSize); i < im.plan.extents {
			if e := im.plan.extent(i); e.off <= off {
				return e.off, e.size
			}
		}
	}
	return off / store.BlockSize * store.BlockSize, store.BlockSize
}
