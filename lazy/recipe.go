package lazy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
	"github.com/pexfs/pex/lazy/tree"
)

// recipe is what an image file is made from: one image, or several below prefixes of their own.
type recipe struct {
	parts []*part
	shift uint32 // added to every uid and gid
	opts  OpenOptions
	first func(context.Context) *profile.Profile // nil: nothing is fetched early
}

// part is one image of a recipe.
type part struct {
	prefix   string // where its tree goes; empty: it is the root
	ref      string
	repo     Repo
	manifest string // SHA-256 in hex
	m        v1.Manifest
}

// newPart checks what a manifest says. It does no I/O.
func newPart(name string, repo Repo, d v1.Hash, raw []byte) (*part, error) {
	p := &part{ref: name, repo: repo, manifest: d.Hex}
	if err := json.Unmarshal(raw, &p.m); err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", d, err)
	}
	if err := checkLayers(p.m); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	return p, nil
}

// diffIDs reads a part's config and gives the diffID of each layer.
func (c *Cache) diffIDs(ctx context.Context, p *part) ([]v1.Hash, error) {
	raw, err := c.config(ctx, p.repo, p.m.Config)
	var cfg v1.ConfigFile
	if err == nil {
		err = json.Unmarshal(raw, &cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("reading config of %s: %w", p.ref, err)
	}
	ids := cfg.RootFS.DiffIDs
	return ids, checkDiffIDs(p.m, ids)
}

// plain tells whether the image is what the cache keeps of a manifest.
func (r *recipe) plain() bool {
	return len(r.parts) == 1 && r.parts[0].prefix == "" && r.shift == 0 && !r.opts.Stream
}

// sources lists the layers of all parts, those of the first part first, each part's bottom first, without their diffIDs.
func (r *recipe) sources() []source {
	var all []source
	for _, p := range r.parts {
		for _, d := range p.m.Layers {
			all = append(all, source{d: d, repo: p.repo})
		}
	}
	return all
}

// key is what an image's bytes depend on: the layout's version, the layers, what each was read from, and what was done to them. A layer
// that is read by its table of contents is never read whole, so its digest says nothing of what is shown: the digest of the
// table does. Else whoever names a layer of somebody else's beside a table of his own would get into other images.
func (r *recipe) key(layers []*layer.Packed) store.Key {
	h := sha256.New()
	fmt.Fprintf(h, "pex image %d\n", erofs.LayoutVersion)
	if r.shift != 0 {
		fmt.Fprintf(h, "shift %d\n", r.shift)
	}
	n := 0
	for _, p := range r.parts {
		if p.prefix != "" {
			fmt.Fprintf(h, "prefix %q\n", p.prefix)
		}
		for _, d := range p.m.Layers {
			from := "tar"
			if layers[n].Source == layer.FromTOC {
				from = tocName(d)
			}
			fmt.Fprintf(h, "%s %s\n", d.Digest, from)
			n++
		}
	}
	return store.Key(hex.EncodeToString(h.Sum(nil)))
}

// merge applies the layers of each part and joins the parts. What was ambiguous is told, too, bounded. Afterwards layers are without their
// entries, which nobody needs any more: it takes much memory otherwise.
func (r *recipe) merge(layers []*layer.Packed) (t *tree.Tree, ambiguous []string, err error) {
	parts := make([]tree.Part, len(r.parts))
	for i, p := range r.parts {
		b := tree.NewBuilder(tree.Options{})
		for k, d := range p.m.Layers {
			if err := b.AddLayer(layers[k].Entries()); err != nil {
				var e *tree.EntryError
				if errors.As(err, &e) { // the digest says more than the number
					return nil, nil, fmt.Errorf("merging layer %s: entry %d %.200q: %w", d.Digest, e.Entry, e.Name, e.Err)
				}
				return nil, nil, fmt.Errorf("merging layer %s: %w", d.Digest, err)
			}
			layers[k] = layers[k].Tables()
		}
		layers = layers[len(p.m.Layers):]
		if t, err = b.Build(); err != nil {
			return nil, nil, fmt.Errorf("merging layers: %w", err)
		}
		for _, a := range t.Ambiguous() {
			ambiguous = append(ambiguous, fmt.Sprintf("layer %s, entry %d %.200q: %s", p.m.Layers[a.Layer].Digest, a.Entry, a.Name, a.What))
		}
		parts[i] = tree.Part{Prefix: p.prefix, Tree: t}
	}
	if len(parts) > 1 || parts[0].Prefix != "" {
		if t, err = tree.Pack(parts); err != nil {
			return nil, nil, err
		}
	}
	if r.shift != 0 {
		if t, err = tree.Shift(t, r.shift); err != nil {
			return nil, nil, err
		}
	}
	return t, ambiguous, nil
}

// layOut gives everything in a tree its place.
func layOut(t *tree.Tree, layers []*layer.Packed, key store.Key) (*erofs.Layout, error) {
	l, err := erofs.NewLayout(t, func(ct tree.Content) [32]byte { return layers[ct.Layer].Contents[ct.Index].Key }, uuidOf(key))
	if err != nil {
		return nil, fmt.Errorf("laying out the image: %w", err)
	}
	return l, nil
}

// uuidOf is the image's: version 8, as RFC 9562 has it for ids of one's own making.
func uuidOf(key store.Key) [16]byte {
	h := hashOf(string(key))
	uuid := [16]byte(h[:16])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x80, uuid[8]&0x3f|0x80
	return uuid
}

// blobs finds each of a recipe's layers where it is.
type blobs map[v1.Hash]Blobs

func (r *recipe) blobs() Blobs {
	if len(r.parts) == 1 {
		return r.parts[0].repo
	}
	all := make(blobs)
	for _, s := range r.sources() {
		all[s.d.Digest] = s.repo
	}
	return all
}

// Blob implements Blobs. It is only asked for layers of the recipe.
func (b blobs) Blob(d v1.Descriptor) blob.Source { return b[d.Digest].Blob(d) }

// Part is one image of those that Pack makes one of.
type Part struct {
	Prefix string // where its tree goes, a relative path; it may be empty if there is but one part
	Ref    ref.Ref
	Repo   Repo
}

// Pack makes one image of several, each below its prefix, with contents that they share stored once, and shift added to every owner.
// The image is made anew; that of a single part without prefix and shift is what Open makes.
func (c *Cache) Pack(ctx context.Context, parts []Part, shift uint32, o OpenOptions) (*Image, error) {
	tell := o.Progress
	if tell == nil {
		tell = func(Event) {}
	}
	if len(parts) == 0 {
		return nil, errors.New("packing images: none is named")
	}
	r := &recipe{shift: shift, opts: o}
	for _, p := range parts {
		tell(Event{Stage: "resolving", Text: p.Ref.String()})
		d, raw, err := c.resolve(ctx, p.Ref, p.Repo, o, tell)
		if err != nil {
			return nil, err
		}
		ready, err := newPart(p.Ref.String(), p.Repo, d, raw)
		if err != nil {
			return nil, err
		}
		ready.prefix = p.Prefix
		r.parts = append(r.parts, ready)
	}
	im, err := c.build(ctx, r, tell)
	if err != nil {
		return nil, fmt.Errorf("making image: %w", err)
	}
	im.setRepo(r.blobs())
	return im, nil
}
