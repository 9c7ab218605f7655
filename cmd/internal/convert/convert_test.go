package convert

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/cmd/internal/embedreg"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/layout"
	"github.com/pexfs/pex/lazy/ref"
)

// serve serves an empty registry and gives its host.
func serve(t *testing.T) string {
	t.Helper()
	r, err := embedreg.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r)
	t.Cleanup(func() {
		srv.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return strings.TrimPrefix(srv.URL, "http://")
}

var mtime = time.Unix(1_700_000_000, 0)

// makeTar makes a tar of headers and their contents.
func makeTar(t *testing.T, entries ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(entries); i++ {
		h := entries[i].(tar.Header)
		var content []byte
		if i+1 < len(entries) {
			if c, ok := entries[i+1].([]byte); ok {
				content = c
				i++
			}
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			h.Size, h.ModTime = int64(len(content)), mtime
			if h.Mode == 0 {
				h.Mode = 0o644
			}
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func dir(name string) tar.Header  { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }

func pack(t *testing.T, mt types.MediaType, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch mt {
	case types.OCILayer, types.DockerLayer:
		w = gzip.NewWriter(&out)
	case types.OCILayerZStd:
		z, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		return b
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// testLayer is a layer to be put into a test's image.
type testLayer struct {
	mt  types.MediaType
	tar []byte
}

// store is a layout being made by hand, so that images in it can be wrong.
type store struct {
	t    *testing.T
	f    *folder
	arch string // of the next image
}

func newStore(t *testing.T) *store {
	return &store{t, &folder{dir: t.TempDir()}, `"architecture":"amd64"`}
}

func (s *store) put(mt types.MediaType, b []byte) v1.Descriptor {
	s.t.Helper()
	d := describe(v1.Descriptor{}, b, mt)
	if _, err := s.f.blob(s.t.Context(), d, bytesBlob(b)); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *store) putJSON(mt types.MediaType, doc any) v1.Descriptor {
	s.t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.put(mt, b)
}

// tag makes a reference for what d describes.
func (s *store) tag(d v1.Descriptor, tag string) string {
	s.t.Helper()
	b, err := os.ReadFile(s.f.path(d.Digest))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := (&folder{dir: s.f.dir, tag: tag}).commit(s.t.Context(), d, b); err != nil {
		s.t.Fatal(err)
	}
	return "oci:" + s.f.dir + ":" + tag
}

func (s *store) image(docker bool, ls ...testLayer) v1.Descriptor {
	s.t.Helper()
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Annotations: map[string]string{"an": "notation"}}
	configType := types.OCIConfigJSON
	if docker {
		m.MediaType, configType = types.DockerManifestSchema2, types.DockerConfigJSON
	}
	var diffIDs, history []string
	for i, l := range ls {
		d := s.put(l.mt, pack(s.t, l.mt, l.tar))
		d.Annotations = map[string]string{"layer": fmt.Sprint(i), "io.github.containers.zstd-chunked.manifest-checksum": "x"}
		m.Layers = append(m.Layers, d)
		diffIDs = append(diffIDs, describe(v1.Descriptor{}, l.tar, "").Digest.String())
		history = append(history, fmt.Sprintf(`{"created_by":"step %d <x>","x":%d}`, i, i))
	}
	ids, err := json.Marshal(diffIDs)
	if err != nil {
		s.t.Fatal(err)
	}
	m.Config = s.put(configType, fmt.Appendf(nil, `{%s,"os":"linux","unknown":{"n":12345678901234567890},`+
		`"config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":%s},"history":[%s]}`, s.arch, ids, strings.Join(history, ",")))
	return s.putJSON(m.MediaType, m)
}

// sample makes layers with most of what a tar can hold.
func sample(t *testing.T) [][]byte {
	return [][]byte{
		makeTar(t, dir("bin/"), file("bin/sh"), blobtest.Random(300_000), file("empty"),
			tar.Header{Typeflag: tar.TypeSymlink, Name: "sh", Linkname: "bin/sh"},
			tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "bin/sh"},
			tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666},
			tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}),
		makeTar(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "\x00\xff"}, Uid: 3_000_000},
			[]byte("content"), dir("bin/"), dir("bin/"), file("bin/.wh.sh")),
		makeTar(t, file("large"), bytes.Repeat([]byte("0123456789abcdef"), 40_000)),
	}
}

