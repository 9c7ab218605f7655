package e2e

import (
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// TestRealImages compares a Debian that umoci made, and our converter's eStargz of it, four ways: the tree that `pexfs image build`
// writes, the view over FUSE, read cold, and the kernel's mount of the sealed image must be what umoci unpacks, and what mkfs.erofs
// makes of the layers' tars where it is new enough to read tars (1.8).
//
// PEX_IMAGES names other OCI layouts, separated by spaces; LAYOUT=OTHER has umoci unpack OTHER, if it doesn't know what LAYOUT
// is compressed with.
func TestRealImages(t *testing.T) {
	image := filepath.Join(buildDir(t), "image")
	names := strings.Fields(os.Getenv("PEX_IMAGES"))
	if len(names) == 0 {
		names = []string{filepath.Join(image, "demo"), filepath.Join(image, "demo-estargz")}
	}
	for _, name := range names {
		layout, judge, ok := strings.Cut(name, "=")
		if !ok {
			judge = layout
		}
		t.Run(filepath.Base(layout), func(t *testing.T) {
			l := newLab(t)
			want := umociTree(t, judge)
			for _, name := range []string{"/.prefetch.landmark", "/.no.prefetch.landmark", "/stargz.index.json"} {
				delete(want, name) // of an eStargz: they are no part of the tree, and umoci doesn't know
			}
			want = want.counted().seconds().rootless()
			check := func(what string, got files) {
				t.Helper()
				if d := diff(want, got.counted().seconds().rootless()); d != "" {
					t.Errorf("-umoci +%s\n%s", what, d)
				}
			}
			if layers := gzippedTars(t, judge); mkfsReadsTars(t) && len(layers) > 0 {
				// it gives directories that a layer only implies 0777 and the present, and those that a layer lists again their old time
				if d := diff(want.dirless(), mkfsTars(t, layers).counted().seconds().dirless()); d != "" {
					t.Errorf("-umoci +mkfs.erofs --tar\n%s", d)
				}
			}
			built := filepath.Join(t.TempDir(), "built.erofs")
			var b struct{ Root string }
			decode(t, l.do("pexfs", "image", "build", "-q", "--json", "-o", built, "oci:"+layout), &b)
			check("image build", l.viewed(built))
			dir := l.mount("--no-fill", "oci:"+layout)
			check("cold view", list(t, dir))
			s := l.seal(dir)
			if s.Root != b.Root {
				t.Errorf("the sealed image has root %s, the one that was built %s", s.Root, b.Root)
			}
			check("kernel's mount", l.kernel(s.file))
			l.do("pexfs", "image", "check", "-q", s.file, "--against", "oci:"+layout)
			t.Logf("%d names, root %s", len(want), s.Root)
		})
	}
}

// rootless is the tree without what is said of its root: where no layer lists it, unpackers leave there what they like.
func (fs files) rootless() files {
	out := fs.rootTimeless()
	f := out[""]
	f.Mode = unix.S_IFDIR
	out[""] = f
	return out
}

// dirless is the tree without what is said of directories but for their names and link counts.
func (fs files) dirless() files {
	out := maps.Clone(fs)
	for p, f := range fs {
		if f.Mode&unix.S_IFMT == unix.S_IFDIR {
			out[p] = file{Mode: unix.S_IFDIR, Nlink: f.Nlink}
		}
	}
	return out
}

// gzippedTars are the layers of an OCI layout, none if they aren't all gzip.
func gzippedTars(t *testing.T, layout string) (layers []tarLayer) {
	t.Helper()
	var ix v1.IndexManifest
	var m v1.Manifest
	readLayoutJSON(t, &ix, layout, "index.json")
	readLayoutJSON(t, &m, layout, "blobs/sha256", ix.Manifests[0].Digest.Hex)
	for _, d := range m.Layers {
		if d.MediaType != types.OCILayer {
			return nil
		}
		f, err := os.Open(filepath.Join(layout, "blobs/sha256", d.Digest.Hex))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		layers = append(layers, tarLayer{tar: b})
	}
	return layers
}

// mkfsReadsTars tells whether mkfs.erofs is new enough to read tars and to add layers to an image.
func mkfsReadsTars(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command("mkfs.erofs", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	return bytes.Contains(out, []byte("--tar=")) && bytes.Contains(out, []byte("--incremental="))
}

// mkfsTars is what the kernel shows of the image that mkfs.erofs makes of layers.
func mkfsTars(t *testing.T, layers []tarLayer) files {
	t.Helper()
	dir := t.TempDir()
	image, name := filepath.Join(dir, "mkfs.erofs"), filepath.Join(dir, "layer.tar")
	for i, l := range layers {
		args := []string{"--quiet", "-Eforce-inode-extended", "--tar=f", "--aufs", "--ovlfs-strip=1"}
		if i > 0 {
			args = append(args, "--incremental=data")
		}
		if err := os.WriteFile(name, l.tar, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs.erofs", append(args, image, name)...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.erofs: layer %d: %v\n%s", i, err, out)
		}
	}
	return kernelTree(t, image)
}
