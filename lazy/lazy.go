// Package lazy opens container images so that they can be read before they are downloaded.
//
// An image is opened in steps: its layers' entries are got (a table of contents where the manifest vouches for one, else
// the whole layer, streamed), merged to one tree, and laid out as an EROFS image in the cache, metadata complete and
// contents missing. From then on a read asks for the blocks it needs (Image.Need), a filler fetches the rest behind
// the readers (Image.Fill), and when nothing is missing the file is sealed. What a byte of content is, the manifest's
// digest decides: manifest, then TOC, then chunk; or manifest, then layer and diffID. Nothing unverified is written.
//
// One Cache works on a cache folder at a time (store.Store.Lock). Its methods and an Image's may be called concurrently.
// No lock is held over I/O.
package lazy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// Blobs gives blobs by their descriptors. It may have a method Origin() string that names the place they come from, such as a registry: what
// is fetched from one place doesn't wait for another.
type Blobs interface {
	// Blob gives ranges of a blob. It does no I/O itself.
	Blob(d v1.Descriptor) blob.Source
}

// Origin is the place where blobs come from, or empty.
func Origin(b Blobs) string {
	if o, ok := b.(interface{ Origin() string }); ok {
		return o.Origin()
	}
	return ""
}

// How much is fetched at once: from one place, in all, and of what nobody waits for from one place. A fetch of chunks takes up to half a
// megabyte of memory, a table of contents what it has unpacked, a layer that is read whole some 10 MB.
const (
	fetchesEach, fetchesAll, fetchesBehind = 32, 128, 16
	streamsEach, streamsAll                = 6, 16
	tablesEach, tablesAll                  = 16, 64
)

// Repo is where an image's manifest and blobs come from.
type Repo interface {
	Blobs
	// Resolve gives the descriptor of what the reference names: a manifest or an index.
	Resolve(ctx context.Context) (v1.Descriptor, error)
	// Probe gives the digest of what the reference names, for less than Resolve takes and without going on for long where nothing
	// answers. It is zero where that isn't to be had.
	Probe(ctx context.Context) (v1.Hash, error)
	// Manifest reads a manifest, an index or a config whole and verifies it against its descriptor.
	Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
}

// Event tells a watcher how far an opening is.
type Event struct {
	Stage string `json:"stage"`           // "resolving", "reading layers", "verifying", "laying out", "copying", "checking", "warning"
	Bytes int64  `json:"bytes,omitempty"` // so far, of all layers in this stage
	Total int64  `json:"total,omitempty"` // 0 where it isn't known
	Text  string `json:"text,omitempty"`  // of a warning; what is awaited
}

// Options of a Cache.
type Options struct {
	Limits layer.Limits // of layers that are streamed
	Log    *slog.Logger // nil: none
	// ReadTimeout bounds the time that a Need whose context has no deadline waits for the network; 0 is 60 s.
	ReadTimeout time.Duration
	// Size bounds what the folder takes on disk, in bytes (store.Budget); negative: nothing does.
	Size int64
	// Claim, which may be nil, says that nobody needs an image, and keeps it so until done is called; ok is false if somebody does.
	Claim func(k store.Key) (done func(), ok bool)
	// Once keeps nothing for other images on the same layers: the folder is for one image.
	Once bool
}

// Cache opens images into one cache folder.
type Cache struct {
	st   *store.Store
	opts Options
	log  *slog.Logger

	opening flights[string, *Image]        // by manifest digest and options
	scans   flights[string, *layer.Packed] // by layer digest and kind
	fetches queue                          // of images' chunks, each for its image
	streams queue                          // of layers that are read whole, each for its opening
	tables  queue                          // of tables of contents, each for its opening
	reading chan struct{}                  // has an entry for each Read under way that fetches or holds chunks

	evicting chan struct{} // has an entry while images are evicted
	evicted  atomic.Int64

	unwritten unwritten
	trouble   trouble
	// decoders are *layer.ChunkReaders at rest: each has some hundred KiB of tables and windows.
	decoders sync.Pool
	keys     store.Locks[store.Key] // of images that are loaded or changed
	spools   store.Locks[string]    // of layers, by digest in hex, of which is removed what nobody uses
	trims    sync.WaitGroup
	wholes   wholes
	mu       sync.Mutex           // guards what follows
	images   map[store.Key]*Image // open for filling
	using    map[string]int       // layers that openings use, by digest in hex
	coming   map[store.Key]int    // images that openings make
}

