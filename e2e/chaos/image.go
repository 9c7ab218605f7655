package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// blob is a blob of a registry.
type blob struct {
	digest string
	bytes  []byte
	whole  bool              // a layer without a table of contents
	sent   map[string][]bool // which of its bytes, by the image that they were sent for: guarded by the registry
}

func newBlob(b []byte, whole bool) *blob {
	return &blob{digest: digestOf(b), bytes: b, whole: whole, sent: make(map[string][]bool)}
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// file is a file of an image.
type file struct {
	name    string
	content []byte
}

// lay is a layer: its files, and itself.
type lay struct {
	files  []file
	desc   v1.Descriptor
	diffID v1.Hash
	blob   *blob
}

// image is an image, and what is true of it.
type image struct {
	name     string
	digest   string
	manifest []byte
	blobs    []*blob // its layers and its config
	files    []file
	bytes    int64 // of files
}

// makeLayer makes a layer of n files below a folder, of about size bytes in all, from random bytes: with a table of contents, or to be read whole.
func makeLayer(rnd *rand.Rand, folder string, n int, size int64, lazy bool) (*lay, error) {
	var files []file
	for i := range n {
		// most are small, a few have most of the bytes
		mean := size / int64(n) / 3
		if i%10 == 0 {
			mean = size / int64(n) * 7
		}
		f := file{fmt.Sprintf("%s/%03d", folder, i), make([]byte, mean/2+rnd.Int64N(mean+1))}
		for j := 0; j < len(f.content); j += 8 { // half of the bits, so that it is compressed
			v := rnd.Uint64() & 0x0f0f0f0f0f0f0f0f
			for k := j; k < min(j+8, len(f.content)); k++ {
				f.content[k] = byte(v)
				v >>= 8
			}
		}
		files = append(files, f)
	}
	return layerOf(folder, files, lazy)
}

// layerOf makes a layer of files, which are programs if they aren't below a folder.
func layerOf(folder string, files []file, lazy bool) (*lay, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	at := time.Unix(1700000000, 0)
	mode := int64(0o755)
	if folder != "" {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder + "/", Mode: mode, ModTime: at}); err != nil {
			return nil, err
		}
		mode = 0o644
	}
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.content)), Mode: mode, ModTime: at}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	l := &lay{files: files}
	return l, l.pack(b.Bytes(), lazy)
}

// pack compresses a layer's tar.
func (l *lay) pack(t []byte, lazy bool) error {
	diffID, toc := digestOf(t), ""
	var out bytes.Buffer
	if lazy {
		e, err := estargz.Build(io.NewSectionReader(bytes.NewReader(t), 0, int64(len(t))), estargz.WithChunkSize(64<<10), estargz.WithCompressionLevel(gzip.BestSpeed),
			estargz.WithParallelism(runtime.GOMAXPROCS(0)))
		if err != nil {
			return err
		}
		if _, err := io.Copy(&out, e); err != nil {
			return err
		}
		if err := e.Close(); err != nil {
			return err
		}
		diffID, toc = e.DiffID().String(), e.TOCDigest().String()
	} else {
		z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if _, err := z.Write(t); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
	}
	l.blob = newBlob(out.Bytes(), !lazy)
	var err error
	if l.diffID, err = v1.NewHash(diffID); err != nil {
		return err
	}
	d, err := v1.NewHash(l.blob.digest)
	l.desc = v1.Descriptor{MediaType: layerType, Digest: d, Size: int64(len(l.blob.bytes))}
	if lazy {
		l.desc.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: toc}
	}
	return err
}

// makeImage makes an image of layers, bottom first.
func makeImage(name string, layers ...*lay) (*image, error) {
	im := &image{name: name}
	var m v1.Manifest
	var cfg v1.ConfigFile
	cfg.OS, cfg.Architecture, cfg.RootFS.Type = "linux", runtime.GOARCH, "layers"
	cfg.Config.Cmd = []string{"/none"}
	for _, l := range layers {
		im.blobs = append(im.blobs, l.blob)
		im.files = append(im.files, l.files...)
		m.Layers = append(m.Layers, l.desc)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
	}
	for _, f := range im.files {
		im.bytes += int64(len(f.content))
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	config := newBlob(b, false)
	im.blobs = append(im.blobs, config)
	d, err := v1.NewHash(config.digest)
	if err != nil {
		return nil, err
	}
	m.SchemaVersion, m.MediaType = 2, manifestType
	m.Config = v1.Descriptor{MediaType: configType, Digest: d, Size: int64(len(b))}
	if im.manifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	im.digest = digestOf(im.manifest)
	return im, nil
}

// someImages makes the images that are killed and soaked: two of eStargz layers on one base, two of plain gzip on another, and one of
// both kinds. scale is about how many MiB each layer unpacks to.
func someImages(rnd *rand.Rand, scale int64) ([]*image, error) {
	var layers []*lay
	for _, l := range []struct {
		folder string
		files  int
		size   int64
		lazy   bool
	}{
		{"base", 120, 2, true}, {"a", 60, 1, true}, {"b", 60, 1, true},
		{"plain", 60, 2, false}, {"c", 40, 1, false}, {"d", 40, 1, false},
	} {
		made, err := makeLayer(rnd, l.folder, l.files, l.size*scale<<20, l.lazy)
		if err != nil {
			return nil, fmt.Errorf("making layer %s: %w", l.folder, err)
		}
		layers = append(layers, made)
	}
	var all []*image
	for _, i := range []struct {
		name string
		of   []int
	}{{"lazy-a", []int{0, 1}}, {"lazy-b", []int{0, 2}}, {"plain-c", []int{3, 4}}, {"plain-d", []int{3, 5}}, {"mixed", []int{0, 3, 1, 5}}} {
		var of []*lay
		for _, n := range i.of {
			of = append(of, layers[n])
		}
		im, err := makeImage(i.name, of...)
		if err != nil {
			return nil, fmt.Errorf("making image %s: %w", i.name, err)
		}
		all = append(all, im)
	}
	return all, nil
}
