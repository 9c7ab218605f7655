package lazy

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// A table of contents that verifies by its digest may still say other things than the layer it belongs to. Whether it does is found
// by reading the layer whole, once; the verdict is kept with the layer. An image with a layer that was found to lie is not opened
// and not sealed any more, whoever asks for it, with or without Verify.

// verdictName names the verdict on a table of contents, by its index, and a diffID: all that was compared.
func verdictName(index, diffID string) string { return index + "-" + diffID }

// verdict is an error that wraps ErrRefused where a layer was found to lie.
func (c *Cache) verdict(hexDigest, name string) error {
	if refusal, known := c.st.Verdict(hexDigest, name); known && refusal != "" {
		return fmt.Errorf("%w: %s", ErrRefused, refusal)
	}
	return nil
}

// refused looks for verdicts on the layers of an image.
func (c *Cache) refused(info store.Info) error {
	for _, l := range info.Layers {
		d, err := v1.NewHash(l.Digest)
		if err != nil || !l.TOC {
			continue
		}
		if err := c.verdict(d.Hex, verdictName(l.Index, l.DiffID)); err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	return nil
}

// claim is a table of contents to be compared with its layer.
type claim struct {
	source
	index string // the name of what was made of it, in the cache
}

// verifyCached verifies the layers of an image of the cache.
func (c *Cache) verifyCached(ctx context.Context, info store.Info, repo Blobs, lim layer.Limits, tell func(Event)) error {
	var claims []claim
	for _, l := range info.Layers {
		if !l.TOC {
			continue // it was read whole
		}
		d, err := v1.NewHash(l.Digest)
		if err != nil {
			return fmt.Errorf("verifying image %s: %w", info.Key, err)
		}
		if _, known := c.st.Verdict(d.Hex, verdictName(l.Index, l.DiffID)); known {
			continue
		}
		s := source{v1.Descriptor{Digest: d, Size: l.Size, MediaType: types.MediaType(l.MediaType)}, v1.Hash{Algorithm: "sha256", Hex: l.DiffID}, repo}
		claims = append(claims, claim{s, l.Index})
	}
	return c.verify(ctx, claims, lim, tell)
}

// verifyNew verifies the layers of an image that is being made.
func (c *Cache) verifyNew(ctx context.Context, sources []source, layers []*layer.Packed, lim layer.Limits, tell func(Event)) error {
	var claims []claim
	for i, s := range sources {
		if layers[i].Source == layer.FromTOC {
			claims = append(claims, claim{s, tocName(s.d)})
		}
	}
	return c.verify(ctx, claims, lim, tell)
}

// verify compares and keeps the verdicts.
func (c *Cache) verify(ctx context.Context, claims []claim, lim layer.Limits, tell func(Event)) error {
	p := &progress{tell: tell, stage: "verifying"}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scanStreams)
	for _, cl := range claims {
		name := verdictName(cl.index, cl.diffID.Hex)
		if _, known := c.st.Verdict(cl.d.Digest.Hex, name); known {
			continue // a refusal was met before
		}
		p.total.Add(cl.d.Size)
		g.Go(func() error {
			if err := c.verifyLayer(ctx, cl, name, lim, p); err != nil {
				return fmt.Errorf("verifying layer %s: %w", cl.d.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// verifyLayer compares, and keeps the verdict by name.
func (c *Cache) verifyLayer(ctx context.Context, s claim, name string, lim layer.Limits, p *progress) error {
	b, err := c.st.LayerIndex(s.d.Digest.Hex, s.index)
	if err != nil {
		return err
	}
	ix := new(layer.Index)
	if err := ix.UnmarshalBinary(b); err != nil {
		return err
	}
	b = nil
	r, err := blob.Parallel(s.repo.Blob(s.d)).Fetch(ctx, 0, s.d.Size)
	if err != nil {
		return err
	}
	last := int64(0)
	lim.Progress = func(n int64) { p.add(n - last); last = n }
	err = layer.Verify(r, s.d, s.diffID, ix, lim)
	cerr := r.Close()
	switch {
	case errors.Is(err, layer.ErrTOCDiffers):
		return errors.Join(fmt.Errorf("%w: %w", ErrRefused, err), c.st.PutVerdict(s.d.Digest.Hex, name, err.Error()))
	case err != nil || cerr != nil:
		return errors.Join(err, cerr)
	}
	return c.st.PutVerdict(s.d.Digest.Hex, name, "")
}
