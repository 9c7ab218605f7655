package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pexfs/pex/erofs"
)

// words makes n bytes that shrink, but for runs of noise in them.
func words(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 5))
	var b bytes.Buffer
	for b.Len() < n {
		if r.IntN(2000) == 0 {
			for range r.IntN(30_000) {
				b.WriteByte(byte(r.Uint32()))
			}
		}
		fmt.Fprintf(&b, "%d words, ", r.IntN(3000))
	}
	return b.Bytes()[:n]
}

// TestReadOthers reads compressed images that mkfs.erofs makes: with compact indexes, clusters of one block and of several, that
// begin anywhere in a block. What this package doesn't read is ErrUnsupported.
func TestReadOthers(t *testing.T) {
	tool, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Fatalf("mkfs.erofs is needed (package erofs-utils): %v", err)
	}
	dir := t.TempDir()
	contents := map[string][]byte{}
	for i, n := range []int{0, 1, 4095, 4096, 4097, 8192, 20_000, 100_000, 131_072, 500_000, 3_000_000} {
		contents[fmt.Sprintf("words%d", n)] = words(n, uint64(i))
		contents[fmt.Sprintf("zeros%d", n)] = make([]byte, n)
	}
	for name, b := range contents {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name        string
		args        []string
		unsupported bool
	}{
		{"lz4", []string{"-zlz4"}, false},
		{"lz4 in big clusters", []string{"-zlz4", "-C65536"}, false},
		{"lz4hc in clusters of 1 MiB", []string{"-zlz4hc,9", "-C1048576"}, false},
		{"clusters without padding", []string{"-zlz4", "-Elegacy-compress"}, true},
		{"inline ends of compressed files", []string{"-zlz4", "-Eztailpacking"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(tool, append(c.args, name, dir)...).CombinedOutput(); err != nil {
				t.Fatalf("mkfs.erofs: %v\n%s", err, out)
			}
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			im, err := erofs.Open(f, st.Size())
			if c.unsupported {
				if err == nil {
					_, err = fs.ReadFile(im.FS(), "words500000")
				}
				if !errors.Is(err, erofs.ErrUnsupported) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range contents {
				got, err := fs.ReadFile(im.FS(), name)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
				}
				r := rand.New(rand.NewPCG(uint64(len(want)), 1))
				g, err := im.FS().Open(name)
				if err != nil {
					t.Fatal(err)
				}
				for range min(len(want), 20) {
					off := r.IntN(len(want))
					p := make([]byte, 1+r.IntN(min(len(want)-off, 50_000)))
					if n, err := g.(io.ReaderAt).ReadAt(p, int64(off)); n != len(p) || !bytes.Equal(p, want[off:off+n]) {
						t.Errorf("%s: %d bytes at %d: %d, %v", name, len(p), off, n, err)
					}
				}
			}
			if err := erofs.Check(f, st.Size()); err == nil {
				t.Error("Check passes an image that this project has not made")
			}
		})
	}
}
