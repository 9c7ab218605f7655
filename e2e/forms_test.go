package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// form is how an image's layers are packed.
type form string

const (
	formTar     form = "tar"
	formGzip    form = "gzip"
	formZstd    form = "zstd"
	formStargz  form = "estargz"
	formChunked form = "zstdchunked"
)

// forms are all that writeImage writes.
func forms() []form { return []form{formTar, formGzip, formZstd, formStargz, formChunked} }

// rounded tells whether layers have tables of contents, which round times.
func (f form) rounded() bool { return f == formStargz || f == formChunked }

// packing says how layers are cut: the zero value as builders do by default.
type packing struct {
	members         int // gzip members, or zstd frames, of a layer without a table of contents
	chunk, minChunk int // of those with one
}

// tarLayer is a layer to be packed.
type tarLayer struct {
	tar []byte
	// plain says that the estargz package doesn't keep what the layer means: of names that are there twice it drops all but the last, and
	// it knows neither sparse files nor names that aren't UTF-8. So it is packed without a table of contents.
	plain bool
}

// tars writes entries as tars.
func tars(layers [][]entry) []tarLayer {
	all := make([]tarLayer, len(layers))
	for i, l := range layers {
		seen := map[string]bool{}
		for _, e := range l {
			name := path.Clean("/" + e.name)
			all[i].plain = all[i].plain || seen[name] || e.kind == 'g' || e.sparse != dense || !utf8.ValidString(e.name) || !utf8.ValidString(e.link)
			seen[name] = true
		}
		all[i].tar = writeTar(l)
	}
	return all
}

// writeImage writes layers as an OCI layout with one image, tagged latest.
func writeImage(dir string, f form, p packing, layers []tarLayer) error {
	return writeLayers(dir, len(layers), func(i int) (packed, error) { return packLayer(layers[i], f, p) })
}

// packed is a layer as a registry has it.
type packed struct {
	b           []byte
	mediaType   types.MediaType
	annotations map[string]string
	diffID      v1.Hash
}

// writeLayers writes n packed layers as an OCI layout with one image, tagged latest.
func writeLayers(dir string, n int, layer func(i int) (packed, error)) error {
	l := ociLayout{dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	cfg := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}
	for i := range n {
		p, err := layer(i)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		d, err := l.put(p.b, p.mediaType)
		if err != nil {
			return err
		}
		d.Annotations = p.annotations
		m.Layers = append(m.Layers, d)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, p.diffID)
	}
	var err error
	if m.Config, err = l.putJSON(cfg, types.OCIConfigJSON); err != nil {
		return err
	}
	d, err := l.putJSON(m, types.OCIManifestSchema1)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	ix, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d}})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "index.json"), ix, 0o644),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

type ociLayout struct{ dir string }

func (l ociLayout) put(b []byte, mt types.MediaType) (v1.Descriptor, error) {
	h := sum(b)
	return v1.Descriptor{MediaType: mt, Size: int64(len(b)), Digest: h}, os.WriteFile(filepath.Join(l.dir, "blobs/sha256", h.Hex), b, 0o644)
}

func (l ociLayout) putJSON(v any, mt types.MediaType) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return l.put(b, mt)
}

func sum(b []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(b))}
}

// packLayer packs a layer in a form.
func packLayer(layer tarLayer, f form, how packing) (p packed, err error) {
	if !layer.plain && f.rounded() {
		return chunkLayer(layer.tar, f, how)
	}
	p.diffID = sum(layer.tar)
	switch f {
	case formTar:
		p.b, p.mediaType = layer.tar, types.OCIUncompressedLayer
	case formGzip, formStargz:
		p.b, p.mediaType = gzipped(layer.tar, how.members), types.OCILayer
	case formZstd, formChunked:
		p.mediaType = types.OCILayerZStd
		p.b, err = zstded(layer.tar, how.members)
	}
	return p, err
}

// chunkLayer packs a layer with a table of contents.
func chunkLayer(tar []byte, f form, how packing) (p packed, err error) {
	p.mediaType, p.annotations = types.OCILayer, map[string]string{}
	opts := []estargz.Option{estargz.WithChunkSize(how.chunk), estargz.WithMinChunkSize(how.minChunk), estargz.WithParallelism(1)}
	if f == formChunked {
		p.mediaType = types.OCILayerZStd
		opts = append(opts, estargz.WithCompression(zstdChunked{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: p.annotations}, &zstdchunked.Decompressor{}}))
	}
	bl, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), opts...)
	if err != nil {
		return p, err
	}
	p.b, err = io.ReadAll(bl)
	if err = errors.Join(err, bl.Close()); err != nil {
		return p, err
	}
	p.annotations[estargz.TOCJSONDigestAnnotation] = bl.TOCDigest().String()
	p.diffID = v1.Hash{Algorithm: "sha256", Hex: bl.DiffID().Encoded()}
	return p, nil
}

type zstdChunked struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// gzipped packs b in one member, or in several with an empty one between two.
func gzipped(b []byte, members int) []byte {
	var out bytes.Buffer
	for i, piece := range pieces(b, members) {
		if i == 1 {
			gzip.NewWriter(&out).Close()
		}
		z := gzip.NewWriter(&out)
		z.Name, z.Comment, z.Extra = strings.Repeat("layer", i), strings.Repeat("comment", i), bytes.Repeat([]byte("x"), 10*i)
		z.Write(piece)
		z.Close()
	}
	return out.Bytes()
}

// zstded packs b in one frame, or in several with a skippable one before each.
func zstded(b []byte, frames int) ([]byte, error) {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, piece := range pieces(b, frames) {
		if frames > 1 {
			out = append(out, 0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 's', 'k', 'i', 'p', '!')
		}
		out = z.EncodeAll(piece, out)
	}
	return out, z.Close()
}

func pieces(b []byte, n int) [][]byte {
	n = max(n, 1)
	var all [][]byte
	for i := range n {
		all = append(all, b[len(b)*i/n:len(b)*(i+1)/n])
	}
	return all
}

// layerDigest is the digest, in hex, of a layer of an OCI layout's image.
func layerDigest(t *testing.T, image string, n int) string {
	t.Helper()
	dir := strings.TrimPrefix(image, "oci:")
	var ix v1.IndexManifest
	var m v1.Manifest
	readLayoutJSON(t, &ix, dir, "index.json")
	readLayoutJSON(t, &m, dir, "blobs/sha256", ix.Manifests[0].Digest.Hex)
	return m.Layers[n].Digest.Hex
}

func readLayoutJSON(t *testing.T, v any, name ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(name...))
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}
