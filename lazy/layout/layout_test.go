package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/ref"
)

// folder is a layout being made.
type folder struct {
	t   *testing.T
	dir string
	ix  v1.IndexManifest
}

func newFolder(t *testing.T) *folder {
	f := &folder{t: t, dir: t.TempDir(), ix: v1.IndexManifest{SchemaVersion: 2}}
	f.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	f.index()
	return f
}

func (f *folder) write(name string, b []byte) {
	f.t.Helper()
	name = filepath.Join(f.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, b, 0o600)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) index() {
	f.t.Helper()
	b, err := json.Marshal(f.ix)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write("index.json", b)
}

func (f *folder) blob(b []byte, mt types.MediaType) v1.Descriptor {
	f.t.Helper()
	h, size, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(filepath.Join("blobs", h.Algorithm, h.Hex), b)
	return v1.Descriptor{MediaType: mt, Digest: h, Size: size}
}

// list puts d into index.json under a name, or without one.
func (f *folder) list(d v1.Descriptor, name string) v1.Descriptor {
	f.t.Helper()
	if name != "" {
		d.Annotations = map[string]string{RefName: name}
	}
	f.ix.Manifests = append(f.ix.Manifests, d)
	f.index()
	return d
}

func (f *folder) open(suffix string) *Repo {
	f.t.Helper()
	r, err := ref.Parse("oci:" + f.dir + suffix)
	if err != nil {
		f.t.Fatal(err)
	}
	repo, err := Open(r)
	if err != nil {
		f.t.Fatal(err)
	}
	return repo
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, b []byte) blob.Source {
		f := newFolder(t)
		return f.open("").Blob(f.blob(b, types.OCILayer))
	})
}

func TestResolve(t *testing.T) {
	f := newFolder(t)
	v1Image := f.blob([]byte(`{"schemaVersion":2,"config":{"a":1}}`), types.OCIManifestSchema1)
	v2Image := f.blob([]byte(`{"schemaVersion":2,"config":{"a":2}}`), types.OCIManifestSchema1)
	other := f.blob([]byte(`{}`), "application/x-artifact")
	nested := f.blob([]byte(`{"schemaVersion":2,"config":{"a":3}}`), types.OCIManifestSchema1)
	f.list(v1Image, "v1")
	f.list(v1Image, "also")
	f.list(v2Image, "v2")
	f.list(v1Image, "twice")
	f.list(v2Image, "twice")
	f.list(other, "artifact")
	single := newFolder(t)
	single.list(single.blob([]byte(`{}`), "application/x-artifact"), "x")
	only := single.list(single.blob([]byte(`{"schemaVersion":2,"manifests":[]}`), types.OCIImageIndex), "")
	for _, tt := range []struct {
		name string
		f    *folder
		at   string
		want v1.Hash
		miss bool // fs.ErrNotExist
		text string
	}{
		{"by name", f, ":v1", v1Image.Digest, false, ""},
		{"by second name", f, ":also", v1Image.Digest, false, ""},
		{"by digest", f, "@" + v2Image.Digest.String(), v2Image.Digest, false, ""},
		{"by digest, not listed", f, "@" + nested.Digest.String(), nested.Digest, false, ""},
		{"by digest, not there", f, "@sha256:" + strings.Repeat("0", 64), v1.Hash{}, true, ""},
		{"by digest, no image", f, "@" + other.Digest.String(), v1.Hash{}, false, "unsupported kind of image"},
		{"no such name", f, ":v3", v1.Hash{}, true, `there are "v1", "also", "v2", "twice", "artifact"`},
		{"name of an artifact", f, ":artifact", v1.Hash{}, true, "no image of that name"},
		{"name of two", f, ":twice", v1.Hash{}, false, "2 images of that name"},
		{"several", f, "", v1.Hash{}, false, "2 images, one must be named"},
		{"only", single, "", only.Digest, false, ""},
		{"empty", newFolder(t), "", v1.Hash{}, true, "no image"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.f.open(tt.at).Resolve(t.Context())
			if tt.miss || tt.text != "" {
				if err == nil || errors.Is(err, fs.ErrNotExist) != tt.miss || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %v, want %q, not there: %v", err, tt.text, tt.miss)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.Digest); diff != "" {
				t.Error(diff)
			}
			if _, err := tt.f.open(tt.at).Manifest(t.Context(), got); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBrokenLayouts(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(f *folder)
		text string
	}{
		{"no oci-layout", func(f *folder) { os.Remove(filepath.Join(f.dir, "oci-layout")) }, "not an OCI layout"},
		{"version 2", func(f *folder) { f.write("oci-layout", []byte(`{"imageLayoutVersion":"2.0.0"}`)) }, `version "2.0.0"`},
		{"oci-layout not JSON", func(f *folder) { f.write("oci-layout", []byte("x")) }, "invalid character"},
		{"no index.json", func(f *folder) { os.Remove(filepath.Join(f.dir, "index.json")) }, "index.json"},
		{"index.json not JSON", func(f *folder) { f.write("index.json", []byte("{")) }, "index.json"},
		{"schema 1", func(f *folder) { f.write("index.json", []byte("{}")) }, "schema version 0"},
		{"huge index.json", func(f *folder) { f.write("index.json", bytes.Repeat([]byte(" "), maxManifest+1)) }, "more than"},
		{"bad digest", func(f *folder) {
			f.write("index.json", []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x"}]}`))
		}, "hash"},
		{"no digest", func(f *folder) {
			f.write("index.json", []byte(`{"schemaVersion":2,"manifests":[{"size":1}]}`))
		}, "hash"},
		{"negative size", func(f *folder) {
			f.list(v1.Descriptor{Size: -1, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}, "")
		}, "its size is -1"},
		{"index.json is a pipe", func(f *folder) {
			name := filepath.Join(f.dir, "index.json")
			if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)); err != nil {
				f.t.Fatal(err)
			}
		}, "not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFolder(t)
			tt.make(f)
			_, err := f.open("").Resolve(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %q", err, tt.text)
			}
		})
	}
}

