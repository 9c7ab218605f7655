package lazy_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
)

// prose is bytes that compress somewhat.
func prose(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = "aeou"[r.IntN(4)]
	}
	return b
}

// tinyLayers are the tars of a small image that has something of everything.
func tinyLayers(t testing.TB) [][]byte {
	t.Helper()
	type entry struct {
		h    tar.Header
		body []byte
	}
	attr := map[string]string{"SCHILY.xattr.user.k": "v\x00w", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}
	layers := [][]entry{{
		{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "d/big", Mode: 0o640, Uid: 7, Gid: 70000}, prose(5000, 1)},
		{tar.Header{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/big", Mode: 0o640, Uid: 7, Gid: 70000}, nil},
		{tar.Header{Name: "soft", Typeflag: tar.TypeSymlink, Linkname: "d/big", Mode: 0o777}, nil},
		{tar.Header{Name: "gone", Mode: 0o600}, prose(300, 2)},
		{tar.Header{Name: "attr", Mode: 0o4755, PAXRecords: attr}, prose(200, 3)},
	}, {
		{tar.Header{Name: ".wh.gone", Mode: 0o644}, nil},
		{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o700}, nil},
		{tar.Header{Name: "d/two", Mode: 0o644}, prose(1700, 4)},
		{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, nil},
		{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, nil},
		{tar.Header{Name: "empty", Mode: 0o644}, nil},
	}, {
		{tar.Header{Name: "attr2", Typeflag: tar.TypeLink, Linkname: "attr", Mode: 0o600}, nil},
		{tar.Header{Name: "top", Mode: 0o644}, prose(4500, 5)}, // its content is the first in the image
	}}
	var all [][]byte
	for _, l := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, e := range l {
			e.h.Size, e.h.ModTime = int64(len(e.body)), time.Unix(1_000_000_000, 0)
			if e.h.Typeflag == 0 {
				e.h.Typeflag = tar.TypeReg
			}
			if err := w.WriteHeader(&e.h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(e.body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		all = append(all, b.Bytes())
	}
	return all
}

// imageRepo is a registry with one image, behind an index. It serves what it has been given for a digest, right or not.
type imageRepo struct {
	blobs   map[v1.Hash][]byte
	root    v1.Descriptor
	fetched atomic.Int64        // bytes of layers
	change  func([]byte) []byte // changes what is transferred; nil: nothing
}

// imageParts are the documents of an image and its layers.
type imageParts struct {
	name                    string // of the layers' form
	layers                  []layerForm
	config, manifest, index []byte
}

// sign makes the documents from the layers.
func sign(t testing.TB, layers ...layerForm) imageParts {
	t.Helper()
	var m v1.Manifest
	cfg := v1.ConfigFile{OS: "linux", Architecture: "amd64"}
	for _, l := range layers {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: l.mediaType, Size: int64(len(l.blob)), Digest: sha(l.blob), Annotations: l.annotations})
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
	}
	m.SchemaVersion, m.MediaType = 2, types.OCIManifestSchema1
	p := imageParts{layers: layers, config: marshal(t, cfg)}
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(p.config)), Digest: sha(p.config)}
	p.manifest = marshal(t, m)
	return p.signManifest(t)
}

// signManifest makes the index from the manifest.
func (p imageParts) signManifest(t testing.TB) imageParts {
	t.Helper()
	p.index = marshal(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{{
		MediaType: types.OCIManifestSchema1, Size: int64(len(p.manifest)), Digest: sha(p.manifest),
		Platform: &v1.Platform{OS: "linux", Architecture: "amd64"},
	}}})
	return p
}

// with is the image with another layer in the place of one.
func (p imageParts) with(t testing.TB, i int, l layerForm) imageParts {
	t.Helper()
	layers := slices.Clone(p.layers)
	layers[i] = l
	return sign(t, layers...)
}

// passing is the image with another layer in the place of one, that passes for it: it is served for the digest of the one.
func (p imageParts) passing(t testing.TB, i int, l layerForm) (imageParts, *imageRepo) {
	t.Helper()
	was := p.layers[i].blob
	claim := l
	claim.blob = was
	bad := p.with(t, i, claim)
	bad.layers[i] = l
	// its size is signed too
	bad.manifest = bytes.ReplaceAll(bad.manifest, fmt.Appendf(nil, `"size":%d,"digest":"%s"`, len(was), sha(was)),
		fmt.Appendf(nil, `"size":%d,"digest":"%s"`, len(l.blob), sha(was)))
	bad = bad.signManifest(t)
	r := bad.repo()
	r.blobs[sha(was)] = l.blob
	return bad, r
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// repo serves the parts under their own digests.
func (p imageParts) repo() *imageRepo {
	r := &imageRepo{blobs: make(map[v1.Hash][]byte)}
	for _, b := range [][]byte{p.config, p.manifest, p.index} {
		r.blobs[sha(b)] = b
	}
	for _, l := range p.layers {
		r.blobs[sha(l.blob)] = l.blob
	}
	r.root = v1.Descriptor{MediaType: types.OCIImageIndex, Size: int64(len(p.index)), Digest: sha(p.index)}
	return r
}

func (r *imageRepo) Probe(context.Context) (v1.Hash, error) { return v1.Hash{}, nil }

func (r *imageRepo) Resolve(context.Context) (v1.Descriptor, error) { return r.root, nil }

func (r *imageRepo) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	b, ok := r.blobs[d.Digest]
	if !ok || d.Size != int64(len(b)) {
		return nil, fmt.Errorf("no %s of %d bytes", d.Digest, d.Size)
	}
	return b, blob.Verify(b, d.Digest)
}

func (r *imageRepo) Blob(d v1.Descriptor) blob.Source { return &servedBlob{r, d} }

type servedBlob struct {
	r *imageRepo
	d v1.Descriptor
}

func (s *servedBlob) Size() int64 { return s.d.Size }

func (s *servedBlob) Fetch(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if err := blob.CheckRange(s.d.Size, off, n); err != nil {
		return nil, err
	}
	b, ok := s.r.blobs[s.d.Digest]
	if !ok {
		return nil, fmt.Errorf("no %s", s.d.Digest)
	}
	s.r.fetched.Add(n)
	var tail io.Reader = cut{}
	b = b[min(off, int64(len(b))):]
	if int64(len(b)) >= n {
		b, tail = b[:n], strings.NewReader("")
		if s.r.change != nil {
			b = s.r.change(b)
		}
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b), tail)), nil
}

// cut is the end of a blob that is shorter than its descriptor says.
type cut struct{}

func (cut) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
