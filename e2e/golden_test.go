package e2e

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "make the fixtures of TestGolden anew, and their roots")

// TestGolden makes the images of testdata/golden, one image in all forms, by `image build`, by completing a mount, and by a mount of which all
// was read backwards before. The Merkle roots are those of testdata/golden/roots: the bytes of an image depend on nothing else. Between forms
// only what names the image differs, its UUID, and the superblock's checksum with it.
func TestGolden(t *testing.T) {
	const golden = "testdata/golden"
	if *update {
		for _, f := range goldenForms() {
			dir := filepath.Join(golden, string(f))
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := writeImage(dir, f, packing{chunk: 1 << 20}, tars(goldenLayers())); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got strings.Builder
	fmt.Fprintf(&got, "# The Merkle roots of the images of this folder. They change with the layout's version, and with nothing else.\n")
	same := ""
	for _, f := range goldenForms() {
		t.Run(string(f), func(t *testing.T) {
			image := "oci:" + filepath.Join(golden, string(f))
			l, file := newLab(t), filepath.Join(t.TempDir(), "image.erofs")
			var b struct{ Root string }
			decode(t, l.do("pexfs", "image", "build", "-q", "--json", "--platform", "linux/amd64", "-o", file, image), &b)
			fmt.Fprintf(&got, "%s %s\n", f, b.Root)
			if s := l.seal(l.mount("--platform", "linux/amd64", image)); s.Root != b.Root {
				t.Errorf("built with root %s, completed with %s", b.Root, s.Root)
			}
			l = newLab(t)
			dir := l.mount("--no-fill", "--platform", "linux/amd64", image)
			readBackwards(t, dir)
			if s := l.seal(dir); s.Root != b.Root {
				t.Errorf("built with root %s, read backwards %s", b.Root, s.Root)
			}
			sum := sumButName(t, file)
			if same == "" {
				same = sum
				fmt.Fprintf(&got, "all %s but for superblock\n", sum)
			}
			if sum != same {
				t.Errorf("the bytes differ from those of %s, not only in what names the image", goldenForms()[0])
			}
		})
	}
	name := filepath.Join(golden, "roots")
	if *update {
		if err := os.WriteFile(name, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("-golden +got\n%s", d)
	}
}

func goldenForms() []form { return []form{formGzip, formZstd, formStargz, formChunked} }

// goldenLayers is the fixture with contents that compress well, as they are committed.
func goldenLayers() [][]entry {
	layers := fixture()
	for _, l := range layers {
		for i, e := range l {
			if n := len(e.content.bytes()); n > 1000 {
				line := fmt.Appendf(nil, "content of %d bytes\n", n)
				l[i].content = whole(bytes.Repeat(line, n/len(line)+1)[:n])
			}
		}
	}
	return layers
}

// readBackwards reads all files of a folder, the last first, each from its end.
func readBackwards(t *testing.T, dir string) {
	t.Helper()
	names := regularFiles(t, dir)
	slices.Reverse(names)
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5000)
		for off := st.Size(); off > 0; {
			off = max(off-int64(len(b)), 0)
			if _, err := f.ReadAt(b[:min(int64(len(b)), st.Size()-off)], off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// regularFiles lists the regular files below a folder.
func regularFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// sumButName is the SHA-256 of an image file without the UUID and the checksum of its superblock.
func sumButName(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const super, checksum, uuid = 1024, 4, 48
	clear(b[super+checksum:][:4])
	clear(b[super+uuid:][:16])
	return fmt.Sprintf("%x", sha256.Sum256(b))
}