func TestBrokenBlobs(t *testing.T) {
	f := newFolder(t)
	r := f.open("")
	d := f.blob([]byte("abc"), types.OCIConfigJSON)
	other := f.blob([]byte("def"), types.OCIConfigJSON)
	f.write(filepath.Join("blobs", "sha256", other.Digest.Hex), []byte("xyz"))
	short := d
	short.Size = 4
	for _, tt := range []struct {
		name     string
		d        v1.Descriptor
		want     error
		fetchToo bool
	}{
		{"other content", other, blob.ErrDigestMismatch, false},
		{"shorter", short, blob.ErrDigestMismatch, true},
		{"not there", v1.Descriptor{Size: 3, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}, fs.ErrNotExist, true},
		{"path as digest", v1.Descriptor{Size: 3, Digest: v1.Hash{Algorithm: "..", Hex: "oci-layout"}}, nil, true},
		{"path as hex", v1.Descriptor{Size: 3, Digest: v1.Hash{Algorithm: "sha256", Hex: "../../oci-layout"}}, nil, true},
		{"huge", v1.Descriptor{Size: 1 << 50, Digest: d.Digest}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := r.Manifest(t.Context(), tt.d); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Manifest: error %v, want %v", err, tt.want)
			}
			if !tt.fetchToo {
				return
			}
			if _, err := r.Blob(tt.d).Fetch(t.Context(), 0, 3); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Fetch: error %v, want %v", err, tt.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Resolve(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Resolve: error %v", err)
	}
	if _, err := r.Manifest(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("Manifest: error %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	r, err := ref.Parse("python")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r); err == nil {
		t.Error("a registry was opened as a layout")
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,`+
		`"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","annotations":{"org.opencontainers.image.ref.name":"v1"}}]}`), "v1")
	f.Add([]byte(`{"schemaVersion":2,"manifests":null}`), "")
	f.Fuzz(func(t *testing.T, b []byte, tag string) {
		ix, err := parseIndex(b)
		if err != nil {
			return
		}
		d, err := pick(ix, ref.Ref{Transport: ref.OCI, Dir: "x", Tag: tag})
		if err != nil {
			return
		}
		if d.Size < 0 || tag != "" && d.Annotations[RefName] != tag {
			t.Fatalf("picked %+v for %q", d, tag)
		}
		if p, err := (&Repo{ref.Ref{Dir: "x"}}).path(d.Digest); err != nil || !filepath.IsLocal(p) || filepath.Dir(p) != "x/blobs/"+d.Digest.Algorithm {
			t.Fatalf("picked %v at %q, %v", d.Digest, p, err)
		}
	})
}
