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
	bytes, total atomic.Int64
}

func (p *progress) add(n int64) {
	b := p.bytes.Add(n)
	if p.mu.TryLock() { // a slow watcher misses steps rather than delay the work
		p.tell(Event{Stage: "reading layers", Bytes: b, Total: p.total.Load(), Text: "layers whose table of contents nothing vouches for are read whole and verified"})
		p.mu.Unlock()
	}
}

// scan gets the index of every layer, bottom first. Layers named in again are streamed even where an index is cached.
func (c *Cache) scan(ctx context.Context, repo Repo, m v1.Manifest, cfg *v1.ConfigFile, again map[string]bool, tell func(Event)) ([]*layer.Index, error) {
	all := make([]*layer.Index, len(m.Layers))
	p := &progress{tell: tell}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scanTOCs)
	streams := make(chan struct{}, scanStreams)
	for i, d := range m.Layers {
		g.Go(func() error {
			ix, err := c.scanLayer(ctx, repo, d, cfg.RootFS.DiffIDs[i], again[d.Digest.Hex], streams, p)
			if err != nil {
				return fmt.Errorf("reading layer %s: %w", d.Digest, err)
			}
			all[i] = ix
			return nil
		})
	}
	return all, g.Wait()
}

func (c *Cache) scanLayer(ctx context.Context, repo Repo, d v1.Descriptor, diffID v1.Hash, again bool, streams chan struct{}, p *progress) (*layer.Index, error) {
	if toc := vouched(d); toc != "" {
		s, err := c.scans.do(ctx, d.Digest.Hex+" toc "+toc, func(ctx context.Context) (*scanned, error) {
			return c.indexed(d.Digest.Hex, "toc-"+toc, func() (*layer.Index, error) { return layer.ReadTOC(ctx, repo.Blob(d), d) })
		})
		if err == nil {
			return s.ix, nil
		}
		if !errors.Is(err, layer.ErrNoTOC) {
			return nil, err
		}
		c.log.Info("layer is streamed", "layer", d.Digest, "reason", err)
	}
	// the diffID is part of what was verified
	name := "tar-" + diffID.Hex
	if len(diffID.Hex) != 64 {
		return nil, fmt.Errorf("diffID %.80q is not a SHA-256", diffID)
	}
	if !again {
		if ix, err := c.cachedIndex(d.Digest.Hex, name); err == nil {
			return ix, nil
		}
	}
	select {
	case streams <- struct{}{}:
		defer func() { <-streams }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s, err := c.scans.do(ctx, d.Digest.Hex+" "+name, func(ctx context.Context) (*scanned, error) {
		p.total.Add(d.Size)
		ix, err := c.stream(ctx, repo.Blob(d), d, diffID, name, p)
		return &scanned{ix}, err
	})
	if err != nil {
		return nil, err
	}
	return s.ix, nil
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
func (c *Cache) stream(ctx context.Context, src blob.Source, d v1.Descriptor, diffID v1.Hash, name string, p *progress) (_ *layer.Index, err error) {
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
	lim := c.opts.Limits
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
func (c *Cache) use(m v1.Manifest, cfg *v1.ConfigFile) (done func()) {
	c.mu.Lock()
	for _, d := range m.Layers {
		c.using[d.Digest.Hex]++
	}
	c.mu.Unlock()
	return func() {
		for i, d := range m.Layers {
			c.mu.Lock()
			c.using[d.Digest.Hex]--
			last := c.using[d.Digest.Hex] == 0
			if last {
				delete(c.using, d.Digest.Hex)
			}
			c.mu.Unlock()
			if last {
				if err := c.trim(d.Digest.Hex, "tar-"+cfg.RootFS.DiffIDs[i].Hex); err != nil {
					c.log.Warn("trimming layer", "layer", d.Digest, "err", err)
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
