package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/pexfs/pex/lazy/ref"
)

// image converts one image and puts its layers and configuration at the target.
func (c *converter) image(ctx context.Context, d v1.Descriptor) (v1.Descriptor, []byte, error) {
	next, body, err := c.convertImage(ctx, d)
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("image %s: %w", d.Digest, err)
	}
	return next, body, nil
}

func (c *converter) convertImage(ctx context.Context, d v1.Descriptor) (v1.Descriptor, []byte, error) {
	if c.images++; c.images > maxImages {
		return v1.Descriptor{}, nil, fmt.Errorf("%w: more than %d images", ref.ErrUnsupported, maxImages)
	}
	body, err := c.source.Manifest(ctx, d)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	if _, err := ref.Kind(body, d.MediaType); err != nil {
		return v1.Descriptor{}, nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(body))
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	if !m.Config.MediaType.IsConfig() || len(m.Layers) > maxLayers {
		return v1.Descriptor{}, nil, fmt.Errorf("%w: %d layers and a configuration of type %.100q", ref.ErrUnsupported,
			len(m.Layers), m.Config.MediaType)
	}
	config, err := c.source.Manifest(ctx, m.Config)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	diffIDs, err := readDiffIDs(config)
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("reading configuration %s: %w", m.Config.Digest, err)
	}
	if len(diffIDs) != len(m.Layers) {
		return v1.Descriptor{}, nil, fmt.Errorf("%w: %d layers and %d diffIDs", ref.ErrUnsupported, len(m.Layers), len(diffIDs))
	}
	done, err := c.convertLayers(ctx, m.Layers, diffIDs)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	changed := d.MediaType != types.OCIManifestSchema1
	newIDs := make([]v1.Hash, len(done))
	for i, l := range done {
		newIDs[i] = l.diffID
		if l.To.Digest != l.From.Digest || l.To.MediaType != l.From.MediaType {
			changed = true
			m.Layers[i] = l.To
		}
	}
	if !slices.Equal(diffIDs, newIDs) {
		if config, err = replaceDiffIDs(config, newIDs); err != nil {
			return v1.Descriptor{}, nil, err
		}
	}
	cd := describe(m.Config, config, types.OCIConfigJSON)
	if _, err := c.target.blob(ctx, cd, bytesBlob(config)); err != nil {
		return v1.Descriptor{}, nil, err
	}
	if !changed && cd.Digest == m.Config.Digest && cd.MediaType == m.Config.MediaType {
		return d, body, nil
	}
	m.SchemaVersion, m.MediaType, m.Config = 2, types.OCIManifestSchema1, cd
	if body, err = json.Marshal(m); err != nil {
		return v1.Descriptor{}, nil, err
	}
	return describe(d, body, m.MediaType), body, nil
}

// converted is a layer that was converted.
type converted struct {
	Layer
	diffID v1.Hash // the new one
}

// convertLayers converts those of an image's layers that weren't converted before. It gives all of them, in order.
func (c *converter) convertLayers(ctx context.Context, ds []v1.Descriptor, diffIDs []v1.Hash) ([]*converted, error) {
	all := make([]*converted, len(ds))
	var fresh []*converted
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i, d := range ds {
		k := key{d.Digest, diffIDs[i], d.Annotations[estargz.TOCJSONDigestAnnotation]}
		if all[i] = c.layers[k]; all[i] != nil {
			continue
		}
		l := &converted{Layer: Layer{From: d}, diffID: diffIDs[i]}
		c.layers[k], all[i] = l, l
		fresh = append(fresh, l)
		g.Go(func() error {
			if err := c.convertLayer(gctx, l); err != nil {
				return fmt.Errorf("layer %s: %w", l.From.Digest, err)
			}
			c.tell(Event{Layer: l.From.Digest, Step: Finished})
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, l := range fresh {
		c.result.Layers = append(c.result.Layers, l.Layer)
		c.result.SourceSize += l.From.Size
		c.result.TargetSize += l.To.Size
		if l.Sent {
			c.result.SentSize += l.To.Size
		}
	}
	return all, nil
}

// readDiffIDs reads rootfs.diff_ids of a configuration (image specification, config.md).
func readDiffIDs(config []byte) ([]v1.Hash, error) {
	var c struct {
		RootFS struct {
			Type    string    `json:"type"`
			DiffIDs []v1.Hash `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	if c.RootFS.Type != "layers" {
		return nil, fmt.Errorf("%w: rootfs of type %.100q", ref.ErrUnsupported, c.RootFS.Type)
	}
	return c.RootFS.DiffIDs, nil
}

// replaceDiffIDs is a configuration with other diffIDs. All else stays, known here or not.
func replaceDiffIDs(config []byte, ids []v1.Hash) ([]byte, error) {
	var c, rootfs map[string]json.RawMessage
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(c["rootfs"], &rootfs); err != nil {
		return nil, err
	}
	var err error
	if rootfs["diff_ids"], err = json.Marshal(ids); err != nil {
		return nil, err
	}
	if c["rootfs"], err = json.Marshal(rootfs); err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// tell calls Progress, if there is one.
func (c *converter) tell(e Event) {
	if c.o.Progress == nil {
		return
	}
	c.progress.Lock()
	defer c.progress.Unlock()
	c.o.Progress(e)
}
