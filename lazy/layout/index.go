package layout

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/ref"
)

// errNotListed says that an index.json doesn't list a digest itself.
var errNotListed = fmt.Errorf("not listed in index.json: %w", fs.ErrNotExist)

// parseIndex reads an index.json.
func parseIndex(b []byte) (*v1.IndexManifest, error) {
	var ix v1.IndexManifest
	if err := json.Unmarshal(b, &ix); err != nil {
		return nil, err
	}
	if ix.SchemaVersion != 2 {
		return nil, fmt.Errorf("%w: schema version %d", ref.ErrUnsupported, ix.SchemaVersion)
	}
	for i, d := range ix.Manifests {
		if _, err := v1.NewHash(d.Digest.String()); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("entry %d: its size is %d", i, d.Size)
		}
	}
	return &ix, nil
}

// pick finds what r names. A digest that isn't listed gives errNotListed.
func pick(ix *v1.IndexManifest, r ref.Ref) (v1.Descriptor, error) {
	byDigest := r.Digest != (v1.Hash{})
	var found []v1.Descriptor
	for _, d := range ix.Manifests {
		switch {
		case !d.MediaType.IsImage() && !d.MediaType.IsIndex():
		case byDigest && d.Digest != r.Digest:
		case !byDigest && r.Tag != "" && d.Annotations[RefName] != r.Tag:
		case slices.ContainsFunc(found, func(f v1.Descriptor) bool { return f.Digest == d.Digest }):
			// One image may have several names.
		default:
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case byDigest:
		return v1.Descriptor{}, errNotListed
	case len(found) == 0 && r.Tag != "":
		return v1.Descriptor{}, fmt.Errorf("the layout has no image of that name: %w%s", fs.ErrNotExist, names(ix))
	case len(found) == 0:
		return v1.Descriptor{}, fmt.Errorf("the layout has no image: %w", fs.ErrNotExist)
	case r.Tag != "":
		return v1.Descriptor{}, fmt.Errorf("the layout has %d images of that name", len(found))
	}
	return v1.Descriptor{}, fmt.Errorf("the layout has %d images, one must be named%s", len(found), names(ix))
}

// names lists some of the names in an index, for an error.
func names(ix *v1.IndexManifest) string {
	const most = 20
	var ns []string
	for _, d := range ix.Manifests {
		if n := d.Annotations[RefName]; n != "" && !slices.Contains(ns, n) {
			ns = append(ns, n)
		}
	}
	if len(ns) == 0 {
		return "; none has a name, use @DIGEST"
	}
	more := ""
	if len(ns) > most {
		ns, more = ns[:most], fmt.Sprintf(" and %d more", len(ns)-most)
	}
	for i, n := range ns {
		ns[i] = fmt.Sprintf("%.100q", n)
	}
	return "; there are " + strings.Join(ns, ", ") + more
}