func load(t *testing.T, s string) *layout.Repo {
	t.Helper()
	r, err := ref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := layout.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// pull gives an image of a registry.
func pull(t *testing.T, s string) v1.Image {
	t.Helper()
	r, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// listing flattens an image as other tools see it, what eStargz adds left out.
func listing(t *testing.T, img v1.Image) []string {
	t.Helper()
	rc := mutate.Extract(img)
	defer rc.Close()
	var l []string
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if err == io.EOF {
			slices.Sort(l)
			return l
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Name == estargz.NoPrefetchLandmark || h.Name == estargz.TOCTarName {
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, fmt.Sprintf("%s %c %o %d:%d %d,%d %q %v %q %s", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Devmajor, h.Devminor,
			h.Linkname, h.ModTime.Unix(), h.PAXRecords["SCHILY.xattr.user.a"], describe(v1.Descriptor{}, b, "").Digest))
	}
}

// TestConvert converts between all kinds of places and compares what other tools see.
func TestConvert(t *testing.T) {
	tars := sample(t)
	for _, tt := range []struct {
		name   string
		docker bool
		types  []types.MediaType
		via    string
		o      Options
	}{
		{"gzip", false, []types.MediaType{types.OCILayer, types.OCILayer, types.OCILayer}, "registry", Options{}},
		{"docker", true, []types.MediaType{types.DockerLayer, types.DockerLayer, types.DockerLayer}, "registry", Options{}},
		{"mixed", false, []types.MediaType{types.OCIUncompressedLayer, types.OCILayerZStd, types.OCILayer}, "layout", Options{}},
		{"small chunks", false, []types.MediaType{types.OCILayer, types.OCILayer, types.OCILayer}, "layout", Options{ChunkSize: 10_000}},
		{"joined chunks", false, []types.MediaType{types.OCILayer, types.OCILayer, types.OCILayer}, "layout",
			Options{ChunkSize: 10_000, MinChunkSize: 50_000, Level: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			var ls []testLayer
			for i, mt := range tt.types {
				ls = append(ls, testLayer{mt, tars[i]})
			}
			src := s.tag(s.image(tt.docker, ls...), "src")
			// The original goes through a registry as it is, for others to read.
			host := serve(t)
			plain := host + "/app:plain"
			copyTo(t, src, plain)
			if tt.via == "registry" {
				src = plain
			}
			inLayout := "oci:" + filepath.Join(t.TempDir(), "new") + ":v1"
			inRegistry := host + "/app:lazy"
			tt.o.TempDir = t.TempDir()
			res, err := Convert(t.Context(), src, inLayout, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Convert(t.Context(), src, inRegistry, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(res, again); diff != "" {
				t.Errorf("converting to a layout and to a registry differ:\n%s", diff)
			}
			if len(res.Layers) != 3 || res.SentSize != res.TargetSize || res.MediaType != types.OCIManifestSchema1 {
				t.Errorf("result %+v", res)
			}
			if left, err := os.ReadDir(tt.o.TempDir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			img := pull(t, inRegistry)
			if err := validate.Image(img); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(listing(t, pull(t, plain)), listing(t, img)); diff != "" {
				t.Errorf("other tools see another image:\n%s", diff)
			}
			checkLayers(t, inLayout)
			checkConfig(t, inLayout, inRegistry)
			checkUnchanged(t, inLayout, res)
		})
	}
}

// copyTo copies a layout's image to a registry byte by byte.
func copyTo(t *testing.T, from, to string) {
	t.Helper()
	repo := load(t, from)
	r, err := ref.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := openTarget(r, Options{}.Target)
	if err != nil {
		t.Fatal(err)
	}
	d, m, body := manifest(t, repo)
	for _, l := range append(m.Layers, m.Config) {
		if _, err := dst.blob(t.Context(), l, func(ctx context.Context) (io.ReadCloser, error) {
			return repo.Blob(l).Fetch(ctx, 0, l.Size)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := dst.commit(t.Context(), d, body); err != nil {
		t.Fatal(err)
	}
}

func manifest(t *testing.T, repo *layout.Repo) (v1.Descriptor, *v1.Manifest, []byte) {
	t.Helper()
	d, err := repo.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	body, err := repo.Manifest(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return d, m, body
}

// checkLayers reads the tables of contents with our reader and with the library's.
func checkLayers(t *testing.T, at string) {
	t.Helper()
	repo := load(t, at)
	_, m, _ := manifest(t, repo)
	for i, l := range m.Layers {
		if l.MediaType != types.OCILayer || l.Annotations["layer"] != fmt.Sprint(i) || len(l.Annotations) != 3 {
			t.Errorf("layer %d: %+v", i, l)
		}
		ix, err := layer.ReadTOC(t.Context(), repo.Blob(l), l, layer.Limits{})
		if err != nil {
			t.Errorf("layer %d: %v", i, err)
		} else if len(ix.Entries) == 0 {
			t.Errorf("layer %d has no entries", i)
		}
	}
}

func checkConfig(t *testing.T, at, inRegistry string) {
	t.Helper()
	repo := load(t, at)
	_, m, _ := manifest(t, repo)
	if diff := cmp.Diff(map[string]string{"an": "notation"}, m.Annotations); diff != "" {
		t.Error(diff)
	}
	b, err := repo.Manifest(t.Context(), m.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"unknown":{"n":12345678901234567890}`, `"Env":["A=b"]`, `"x":2`} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("the configuration lost %s: %s", want, b)
		}
	}
	c, err := pull(t, inRegistry).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.History) != 3 || c.History[1].CreatedBy != "step 1 <x>" {
		t.Errorf("history %+v", c.History)
	}
}

// checkUnchanged converts what was converted: nothing is to be done or sent.
func checkUnchanged(t *testing.T, at string, before Result) {
	t.Helper()
	dir, _, _ := strings.Cut(strings.TrimPrefix(at, "oci:"), ":")
	res, err := Convert(t.Context(), at, "oci:"+dir+":v2", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Digest != before.Digest || res.SentSize != 0 {
		t.Errorf("converted again: %+v, want %s", res, before.Digest)
	}
	for _, l := range res.Layers {
		if l.Kept == "" || l.Sent {
			t.Errorf("layer %+v was converted again", l)
		}
	}
	for _, tag := range []string{":v1", ":v2"} {
		if d, _, _ := manifest(t, load(t, "oci:"+dir+tag)); d.Digest != before.Digest {
			t.Errorf("%s is %s", tag, d.Digest)
		}
	}
}

func TestIndex(t *testing.T) {
	s := newStore(t)
	tars := sample(t)
	amd := s.image(false, testLayer{types.OCILayer, tars[0]}, testLayer{types.OCILayer, tars[1]})
	amd.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
	amd.Annotations = map[string]string{"which": "amd"}
	s.arch = `"architecture":"arm64","variant":"v8"`
	arm := s.image(true, testLayer{types.DockerLayer, tars[0]}, testLayer{types.DockerLayer, tars[2]})
	arm.Platform = &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	attestation := s.putJSON(types.OCIManifestSchema1, map[string]any{"schemaVersion": 2, "config": map[string]any{}})
	attestation.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	nested := s.putJSON(types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{arm}})
	index := s.putJSON(types.DockerManifestList, v1.IndexManifest{SchemaVersion: 2, MediaType: types.DockerManifestList,
		Manifests: []v1.Descriptor{amd, attestation, nested}, Annotations: map[string]string{"top": "yes"}})
	src := s.tag(index, "multi")

	t.Run("all", func(t *testing.T) {
		dst := "oci:" + t.TempDir() + ":multi"
		res, err := Convert(t.Context(), src, dst, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if res.Dropped != 1 || res.MediaType != types.OCIImageIndex {
			t.Errorf("result %+v", res)
		}
		// The images share a tar, but in different blobs.
		if len(res.Layers) != 3 {
			t.Errorf("%d layers", len(res.Layers))
		}
		repo := load(t, dst)
		d, err := repo.Resolve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		body, err := repo.Manifest(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		ix, err := v1.ParseIndexManifest(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if len(ix.Manifests) != 2 || ix.Annotations["top"] != "yes" || ix.Manifests[0].Annotations["which"] != "amd" ||
			ix.Manifests[0].Platform.Architecture != "amd64" || ix.Manifests[1].MediaType != types.OCIImageIndex {
			t.Errorf("index %s", body)
		}
		// Through a registry too, where children must be there first.
		host := serve(t)
		again, err := Convert(t.Context(), src, host+"/multi:v1", Options{})
		if err != nil {
			t.Fatal(err)
		}
		if again.Digest != res.Digest {
			t.Errorf("digest %s, want %s", again.Digest, res.Digest)
		}
		r, err := name.ParseReference(host + "/multi:v1")
		if err != nil {
			t.Fatal(err)
		}
		got, err := remote.Index(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Index(got); err != nil {
			t.Error(err)
		}
	})
	t.Run("one platform", func(t *testing.T) {
		dst := "oci:" + t.TempDir()
		res, err := Convert(t.Context(), src, dst, Options{Platform: &ref.Platform{OS: "linux", Architecture: "amd64"}})
		if err != nil {
			t.Fatal(err)
		}
		d, m, _ := manifest(t, load(t, dst))
		if d.Digest != res.Digest || len(m.Layers) != 2 || res.MediaType != types.OCIManifestSchema1 || d.Platform.Architecture != "amd64" {
			t.Errorf("result %+v, manifest %+v", res, d)
		}
	})
	t.Run("no such platform", func(t *testing.T) {
		var none *ref.NoPlatformError
		_, err := Convert(t.Context(), src, "oci:"+t.TempDir(), Options{Platform: &ref.Platform{OS: "linux", Architecture: "s390x"}})
		if !errors.As(err, &none) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("indexes without end", func(t *testing.T) {
		d := index
		for range maxDepth {
			d = s.putJSON(types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{d}})
		}
		_, err := Convert(t.Context(), s.tag(d, "deep"), "oci:"+t.TempDir(), Options{})
		if !errors.Is(err, ref.ErrUnsupported) {
			t.Errorf("error %v", err)
		}
	})
}

// TestKept has layers that eStargz can't hold as they are.
func TestKept(t *testing.T) {
	sparse := makeTar(t, file("sparse"), []byte("hello"))
	sparse[156] = 'S' // of old GNU tar; then the map of its pieces
	copy(sparse[257:], "ustar  \x00")
	copy(sparse[386:], fmt.Sprintf("%011o\x00%011o\x00", 0, 5))
	copy(sparse[483:], fmt.Sprintf("%011o\x00", 5))
	checksum(sparse[:512])
	for _, tt := range []struct {
		name, want string
		tar        []byte
	}{
		{"sparse file", `"sparse" is an entry of type 'S'`, sparse},
		{"name twice", `"./a" is there twice`, makeTar(t, file("a"), []byte("1"), tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}, file("./a"), []byte("2"))},
		{"directory and file", `"a" is there twice`, makeTar(t, dir("a/"), file("a"), []byte("2"))},
		{"not UTF-8", `"\xff" is not UTF-8`, makeTar(t, tar.Header{Typeflag: tar.TypeReg, Name: "\xff", Format: tar.FormatGNU})},
		{"global header", `is an entry of type 'g'`, makeTar(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			src := s.tag(s.image(true, testLayer{types.DockerLayer, tt.tar}, testLayer{types.DockerLayer, sample(t)[0]}), "src")
			dst := "oci:" + t.TempDir()
			res, err := Convert(t.Context(), src, dst, Options{})
			if err != nil {
				t.Fatal(err)
			}
			l := res.Layers[0]
			if !strings.Contains(l.Kept, tt.want) || l.To.Digest != l.From.Digest || l.To.MediaType != types.OCILayer {
				t.Errorf("layer %+v, want kept for %q", l, tt.want)
			}
			if res.Layers[1].Kept != "" {
				t.Errorf("layer %+v", res.Layers[1])
			}
			repo := load(t, dst)
			_, m, _ := manifest(t, repo)
			config, err := repo.Manifest(t.Context(), m.Config)
			if err != nil {
				t.Fatal(err)
			}
			ids, err := readDiffIDs(config)
			if err != nil {
				t.Fatal(err)
			}
			if want := describe(v1.Descriptor{}, tt.tar, "").Digest; ids[0] != want || ids[1] == want {
				t.Errorf("diffIDs %v, want the first %v", ids, want)
			}
		})
	}
}

// checksum fixes the checksum of a tar header.
func checksum(h []byte) {
	copy(h[148:156], "        ")
	n := 0
	for _, b := range h {
		n += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", n))
}

func TestErrors(t *testing.T) {
	tars := sample(t)
	image := func(s *store) v1.Descriptor { return s.image(false, testLayer{types.OCILayer, tars[0]}) }
	// edit changes the manifest or configuration of an image.
	edit := func(s *store, d v1.Descriptor, f func(m *v1.Manifest, config map[string]any)) v1.Descriptor {
		_, m, _ := manifest(s.t, load(s.t, s.tag(d, "edit")))
		b, err := os.ReadFile(s.f.path(m.Config.Digest))
		if err != nil {
			s.t.Fatal(err)
		}
		var config map[string]any
		if err := json.Unmarshal(b, &config); err != nil {
			s.t.Fatal(err)
		}
		f(m, config)
		c := s.putJSON(m.Config.MediaType, config)
		m.Config = c
		return s.putJSON(m.MediaType, m)
	}
	ids := func(ids ...string) map[string]any { return map[string]any{"type": "layers", "diff_ids": ids} }
	zeros := "sha256:" + strings.Repeat("0", 64)
	for _, tt := range []struct {
		name string
		make func(s *store) v1.Descriptor
		want error
		text string
	}{
		{"wrong diffID", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(_ *v1.Manifest, c map[string]any) { c["rootfs"] = ids(zeros) })
		}, blob.ErrDigestMismatch, "the configuration says"},
		{"too few diffIDs", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(_ *v1.Manifest, c map[string]any) { c["rootfs"] = ids() })
		}, ref.ErrUnsupported, "1 layers and 0 diffIDs"},
		{"other rootfs", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(_ *v1.Manifest, c map[string]any) { c["rootfs"] = map[string]any{"type": "x"} })
		}, ref.ErrUnsupported, "rootfs"},
		{"no layer type", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(m *v1.Manifest, _ map[string]any) { m.Layers[0].MediaType = "text/plain" })
		}, ref.ErrUnsupported, "text/plain"},
		{"foreign layer", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(m *v1.Manifest, _ map[string]any) { m.Layers[0].MediaType = types.DockerForeignLayer })
		}, ref.ErrUnsupported, "foreign"},
		{"artifact", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(m *v1.Manifest, _ map[string]any) { m.Config.MediaType = "application/x" })
		}, ref.ErrUnsupported, "application/x"},
		{"layer not there", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(m *v1.Manifest, _ map[string]any) { m.Layers[0].Digest.Hex = strings.Repeat("0", 64) })
		}, fs.ErrNotExist, zeros},
		{"layer damaged", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(m *v1.Manifest, _ map[string]any) {
				name := s.f.path(m.Layers[0].Digest)
				b, err := os.ReadFile(name)
				if err != nil {
					s.t.Fatal(err)
				}
				b[4]++ // a time that gunzip doesn't look at
				if err := os.WriteFile(name, b, 0o600); err != nil {
					s.t.Fatal(err)
				}
			})
		}, blob.ErrDigestMismatch, "the blob is"},
		{"layer cut", func(s *store) v1.Descriptor {
			return edit(s, image(s), func(m *v1.Manifest, _ map[string]any) {
				b, err := os.ReadFile(s.f.path(m.Layers[0].Digest))
				if err != nil {
					s.t.Fatal(err)
				}
				m.Layers[0] = s.put(types.OCILayer, b[:len(b)/2])
			})
		}, io.ErrUnexpectedEOF, "unpacking"},
		{"layer no tar", func(s *store) v1.Descriptor {
			return s.image(false, testLayer{types.OCILayer, bytes.Repeat([]byte("x"), 2000)})
		}, tar.ErrHeader, "reading tar"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			src := s.tag(tt.make(s), "src")
			dst := t.TempDir()
			res, err := Convert(t.Context(), src, "oci:"+dst, Options{TempDir: t.TempDir()})
			if err == nil || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %+v, error %v, want %v and %q", res, err, tt.want, tt.text)
			}
			if _, err := os.Stat(filepath.Join(dst, "index.json")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the target has an index.json: %v", err)
			}
		})
	}
}

func TestArguments(t *testing.T) {
	s := newStore(t)
	src := s.tag(s.image(false, testLayer{types.OCILayer, sample(t)[0]}), "src")
	dst := "oci:" + t.TempDir()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name     string
		ctx      context.Context
		src, dst string
		o        Options
		want     error
	}{
		{"no source", t.Context(), "", dst, Options{}, ref.ErrInvalid},
		{"no target", t.Context(), src, "", Options{}, ref.ErrInvalid},
		{"target by digest", t.Context(), src, dst + "@sha256:" + strings.Repeat("0", 64), Options{}, ref.ErrInvalid},
		{"source not there", t.Context(), "oci:" + t.TempDir(), dst, Options{}, fs.ErrNotExist},
		{"negative chunk size", t.Context(), src, dst, Options{ChunkSize: -1}, nil},
		{"level 10", t.Context(), src, dst, Options{Level: 10}, nil},
		{"ended", cancelled, src, dst, Options{}, context.Canceled},
	} {
		if _, err := Convert(tt.ctx, tt.src, tt.dst, tt.o); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestProgress(t *testing.T) {
	s := newStore(t)
	src := s.tag(s.image(false, testLayer{types.OCILayer, sample(t)[0]}), "src")
	var steps []Step
	last := Event{}
	_, err := Convert(t.Context(), src, "oci:"+t.TempDir(), Options{Progress: func(e Event) {
		if len(steps) == 0 || steps[len(steps)-1] != e.Step {
			steps = append(steps, e.Step)
		}
		if e.Step == Fetching {
			last = e
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Step{Fetching, Building, Sending, Finished}, steps); diff != "" {
		t.Error(diff)
	}
	if last.Done != last.Total || last.Done == 0 {
		t.Errorf("last %+v", last)
	}
}

// TestEndsWithin ends a conversion at each step.
func TestEndsWithin(t *testing.T) {
	s := newStore(t)
	src := s.tag(s.image(false, testLayer{types.OCILayer, sample(t)[0]}, testLayer{types.OCILayer, sample(t)[2]}), "src")
	for _, step := range []Step{Fetching, Building, Sending} {
		t.Run(string(step), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tmp, dst := t.TempDir(), t.TempDir()
			t.Setenv("TMPDIR", tmp) // of the estargz package
			_, err := Convert(ctx, src, "oci:"+dst, Options{TempDir: tmp, Progress: func(e Event) {
				if e.Step == step {
					cancel()
				}
			}})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if _, err := os.Stat(filepath.Join(dst, "index.json")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the target has an index.json: %v", err)
			}
		})
	}
}