// NewCache works on st, whose lock the caller holds.
func NewCache(st *store.Store, o Options) *Cache {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ReadTimeout == 0 {
		o.ReadTimeout = time.Minute
	}
	c := &Cache{st: st, opts: o, log: o.Log, reading: make(chan struct{}, pieceNow), evicting: make(chan struct{}, 1), images: make(map[store.Key]*Image), using: make(map[string]int), coming: make(map[store.Key]int)}
	c.wholes.scratch, c.wholes.idle = func() (scratch, error) { return st.Scratch() }, wholeIdle
	c.fetches = queue{each: fetchesEach, behind: fetchesBehind, free: fetchesAll}
	c.streams = queue{each: streamsEach, free: streamsAll}
	c.tables = queue{each: tablesEach, free: tablesAll}
	c.trouble.every = roomLook
	if !o.Once && o.Size >= 0 {
		st.SetBudget(store.Budget{Size: o.Size, MakeRoom: c.makeRoom})
	}
	c.decoders.New = func() any { return new(layer.ChunkReader) }
	return c
}

// Close waits for openings that the caller has ended, ends all other work on images and closes their files. No other method may be called
// afterwards; those of an image may, and fail.
func (c *Cache) Close() error {
	c.opening.wait()
	c.scans.wait()
	c.trims.Wait()
	c.wholes.close()
	errs := []error{c.st.Sync()}
	c.mu.Lock()
	keys := slices.Collect(maps.Keys(c.images))
	c.mu.Unlock()
	for _, k := range keys {
		errs = append(errs, c.change(context.Background(), k, func(*Image) error { return nil }))
	}
	return errors.Join(errs...)
}

// Image gives an image of the cache, to be filled from where SetRepo says. The error wraps store.ErrNotCached where there is none.
func (c *Cache) Image(ctx context.Context, k store.Key) (*Image, error) { return c.load(ctx, k, false) }

func (c *Cache) newImage(ctx context.Context, f *store.Image) (*Image, error) {
	im := &Image{c: c, file: f, line: c.fetches.line(""), jobsOf: make(map[int]*job), sealed: make(chan struct{})}
	im.ctx, im.cancel = context.WithCancel(context.Background())
	if f.State() == store.Sealed {
		close(im.sealed)
		return im, nil
	}
	var err error
	if im.plan, err = im.readPlan(); err != nil {
		return nil, fmt.Errorf("opening image %s: %w", f.Info.Key, err)
	}
	// what came with a streamed layer can't be fetched by itself, nor can metadata
	at := int64(0)
	for i := range im.plan.extents {
		e := im.plan.extent(i)
		if e.chunks == 0 && !f.Has(e.off, e.size) {
			return nil, fmt.Errorf("%w: contents of streamed layers are missing in image %s", errPlan, f.Info.Key)
		}
		if e.off > at && !f.Has(at, e.off-at) {
			return nil, fmt.Errorf("%w: what lies between contents is missing in image %s", errPlan, f.Info.Key)
		}
		at = (e.off + e.size + store.BlockSize - 1) / store.BlockSize * store.BlockSize
	}
	if !f.Has(at, f.Info.Size-at) {
		return nil, fmt.Errorf("%w: metadata is missing in image %s", errPlan, f.Info.Key)
	}
	im.parts = make(map[int64]map[int]int64)
	im.done = make([]bool, im.plan.chunks)
	return im, c.findClones(ctx, im)
}

func (im *Image) readPlan() (*plan, error) {
	b, err := im.file.Plan()
	if err != nil {
		return nil, err
	}
	return readPlan(b, im.file.Info.Size, len(im.file.Info.Layers))
}

// Remove takes an image out of the cache. Whoever fills it or reads it through the cache is told ErrReopened; that nobody does is for the
// caller to know. The error wraps store.ErrNotCached where there is none.
func (c *Cache) Remove(ctx context.Context, k store.Key) error {
	return c.change(ctx, k, func(*Image) error { return c.st.RemoveImage(k) })
}

// Store is the cache folder.
func (c *Cache) Store() *store.Store { return c.st }

// Loaded is an image that is in memory, or nil.
func (c *Cache) Loaded(k store.Key) *Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.images[k]
}
