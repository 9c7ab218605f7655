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
	diffID v1.Hash // none until the config was read
	repo   Blobs
}

// tocName names the index that is made of the table of contents that the manifest vouches for, or is empty.
func tocName(d v1.Descriptor) string {
	if toc := vouched(d); toc != "" {
		return "toc-" + toc
	}
	return ""
}

// tarName names the index of the layer read whole. The diffID is part of what was verified.
func (s source) tarName() string { return "tar-" + s.diffID.Hex }

// scan is one reading of the layers of a recipe.
type scan struct {
	c       *Cache
	lim     layer.Limits
	stream  bool            // use no table of contents
	again   map[string]bool // layers, by digest in hex, that are streamed even where an index is cached
	streams turns
	p       progress
}

func (c *Cache) newScan(lim layer.Limits, stream bool, tell func(Event)) *scan {
	const why = "layers whose table of contents nothing vouches for are read whole and verified"
	return &scan{
		c: c, lim: lim, stream: stream, again: make(map[string]bool), streams: turns{free: scanStreams},
		p: progress{tell: tell, stage: "reading layers", text: why},
	}
}

// layers gets the index of every layer, bottom first, and the configs meanwhile: sources have their diffIDs then.
func (s *scan) layers(ctx context.Context, r *recipe, sources []source) ([]*layer.Packed, error) {
	all := make([]*layer.Packed, len(sources))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scanTOCs)
	n := 0
	for _, p := range r.parts {
		known := make(chan struct{})
		first := n
		g.Go(func() error { // before the layers that wait for it
			diffIDs, err := s.c.diffIDs(ctx, p)
			if err != nil {
				return err
			}
			for i, id := range diffIDs {
				sources[first+i].diffID = id
			}
			close(known)
			return nil
		})
		for range p.m.Layers {
			i := n
			n++
			g.Go(func() (err error) {
				if all[i], err = s.layer(ctx, &sources[i], known); err != nil {
					return fmt.Errorf("reading layer %s: %w", sources[i].d.Digest, err)
				}
				return nil
			})
		}
	}
	return all, g.Wait()
}

// layer gets the index of a layer, whose diffID can be read once known is closed: a table of contents can be read before.
func (s *scan) layer(ctx context.Context, src *source, known <-chan struct{}) (*layer.Packed, error) {
	c, hexDigest := s.c, src.d.Digest.Hex
	flight := func(name string) string {
		return fmt.Sprint(hexDigest, " ", name, " ", s.lim.MaxSize, " ", s.lim.MaxEntries)
	}
	var ix *layer.Packed
	noTOC := errors.New("none is used")
	toc := tocName(src.d)
	if toc != "" && !s.stream {
		ix, noTOC = c.scans.do(ctx, flight(toc), func(ctx context.Context) (*layer.Packed, error) {
			return c.indexed(ctx, hexDigest, toc, func() (*layer.Index, error) {
				l, t := c.tables.line(Origin(src.repo)), newAsk(s, false)
				if err := c.tables.take(ctx, l, t); err != nil {
					return nil, err
				}
				defer c.tables.give(l, t)
				return layer.ReadTOC(ctx, c.wholes.parts(src.repo.Blob(src.d), src.d.Digest.String()), src.d, s.lim)
			})
		})
		if noTOC != nil && !errors.Is(noTOC, layer.ErrNoTOC) {
			return nil, noTOC
		}
	}
	select {
	case <-known:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if toc != "" && !s.stream {
		if err := c.verdict(hexDigest, verdictName(toc, src.diffID.Hex)); err != nil {
			return nil, err
		}
		if noTOC == nil {
			return ix, nil
		}
		c.log.Info("layer is streamed", "layer", src.d.Digest, "reason", noTOC)
	}
	name := src.tarName()
	if !s.again[hexDigest] {
		if ix, err := c.cachedIndex(hexDigest, name); err == nil {
			return ix, nil
		}
	}
	if err := s.streams.take(ctx, src.d.Size); err != nil {
		return nil, err
	}
	defer s.streams.give()
	return c.scans.do(ctx, flight(name), func(ctx context.Context) (*layer.Packed, error) {
		done, err := c.use(ctx, []source{*src}) // it may end after an opening that gives up
		if err != nil {
			return nil, err
		}
		defer done(nil)
		l, t := c.streams.line(Origin(src.repo)), newAsk(s, false)
		if err := c.streams.take(ctx, l, t); err != nil {
			return nil, err
		}
		defer c.streams.give(l, t)
		s.p.total.Add(src.d.Size)
		return c.stream(ctx, src.repo.Blob(src.d), src.d, src.diffID, name, s.lim, &s.p)
	})
}

func (c *Cache) cachedIndex(hexDigest, name string) (*layer.Packed, error) {
	b, err := c.st.LayerIndex(hexDigest, name)
	if err != nil {
		return nil, err
	}
	ix := new(layer.Packed)
	return ix, ix.UnmarshalBinary(b)
}

// indexed gives the cached index of a layer or makes and keeps it.
func (c *Cache) indexed(ctx context.Context, hexDigest, name string, make func() (*layer.Index, error)) (*layer.Packed, error) {
	if ix, err := c.cachedIndex(hexDigest, name); err == nil {
		return ix, nil
	}
	ix, err := make()
	if err != nil {
		return nil, err
	}
	return c.keepIndex(ctx, hexDigest, name, ix)
}

// keepIndex packs an index and keeps it in the cache.
func (c *Cache) keepIndex(ctx context.Context, hexDigest, name string, ix *layer.Index) (*layer.Packed, error) {
	packed := ix.Pack()
	b, err := packed.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return packed, c.st.PutLayerIndex(ctx, hexDigest, name, b)
}

// stream reads a layer whole into a spool, which becomes the layer's once its digests hold.
func (c *Cache) stream(ctx context.Context, src blob.Source, d v1.Descriptor, diffID v1.Hash, name string, lim layer.Limits, p *progress) (_ *layer.Packed, err error) {
	sp, err := c.st.NewSpool()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			sp.Discard()
		}
	}()
	r, err := blob.Parallel(src).Fetch(ctx, 0, d.Size)
	if err != nil {
		return nil, err
	}
	last := int64(0)
	lim.Progress = func(n int64) { p.add(n - last); last = n }
	data, leaves := sp.Writers(ctx)
	ix, err := layer.Stream(ctx, r, d, diffID, data, leaves, lim)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if err := c.st.KeepSpool(sp, d.Digest.Hex); err != nil {
		return nil, err
	}
	if err := sp.Close(); err != nil {
		return nil, err
	}
	return c.keepIndex(ctx, d.Digest.Hex, name, ix)
}

// holders calls f for every wanted content that an image of the cache other than not holds whole, the newest image first,
// each content once. f says whether it keeps the image open; it then owns a reference and calls Close.
func (c *Cache) holders(ctx context.Context, want map[layer.Key]bool, not store.Key, f func(layer.Key, *store.Image, extent) (keep bool)) error {
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
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if info.Key == not {
			continue
		}
		im, err := c.st.Image(ctx, info.Key)
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
