// Package convert makes images lazy: it copies an image, or all images of an index, to another place with every layer
// rewritten as eStargz, so that a table of contents stands at its end and each file can be fetched alone. Nothing else of
// the image changes, but that docker's media types become OCI's.
//
// A layer that has a table of contents vouched for by its descriptor is copied as it is. So is one whose tar can't be
// rewritten without changing what it means, which Result tells. Whatever passes is verified: layers against their digest and
// diffID, manifests and configurations against their digests.
package convert

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layout"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
)

// Options say how to convert. The zero value converts all images of an index with eStargz's own chunk size.
type Options struct {
	// Platform picks one image of an index, which then takes the index's place; nil: all.
	Platform *ref.Platform
	// ChunkSize is the largest piece of a file that is fetched as one, in bytes; 0: 4 MiB.
	ChunkSize int
	// MinChunkSize joins pieces of files until there are so many bytes, for better compression; 0: never.
	MinChunkSize int
	// Level is gzip's compression level, 1 to 9; 0: 6.
	Level int
	// Source and Target say how to speak with the registries.
	Source, Target registry.Options
	// TempDir is for uncompressed layers; empty: os.TempDir. Two layers, and about as much again in os.TempDir, are on
	// disk at a time.
	TempDir string
	// Progress, if not nil, is called with what is being done, by one goroutine at a time.
	Progress func(Event)
}

// Event is a step in the conversion of one layer.
type Event struct {
	Layer       v1.Hash // as the source has it
	Step        Step
	Done, Total int64 // bytes of the step, for Fetching; else 0
}

// Step is what is being done to a layer.
type Step string

// The steps of a layer, in their order. A layer that is copied as it is has no Building.
const (
	Fetching Step = "fetching"
	Building Step = "building"
	Sending  Step = "sending"
	Finished Step = "finished"
)

// Result is what became of an image.
type Result struct {
	Digest    v1.Hash // of the new manifest or index
	MediaType types.MediaType
	Layers    []Layer // each distinct layer once, in order of appearance
	// SourceSize and TargetSize are the sizes of these layers, SentSize what of them the target didn't have, in bytes.
	SourceSize, TargetSize, SentSize int64
	// Dropped is the number of entries of indexes that weren't taken along, not being images: attestations speak of
	// the digests of the images they came with.
	Dropped int
}

// Layer is a layer before and after.
type Layer struct {
	From, To v1.Descriptor
	Kept     string // why it was copied as it is; empty if it was rewritten
	Sent     bool   // the target didn't have it
}

// The bounds of an image: of indexes within indexes, of images, and of the layers of one.
const (
	maxDepth  = 4
	maxImages = 256
	maxLayers = 1024
)

// workers is how many layers are converted at a time.
const workers = 2

// Convert converts what src names and puts it at dst; both are references as ref.Parse reads them, dst not by digest.
// The name at dst changes last, when all else is there.
func Convert(ctx context.Context, src, dst string, o Options) (Result, error) {
	from, err := ref.Parse(src)
	if err != nil {
		return Result{}, err
	}
	to, err := ref.Parse(dst)
	if err != nil {
		return Result{}, err
	}
	if to.IsDigest() {
		return Result{}, fmt.Errorf("%w: %s: the digest of what is to be made isn't known", ref.ErrInvalid, dst)
	}
	if o.ChunkSize < 0 || o.MinChunkSize < 0 || o.Level < 0 || o.Level > 9 {
		return Result{}, fmt.Errorf("chunk sizes %d and %d or level %d out of range", o.ChunkSize, o.MinChunkSize, o.Level)
	}
	o.Level = cmp.Or(o.Level, 6)
	o.TempDir = cmp.Or(o.TempDir, os.TempDir())
	c := &converter{o: o, layers: map[key]*converted{}}
	if c.source, err = openSource(from, o.Source); err != nil {
		return Result{}, err
	}
	if c.target, err = openTarget(to, o.Target); err != nil {
		return Result{}, err
	}
	res, err := c.run(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("converting %v: %w", from, err)
	}
	return res, nil
}

