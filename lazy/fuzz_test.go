package lazy

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// hostileRepo gives out documents in the order they are asked for, and the blobs of another repo. That documents are what their
// descriptors say is a repo's to check, so here they are.
type hostileRepo struct {
	*memRepo
	docs [][]byte
}

func (r *hostileRepo) Probe(context.Context) (v1.Hash, error) { return v1.Hash{}, nil }

func (r *hostileRepo) Resolve(context.Context) (v1.Descriptor, error) { return v1.Descriptor{}, nil }

func (r *hostileRepo) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	if len(r.docs) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	b := r.docs[0]
	r.docs = r.docs[1:]
	return b, nil
}

func (r *hostileRepo) Blob(d v1.Descriptor) blob.Source {
	if int64(len(r.blobs[d.Digest])) != d.Size {
		return absent(d.Size) // as a registry has it
	}
	return r.memRepo.Blob(d)
}

// absent is a blob that isn't there, of so many bytes.
type absent int64

func (b absent) Size() int64                                              { return int64(b) }
func (absent) Fetch(context.Context, int64, int64) (io.ReadCloser, error) { return nil, os.ErrNotExist }

// FuzzManifest opens images whose index, manifest and config are anything; the layers that they may name are those of a good image. What
// opens holds together, what opens under the good image's key is that image, and the cache has nothing left over.
func FuzzManifest(f *testing.F) {
	repo := newRepo()
	m, cfg := goodManifest(f, repo)
	goodKey, goodMetadata := openGood(f, repo)
	manifest, config := asJSON(f, m), asJSON(f, cfg)
	index := asJSON(f, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{
		{MediaType: types.OCIManifestSchema1, Size: 3, Digest: m.Config.Digest, Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}},
		{MediaType: types.OCIManifestSchema1, Size: 3, Digest: repo.root.Digest, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	}})
	f.Add(manifest, config, []byte{}, false)
	f.Add(index, manifest, config, true)
	f.Add(index, index, index, false)
	upsideDown, noTOC := m, m
	upsideDown.Layers = []v1.Descriptor{m.Layers[1], m.Layers[0]}
	noTOC.Layers = []v1.Descriptor{m.Layers[0], {MediaType: types.OCILayer, Size: m.Layers[1].Size, Digest: m.Layers[1].Digest}}
	for _, other := range []v1.Manifest{upsideDown, noTOC, {Config: m.Config}} {
		f.Add(asJSON(f, other), config, []byte{}, true)
	}
	f.Add([]byte(`{"layers":[{}]}`), []byte(`{"rootfs":{"diff_ids":["sha256:00"]}}`), []byte{}, false)
	f.Add([]byte(`{}`), []byte(`{}`), []byte{}, true)
	f.Fuzz(func(t *testing.T, first, second, third []byte, strict bool) {
		dir := t.TempDir()
		st, err := store.Open(dir)
		if err == nil {
			err = st.Lock()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		c := NewCache(st, Options{})
		defer c.Close()
		name, err := ref.Parse("localhost/x")
		if err != nil {
			t.Fatal(err)
		}
		r := &hostileRepo{repo, [][]byte{first, second, third}}
		o, err := c.Open(context.Background(), name, r, OpenOptions{Platform: amd64, Pull: PullAlways, Strict: strict})
		c.trims.Wait()
		if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
		if err != nil {
			if all, err := st.Images(); err != nil || len(all) > 0 {
				t.Errorf("an image that doesn't open is in the cache: %v, %v", all, err)
			}
			return
		}
		info := o.Image.Info()
		got := metadata(t, o.Image)
		if info.Key == goodKey && !bytes.Equal(got, goodMetadata) {
			t.Errorf("another image under the good one's key")
		}
		if len(o.Manifest) != 2*sha256.Size || !json.Valid(o.Config) {
			t.Errorf("manifest %q, config %q", o.Manifest, o.Config)
		}
		again, err := c.Open(context.Background(), name, &hostileRepo{repo, [][]byte{first, second, third}}, OpenOptions{Platform: amd64, Pull: PullAlways})
		if err != nil || again.Image != o.Image || again.Manifest != o.Manifest || !bytes.Equal(again.Config, o.Config) {
			t.Errorf("opened again: %+v, %v; before %+v", again, err, o)
		}
	})
}

// goodManifest puts an image of two layers, one streamed and one lazy, in a repo, and gives its manifest and its config.
func goodManifest(f *testing.F, repo *memRepo) (m v1.Manifest, cfg v1.ConfigFile) {
	f.Helper()
	for i, name := range []string{"a", "b"} {
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		body := random(3000, uint64(i))
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))})
		if err == nil {
			_, err = w.Write(body)
		}
		if err = errors.Join(err, w.Close()); err != nil {
			f.Fatal(err)
		}
		z, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw.Bytes()), 0, int64(raw.Len())), estargz.WithChunkSize(1000))
		if err != nil {
			f.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err = errors.Join(err, z.Close()); err != nil {
			f.Fatal(err)
		}
		d := repo.put(b, types.OCILayer)
		if i > 0 {
			d.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: z.TOCDigest().String()}
		}
		m.Layers = append(m.Layers, d)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: z.DiffID().Encoded()})
	}
	m.SchemaVersion, m.MediaType, cfg.OS, cfg.Architecture = 2, types.OCIManifestSchema1, "linux", "amd64"
	m.Config = repo.put(asJSON(f, cfg), types.OCIConfigJSON)
	repo.root = repo.put(asJSON(f, m), types.OCIManifestSchema1)
	return m, cfg
}

func asJSON(f testing.TB, v any) []byte {
	f.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// openGood opens what a repo has, and gives its key and metadata.
func openGood(f *testing.F, repo *memRepo) (store.Key, []byte) {
	f.Helper()
	st, err := store.Open(f.TempDir())
	if err == nil {
		err = st.Lock()
	}
	if err != nil {
		f.Fatal(err)
	}
	c := NewCache(st, Options{})
	name, err := ref.Parse("localhost/good")
	if err != nil {
		f.Fatal(err)
	}
	o, err := c.Open(context.Background(), name, repo, OpenOptions{Platform: amd64, Pull: PullAlways})
	if err != nil {
		f.Fatal(err)
	}
	key, b := o.Image.Info().Key, metadata(f, o.Image)
	if err := errors.Join(c.Close(), st.Close()); err != nil {
		f.Fatal(err)
	}
	return key, b
}

// metadata gives an image's superblock and metadata, checked.
func metadata(t testing.TB, im *Image) []byte {
	t.Helper()
	info := im.Info()
	file, err := os.Open(im.File())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := erofs.Check(file, info.Size); err != nil {
		t.Errorf("the image: %v", err)
	}
	b := make([]byte, store.BlockSize+info.Size-info.MetaOff)
	if _, err := file.ReadAt(b[:store.BlockSize], 0); err != nil {
		t.Fatal(err)
	}
	if _, err := file.ReadAt(b[store.BlockSize:], info.MetaOff); err != nil {
		t.Fatal(err)
	}
	return b
}
