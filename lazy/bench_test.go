package lazy

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// BenchmarkOpen opens an image of three eStargz layers with 60,000 files, into an empty cache and again after a restart. Beside what is
// allocated in all it tells what stays in use for each inode.
func BenchmarkOpen(b *testing.B) {
	const files = 20_000
	r := newRepo()
	var m v1.Manifest
	cfg := v1.ConfigFile{OS: "linux", Architecture: "amd64"}
	for l := range 3 {
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		for i := range files {
			content := fmt.Sprintf("%d of layer %d", i, l)
			h := &tar.Header{Name: fmt.Sprintf("usr/lib/node_modules/package%d/%d/src/module-%d.js", i/20, l, i), Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}
			if err := w.WriteHeader(h); err != nil {
				b.Fatal(err)
			}
			if _, err := io.WriteString(w, content); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw.Bytes()), 0, int64(raw.Len())))
		if err != nil {
			b.Fatal(err)
		}
		z, err := io.ReadAll(built)
		if err != nil {
			b.Fatal(err)
		}
		d := r.put(z, types.OCILayer)
		d.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: built.TOCDigest().String()}
		m.Layers = append(m.Layers, d)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: built.DiffID().Encoded()})
		built.Close()
	}
	m.SchemaVersion, m.MediaType, m.Config = 2, types.OCIManifestSchema1, r.put(asJSON(b, cfg), types.OCIConfigJSON)
	r.root = r.put(asJSON(b, m), types.OCIManifestSchema1)
	name, err := ref.Parse("localhost/a:1")
	if err != nil {
		b.Fatal(err)
	}
	open := func(b *testing.B, dir string) (c *Cache, im *Image, end func()) {
		st, err := store.Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := st.Lock(); err != nil {
			b.Fatal(err)
		}
		c = NewCache(st, Options{})
		o, err := c.Open(context.Background(), name, r, OpenOptions{Platform: amd64})
		if err != nil {
			b.Fatal(err)
		}
		return c, o.Image, func() { c.Close(); st.Close() }
	}
	b.Run("cold", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dir, err := os.MkdirTemp(b.TempDir(), "")
			if err != nil {
				b.Fatal(err)
			}
			before := inUse()
			_, im, end := open(b, dir)
			b.ReportMetric(float64(inUse()-before)/float64(im.Info().Inodes), "kept-B/inode")
			end()
			os.RemoveAll(dir)
		}
	})
	b.Run("again", func(b *testing.B) {
		dir := b.TempDir()
		_, _, end := open(b, dir)
		end()
		b.ReportAllocs()
		for b.Loop() {
			_, _, end := open(b, dir)
			end()
		}
	})
}

// inUse is how many bytes of the heap are in use.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