// source is where an image comes from.
type source interface {
	Resolve(context.Context) (v1.Descriptor, error)
	Manifest(context.Context, v1.Descriptor) ([]byte, error)
	Blob(v1.Descriptor) blob.Source
}

func openSource(r ref.Ref, o registry.Options) (source, error) {
	if r.Transport == ref.OCI {
		return layout.Open(r)
	}
	return registry.Open(r, o)
}

// converter is one conversion.
type converter struct {
	o      Options
	source source
	target target

	images int
	layers map[key]*converted // what was converted; images share layers
	result Result

	progress sync.Mutex // held while Progress is called
}

// key is what the conversion of a layer depends on: toc is the annotation that vouches for one.
type key struct {
	digest, diffID v1.Hash
	toc            string
}

func (c *converter) run(ctx context.Context) (Result, error) {
	d, err := c.source.Resolve(ctx)
	if err != nil {
		return Result{}, err
	}
	for depth := 0; c.o.Platform != nil && d.MediaType.IsIndex(); depth++ {
		if depth == maxDepth {
			return Result{}, fmt.Errorf("%w: indexes within indexes", ref.ErrUnsupported)
		}
		ix, _, err := c.index(ctx, d)
		if err != nil {
			return Result{}, err
		}
		if d, err = ref.Select(*c.o.Platform, ix.Manifests); err != nil {
			return Result{}, err
		}
	}
	d, body, err := c.convert(ctx, d, 0)
	if err != nil {
		return Result{}, err
	}
	if err := c.target.commit(ctx, d, body); err != nil {
		return Result{}, err
	}
	c.result.Digest, c.result.MediaType = d.Digest, d.MediaType
	return c.result, nil
}

// index reads an index.
func (c *converter) index(ctx context.Context, d v1.Descriptor) (*v1.IndexManifest, []byte, error) {
	body, err := c.source.Manifest(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	if _, err := ref.Kind(body, d.MediaType); err != nil {
		return nil, nil, fmt.Errorf("reading index %s: %w", d.Digest, err)
	}
	ix, err := v1.ParseIndexManifest(bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("reading index %s: %w", d.Digest, err)
	}
	return ix, body, nil
}

// convert converts what d describes and all below it, and puts all but itself at the target.
func (c *converter) convert(ctx context.Context, d v1.Descriptor, depth int) (v1.Descriptor, []byte, error) {
	if d.MediaType.IsImage() {
		return c.image(ctx, d)
	}
	if !d.MediaType.IsIndex() || depth == maxDepth {
		return v1.Descriptor{}, nil, fmt.Errorf("%w: %s is of media type %q at depth %d", ref.ErrUnsupported, d.Digest, d.MediaType, depth)
	}
	ix, body, err := c.index(ctx, d)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	changed := d.MediaType != types.OCIImageIndex
	kept := ix.Manifests[:0:0]
	for _, child := range ix.Manifests {
		if !ref.IsImage(child) {
			c.result.Dropped++
			changed = true
			continue
		}
		next, body, err := c.convert(ctx, child, depth+1)
		if err != nil {
			return v1.Descriptor{}, nil, err
		}
		if err := c.target.manifest(ctx, next, body); err != nil {
			return v1.Descriptor{}, nil, err
		}
		changed = changed || next.Digest != child.Digest
		kept = append(kept, next)
	}
	if !changed {
		return d, body, nil
	}
	ix.SchemaVersion, ix.MediaType, ix.Manifests = 2, types.OCIImageIndex, kept
	if body, err = json.Marshal(ix); err != nil {
		return v1.Descriptor{}, nil, err
	}
	return describe(d, body, ix.MediaType), body, nil
}

// describe makes the descriptor of a document after that of the one it replaces.
func describe(d v1.Descriptor, body []byte, mt types.MediaType) v1.Descriptor {
	sum := sha256.Sum256(body)
	d.MediaType, d.Data, d.URLs = mt, nil, nil
	d.Digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	d.Size = int64(len(body))
	return d
}
