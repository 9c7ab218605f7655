package lazy

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/store"
)

// ErrUnreachable says that nothing answered where the image should come from.
var ErrUnreachable = registry.ErrUnreachable

const (
	scanTOCs    = 16 // tables of contents fetched at once
	scanStreams = 3  // layers streamed at once
)

// scanned is a layer's index, kept in memory while an image is being opened.
type scanned struct {
	ix *layer.Index
}

// progress adds up what all layers of one opening have read.
type progress struct {
	mu           sync.Mutex
	tell         func(Event)
	stage, text  string
	bytes, total atomic.Int64
}

func (p *progress) add(n int64) {
	b := p.bytes.Add(n)
	if p.mu.TryLock() { // a slow watcher misses steps rather than delay the work
		p.tell(Event{Stage: p.stage, Bytes: b, Total: p.total.Load(), Text: p.text})
		p.mu.Unlock()
	}
}

// source is a layer of a recipe: what names it, and where it is.
type source struct {
	d      v1.Descriptor
	diffID v1.Hash
	repo   Blobs
}

// tocName names the index that is made of the table of contents that the manifest vouches for, or is empty.
func (s source) tocName() string {
	if toc := vouched(s.d); toc != "" {
		return "toc-" + toc
	}
	return ""
}

// tarName names the index of the layer read whole. The diffID is part of what was verified.
func (s source) tarName() string { return "tar-" + s.diffID.Hex }

// scan is one reading of layers.
type scan struct {
	c       *Cache
	lim     layer.Limits
	stream  bool            // use no table of contents
	again   map[string]bool // layers, by digest in hex, that are streamed even where an index is cached
	streams chan struct{}
	p       progress
}

func (c *Cache) newScan(lim layer.Limits, stream bool, tell func(Event)) *scan {
	const why = "layers whose table of contents nothing vouches for are read whole and verified"
	return &scan{
		c: c, lim: lim, stream: stream, again: make(map[string]bool), streams: make(chan struct{}, scanStreams),
		p: progress{tell: tell, stage: "reading layers", text: why},
	}
}

// layers gets the index of every layer, bottom first.
func (s *scan) layers(ctx context.Context, sources []source) ([]*layer.Index, error) {
	all := make([]*layer.Index, len(sources))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scanTOCs)
	for i, src := range sources {
		g.Go(func() error {
			ix, err := s.layer(ctx, src)
			if err != nil {
				return fmt.Errorf("reading layer %s: %w", src.d.Digest, err)
			}
			all[i] = ix
			return nil
		})
	}
	return all, g.Wait()
}

func (s *scan) layer(ctx context.Context, src source) (*layer.Index, error) {
	c, hexDigest := s.c, src.d.Digest.Hex
	flight := func(name string) string {
		return fmt.Sprint(hexDigest, " ", name, " ", s.lim.MaxSize, " ", s.lim.MaxEntries)
	}
	if name := src.tocName(); name != "" && !s.stream {
		if err := c.verdict(hexDigest, verdictName(name, src.diffID.Hex)); err != nil {
			return nil, err
		}
		sc, err := c.scans.do(ctx, flight(name), func(ctx context.Context) (*scanned, error) {
			return c.indexed(hexDigest, name, func() (*layer.Index, error) { return layer.ReadTOC(ctx, src.repo.Blob(src.d), src.d, s.lim) })
		})
		if err == nil {
			return sc.ix, nil
		}
		if !errors.Is(err, layer.ErrNoTOC) {
			return nil, err
		}
		c.log.Info("layer is streamed", "layer", src.d.Digest, "reason", err)
	}
	name := src.tarName()
	if !s.again[hexDigest] {
		if ix, err := c.cachedIndex(hexDigest, name); err == nil {
			return ix, nil
		}
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sc, err := c.scans.do(ctx, flight(name), func(ctx context.Context) (*scanned, error) {
		s.p.total.Add(src.d.Size)
		ix, err := c.stream(ctx, src.repo.Blob(src.d), src.d, src.diffID, name, s.lim, &s.p)
		return &scanned{ix}, err
	})
	if err != nil {
		return nil, err
	}
	return sc.ix, nil
}

func (c *Cache) cachedIndex(hexDigest, name string) (*layer.Index, error) {
	b, err := c.st.LayerIndex(hexDigest, name)
	if err != nil {
		return nil, err
	}
	ix := new(layer.Index)
	return ix, ix.UnmarshalBinary(b)
}

// indexed gives the cached index of a layer or makes and keeps it.
func (c *Cache) indexed(hexDigest, name string, make func() (*layer.Index, error)) (*scanned, error) {
	if ix, err := c.cachedIndex(hexDigest, name); err == nil {
		return &scanned{ix}, nil
	}
	ix, err := make()
	if err != nil {
		return nil, err
	}
	return &scanned{ix}, c.keepIndex(hexDigest, name, ix)
}

func (c *Cache) keepIndex(hexDigest, name string, ix *layer.Index) error {
	b, err := ix.MarshalBinary()
	if err != nil {
		return err
	}
	return c.st.PutLayerIndex(hexDigest, name, b)
}

// stream reads a layer whole into a spool, which becomes the layer's once its digests hold.
func (c *Cache) stream(ctx context.Context, src blob.Source, d v1.Descriptor, diffID v1.Hash, name string, lim layer.Limits, p *progress) (_ *layer.Index, err error) {
	sp, err := c.st.NewSpool()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			sp.Discard()
		}
	}()
	r, err := src.Fetch(ctx, 0, d.Size)
	if err != nil {
		return nil, err
	}
	last := int64(0)
	lim.Progress = func(n int64) { p.add(n - last); last = n }
	ix, err := layer.Stream(ctx, r, d, diffID, sp.Data, sp.Leaves, lim)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if err := c.st.KeepSpool(sp, d.Digest.Hex); err != nil {
		return nil, err
	}
	if err := sp.Close(); err != nil {
		return nil, err
	}
	return ix, c.keepIndex(d.Digest.Hex, name, ix)
}

