package lazy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// OpenOptions of one opening.
type OpenOptions struct {
	Platform ref.Platform
	// Pull says when the registry is asked what a tag is. What is not in a registry, a folder, is always looked at.
	Pull Pull
	// Insecure and HostsDirs are kept with the reference: see store.Ref.
	Insecure  bool
	HostsDirs string
	// Strict refuses an image in which something is ambiguous, with an error that wraps ErrAmbiguous.
	Strict bool
	// Verify reads every layer that has a table of contents whole and compares the two, before the image is shown. An image in
	// which they differ is refused then and from then on, with an error that wraps ErrRefused.
	Verify bool
	// Stream reads every layer whole and uses no table of contents.
	Stream bool
	// Offline opens what the cache has and is complete, and asks nobody for anything; a tag is what it was last. Where that can't be,
	// the error wraps ErrOffline. No Repo is needed.
	Offline bool
	// MaxSize and MaxEntries bound what is read of a layer; 0 is what the Cache was made with. An image that the cache has
	// already is not measured again.
	MaxSize    int64
	MaxEntries int
	Progress   func(Event) // may be nil; called from several goroutines
	// Cold, which may be nil, is called before the layers of an image are read that the cache hasn't got, with the manifest's digest
	// (SHA-256 in hex). What it returns, unless that is nil, is called in a goroutine of its own and gives a profile that will be replayed,
	// or nil: the beginning of what it names is fetched while the image is put together.
	Cold func(manifest string) func(context.Context) *profile.Profile
}

// limits of layers that this opening reads.
func (c *Cache) limits(o OpenOptions) layer.Limits {
	l := c.opts.Limits
	if o.MaxSize != 0 {
		l.MaxSize = o.MaxSize
	}
	if o.MaxEntries != 0 {
		l.MaxEntries = o.MaxEntries
	}
	return l
}

// Opened is an image and what its manifest says.
type Opened struct {
	Image    *Image
	Manifest string // SHA-256 in hex
	Config   []byte // the config blob
}

const maxLayers = 4096

// Open resolves a reference, as o.Pull says, and opens its image: from the cache where the cache has it, else by reading its layers.
func (c *Cache) Open(ctx context.Context, r ref.Ref, repo Repo, o OpenOptions) (*Opened, error) {
	tell := o.Progress
	if tell == nil {
		tell = func(Event) {}
	}
	if o.Offline {
		repo = offline{}
	}
	tell(Event{Stage: "resolving", Text: r.String()})
	d, raw, err := c.resolve(ctx, r, repo, o, tell)
	if errors.Is(err, ErrOffline) {
		err = fmt.Errorf("opening %s: %w, and the cache hasn't got it", r, ErrOffline)
	}
	if err != nil {
		return nil, err
	}
	if !o.Stream {
		opened, err := c.openCached(ctx, d.Hex, repo, o, tell)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", r, err)
		}
		if opened != nil {
			return opened, nil
		}
	}
	if o.Offline {
		return nil, fmt.Errorf("opening %s: %w, and the cache hasn't got it", r, ErrOffline)
	}
	var first func(context.Context) *profile.Profile
	if o.Cold != nil {
		first = o.Cold(d.Hex)
	}
	p, err := newPart(r.String(), repo, d, raw)
	if err != nil {
		return nil, err
	}
	im, err := c.opening.do(ctx, fmt.Sprint(d.Hex, o.Strict, o.Verify, o.Stream, o.MaxSize, o.MaxEntries), func(ctx context.Context) (*Image, error) {
		return c.build(ctx, &recipe{parts: []*part{p}, opts: o, first: first}, tell)
	})
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", r, err)
	}
	config, err := c.config(ctx, repo, p.m.Config) // the cache has it now
	if err != nil {
		return nil, fmt.Errorf("reading config of %s: %w", r, err)
	}
	im.setRepo(repo)
	return &Opened{Image: im, Manifest: d.Hex, Config: config}, nil
}

// openCached opens the image that the cache has of a manifest, or gives nil if it has none that can be used.
func (c *Cache) openCached(ctx context.Context, manifest string, repo Repo, o OpenOptions, tell func(Event)) (*Opened, error) {
	rec, err := c.st.Record(manifest)
	if err != nil {
		return nil, nil
	}
	config, err := c.st.Blob(rec.Config)
	if err != nil {
		return nil, nil
	}
	im, err := c.load(ctx, rec.Image, true)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, store.ErrNotCached):
		return nil, nil
	case err != nil:
		return nil, err
	}
	info := im.Info()
	if err := c.refused(info); err != nil {
		return nil, err
	}
	if o.Strict && len(info.Ambiguous) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrAmbiguous, info.Ambiguous[0])
	}
	if o.Verify {
		if err := c.verifyCached(ctx, info, repo, c.limits(o), tell); err != nil {
			return nil, err
		}
	}
	if o.Offline {
		if im.State() == store.Lazy {
			return nil, fmt.Errorf("%w, and %d of its %d bytes are missing", ErrOffline, info.Size-im.Present(), info.Size)
		}
		return &Opened{Image: im, Manifest: manifest, Config: config}, nil // whoever said where to fetch from has not been gainsaid
	}
	im.setRepo(repo)
	return &Opened{Image: im, Manifest: manifest, Config: config}, nil
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
	if got := sha256.Sum256(b); hex.EncodeToString(got[:]) != d.Digest.Hex {
		return nil, fmt.Errorf("%w: the config is sha256:%x, the manifest says %s", blob.ErrDigestMismatch, got, d.Digest)
	}
	_, err = c.st.PutBlob(b)
	return b, err
}

// checkLayers refuses manifests that nothing need be read for.
func checkLayers(m v1.Manifest) error {
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("the manifest lists %d layers, more than %d", len(m.Layers), maxLayers)
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

// checkDiffIDs refuses diffIDs that are not those of the manifest's layers.
func checkDiffIDs(m v1.Manifest, ids []v1.Hash) error {
	if len(ids) != len(m.Layers) {
		return fmt.Errorf("the manifest lists %d layers, the config %d diffIDs", len(m.Layers), len(ids))
	}
	for i, id := range ids {
		if id.Algorithm != "sha256" || len(id.Hex) != 64 {
			return fmt.Errorf("layer %s: diffID %.80q is not a SHA-256", m.Layers[i].Digest, id)
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
	return hex.EncodeToString(h.Sum(nil))
}
