package lazy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// OpenOptions of one opening.
type OpenOptions struct {
	Platform ref.Platform
	Progress func(Event) // may be nil; called from several goroutines
}

// Opened is an image and what its manifest says.
type Opened struct {
	Image    *Image
	Manifest string // SHA-256 in hex
	Config   []byte // the config blob
}

const maxLayers = 4096

// Open resolves a reference and opens its image: from the cache where the cache has it, else by reading its layers. A tag
// that can't be resolved since nothing answers opens what it stood for last, with a warning event.
func (c *Cache) Open(ctx context.Context, r ref.Ref, repo Repo, o OpenOptions) (*Opened, error) {
	tell := o.Progress
	if tell == nil {
		tell = func(Event) {}
	}
	tell(Event{Stage: "resolving", Text: r.String()})
	d, raw, err := c.resolve(ctx, r, repo, o.Platform, tell)
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", d, err)
	}
	if rec, err := c.st.Record(d.Hex); err == nil {
		config, err := c.st.Blob(rec.Config)
		if err == nil {
			im, err := c.Image(ctx, rec.Image)
			if err == nil {
				im.setRepo(repo)
				return &Opened{Image: im, Manifest: d.Hex, Config: config}, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if !errors.Is(err, store.ErrNotCached) && !errors.Is(err, errPlan) {
				return nil, err
			}
			if errors.Is(err, errPlan) {
				c.log.Warn("making image anew", "image", rec.Image, "err", err)
				if err := c.Remove(rec.Image); err != nil {
					return nil, err
				}
			}
		}
	}
	config, err := c.config(ctx, repo, m.Config)
	if err != nil {
		return nil, fmt.Errorf("reading config of %s: %w", r, err)
	}
	im, err := c.opening.do(ctx, d.Hex, func(ctx context.Context) (*Image, error) {
		return c.build(ctx, r, repo, d.Hex, m, config, tell)
	})
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", r, err)
	}
	im.setRepo(repo)
	return &Opened{Image: im, Manifest: d.Hex, Config: config}, nil
}

// resolve gives the digest and bytes of the platform's manifest.
func (c *Cache) resolve(ctx context.Context, r ref.Ref, repo Repo, p ref.Platform, tell func(Event)) (v1.Hash, []byte, error) {
	last, lastErr := c.st.Ref(r.String(), p.String())
	if lastErr == nil && r.IsDigest() { // a digest means the same for ever
		if raw, err := c.st.Blob(last.Manifest); err == nil {
			return v1.Hash{Algorithm: "sha256", Hex: last.Manifest}, raw, nil
		}
	}
	raw, d, err := c.fetchManifest(ctx, repo, p)
	if err != nil {
		if lastErr != nil || ctx.Err() != nil || !errors.Is(err, ErrUnreachable) {
			return v1.Hash{}, nil, err
		}
		raw, berr := c.st.Blob(last.Manifest)
		if berr != nil {
			return v1.Hash{}, nil, err
		}
		tell(Event{Stage: "warning", Text: fmt.Sprintf("%v; using what %s was on %s", err, r, last.Resolved.Format(time.DateTime))})
		return v1.Hash{Algorithm: "sha256", Hex: last.Manifest}, raw, nil
	}
	if _, err := c.st.PutBlob(raw); err != nil {
		return v1.Hash{}, nil, fmt.Errorf("keeping manifest of %s: %w", r, err)
	}
	if lastErr != nil || last.Manifest != d.Hex {
		if err := c.st.PutRef(store.Ref{Ref: r.String(), Platform: p.String(), Manifest: d.Hex, Resolved: time.Now().UTC()}); err != nil {
			return v1.Hash{}, nil, fmt.Errorf("keeping digest of %s: %w", r, err)
		}
	}
	return d, raw, nil
}

func (c *Cache) fetchManifest(ctx context.Context, repo Repo, p ref.Platform) ([]byte, v1.Hash, error) {
	d, err := repo.Resolve(ctx)
	if err != nil {
		return nil, v1.Hash{}, err
	}
	raw, err := repo.Manifest(ctx, d)
	if err != nil {
		return nil, v1.Hash{}, err
	}
	for depth := 0; isIndex(d.MediaType, raw); depth++ {
		if depth == 3 {
			return nil, v1.Hash{}, fmt.Errorf("index %s: indexes nest too deep", d.Digest)
		}
		var ix v1.IndexManifest
		if err := json.Unmarshal(raw, &ix); err != nil {
			return nil, v1.Hash{}, fmt.Errorf("reading index %s: %w", d.Digest, err)
		}
		if d, err = ref.Select(p, ix.Manifests); err != nil {
			return nil, v1.Hash{}, err
		}
		if raw, err = repo.Manifest(ctx, d); err != nil {
			return nil, v1.Hash{}, err
		}
	}
	if d.Digest.Algorithm != "sha256" {
		return nil, v1.Hash{}, fmt.Errorf("manifest %s: digests other than SHA-256 are not supported", d.Digest)
	}
	return raw, d.Digest, nil
}

// isIndex tells an index from a manifest; what the bytes say counts for more than the descriptor, which may be silent.
func isIndex(mt types.MediaType, raw []byte) bool {
	var probe struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
	}
	if json.Unmarshal(raw, &probe) != nil {
		return mt.IsIndex()
	}
	if probe.MediaType != "" {
		return probe.MediaType.IsIndex()
	}
	return mt.IsIndex() || probe.Manifests != nil && probe.Layers == nil
}

func (c *Cache) config(ctx context.Context, repo Repo, d v1.Descriptor) ([]byte, error) {
	if b, err := c.st.Blob(d.Digest.Hex); err == nil {
		return b, nil
	}
	b, err := repo.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	_, err = c.st.PutBlob(b)
	return b, err
}

// checkLayers refuses manifests that no layer need be read for.
func checkLayers(m v1.Manifest, cfg *v1.ConfigFile) error {
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("the manifest lists %d layers, more than %d", len(m.Layers), maxLayers)
	}
	if len(cfg.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("the manifest lists %d layers, the config %d diffIDs", len(m.Layers), len(cfg.RootFS.DiffIDs))
	}
	for i, l := range m.Layers {
		switch {
		case l.Digest.Algorithm != "sha256" || len(l.Digest.Hex) != 64:
			return fmt.Errorf("layer %d: digest %.80q is not a SHA-256", i, l.Digest)
		case l.Size < 0:
			return fmt.Errorf("layer %s: size %d", l.Digest, l.Size)
		case !strings.Contains(string(l.MediaType), "tar"):
			return fmt.Errorf("layer %s: media type %.80q is not a file system layer's", l.Digest, l.MediaType)
		}
	}
	return nil
}

// vouched names the table of contents that the manifest vouches for, or is empty: two manifests may hold the same blob, one
// with and one without.
func vouched(d v1.Descriptor) string {
	h := sha256.New()
	n := 0
	for _, k := range [...]string{
		"containerd.io/snapshot/stargz/toc.digest",
		"io.github.containers.zstd-chunked.manifest-position", "io.github.containers.zstd-chunked.manifest-checksum",
		"io.containers.zstd-chunked.manifest-position", "io.containers.zstd-chunked.manifest-checksum",
	} {
		if v := d.Annotations[k]; v != "" {
			fmt.Fprintf(h, "%s\x00%s\x00", k, v)
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}