// use keeps the spools of these layers while an opening may copy from them; the function it returns ends that and trims
// those that no other opening uses.
func (c *Cache) use(sources []source) (done func()) {
	c.mu.Lock()
	for _, s := range sources {
		c.using[s.d.Digest.Hex]++
	}
	c.mu.Unlock()
	return func() {
		for _, s := range sources {
			hexDigest := s.d.Digest.Hex
			c.mu.Lock()
			c.using[hexDigest]--
			last := c.using[hexDigest] == 0
			if last {
				delete(c.using, hexDigest)
			}
			c.mu.Unlock()
			if last {
				if err := c.trim(hexDigest, s.tarName()); err != nil {
					c.log.Warn("trimming layer", "layer", s.d.Digest, "err", err)
				}
			}
		}
	}
}

// keepHidden bounds what is kept of a streamed layer for the next image on the same base although no image shows it: up to
// 1/keepHidden of the layer's contents. Where more is hidden, the layer would be streamed again.
const keepHidden = 2

// trim gives up what images hold of a layer's spool, and the rest too if that is much. It depends on nothing but the
// cache folder, so that it can run again after a crash.
func (c *Cache) trim(hexDigest, name string) error {
	sp, err := c.st.LayerSpool(hexDigest)
	if errors.Is(err, store.ErrNotCached) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sp.Close()
	ix, err := c.cachedIndex(hexDigest, name)
	if err != nil {
		return errors.Join(err, c.st.DropSpool(hexDigest))
	}
	want := make(map[layer.Key]bool, len(ix.Contents))
	var total, hidden int64
	for _, ct := range ix.Contents {
		want[ct.Key] = true
		total += ct.Size
	}
	held := make(map[layer.Key]bool)
	err = c.holders(want, "", func(k layer.Key, im *store.Image, e extent) bool { held[k] = true; return false })
	if err != nil {
		return err
	}
	for _, ct := range ix.Contents {
		if !held[ct.Key] {
			hidden += ct.Size
		}
	}
	if hidden == 0 || hidden > total/keepHidden {
		return c.st.DropSpool(hexDigest)
	}
	for _, ct := range ix.Contents {
		if held[ct.Key] {
			if err := sp.Punch(ct.SpoolOff, ct.Size); err != nil {
				return err
			}
		}
	}
	return nil
}

// holders calls f for every wanted content that an image of the cache other than not holds whole, the newest image first,
// each content once. f says whether it keeps the image open; it then owns a reference and calls Close.
func (c *Cache) holders(want map[layer.Key]bool, not store.Key, f func(layer.Key, *store.Image, extent) (keep bool)) error {
	infos, err := c.st.Images()
	if err != nil {
		return err
	}
	left := len(want)
	seen := make(map[layer.Key]bool)
	for _, info := range infos {
		if left == 0 {
			break
		}
		if info.Key == not {
			continue
		}
		im, err := c.st.Image(context.Background(), info.Key)
		if err != nil {
			continue // a damaged neighbour is no reason to fail
		}
		keep := false
		if b, err := im.Plan(); err == nil {
			if p, err := readPlan(b, info.Size, len(info.Layers)); err == nil {
				for i := range p.extents {
					e := p.extent(i)
					if want[e.key] && !seen[e.key] && im.Has(e.off, e.size) {
						seen[e.key] = true
						left--
						keep = f(e.key, im, e) || keep
					}
				}
			}
		}
		if !keep {
			im.Close()
		}
	}
	return nil
}

func hashOf(hexDigest string) [32]byte {
	var h [32]byte
	hex.Decode(h[:], []byte(hexDigest))
	return h
}
