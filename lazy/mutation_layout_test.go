package lazy_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/layout"
	"github.com/pexfs/pex/lazy/ref"
)

// TestMutationsLayout mutates every file of an image in a folder. Its index.json is signed by nobody.
func TestMutationsLayout(t *testing.T) {
	raw := tinyLayers(t)
	p := sign(t, forms()["gzip"](t, raw[0]), forms()["estargz"](t, raw[1]))
	good := readTruth(t, p.repo())
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion": "1.0.0"}` + "\n"),
		"index.json": marshal(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{
			{MediaType: types.OCIImageIndex, Size: int64(len(p.index)), Digest: sha(p.index), Annotations: map[string]string{layout.RefName: "one"}},
			{MediaType: types.OCIManifestSchema1, Size: int64(len(p.manifest)), Digest: sha(p.manifest), Annotations: map[string]string{layout.RefName: "two"}},
		}}),
	}
	for _, b := range [][]byte{p.index, p.manifest, p.config, p.layers[0].blob, p.layers[1].blob} {
		files["blobs/sha256/"+sha(b).Hex] = b
	}
	var inputs []input
	for _, name := range slices.Sorted(maps.Keys(files)) {
		inputs = append(inputs, input{shorten(name), files[name], 12, func(ctx context.Context, w *worker, m []byte) (outcome, error) {
			return w.withCache(func(c *lazy.Cache) (outcome, error) {
				damaged := maps.Clone(files)
				damaged[name] = m
				dir := filepath.Join(w.dir, "oci")
				if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700); err != nil {
					return refused, err
				}
				for n, b := range damaged {
					if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
						return refused, err
					}
				}
				r, err := layout.Open(ref.Ref{Transport: ref.OCI, Dir: dir, Tag: "one"})
				if err != nil {
					return refused, nil
				}
				s, err := opening{repo: r}.run(ctx, c)
				if err := errors.Join(err, good.is(s), keptNothing(c, s.outcome)); err != nil {
					return s.outcome, err
				}
				return s.outcome, good.holds(ctx, c)
			})
		}})
	}
	tryAll(t, inputs)
}
