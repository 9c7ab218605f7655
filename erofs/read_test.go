package erofs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// mkfs makes an image with mkfs.erofs.
func mkfs(t *testing.T, files map[string]string) *erofs.Image {
	t.Helper()
	tool, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Fatalf("mkfs.erofs is needed (package erofs-utils): %v", err)
	}
	src, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for name, content := range files {
		p := filepath.Join(src, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(tool, image, src).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// TestFSForeign reads what mkfs.erofs wrote, which has the ends of files beside their inodes.
func TestFSForeign(t *testing.T) {
	files := map[string]string{"tail": strings.Repeat("tail", 1025), "d/small": "small", "d/e/none": "", "whole": strings.Repeat("w", 8192)}
	im := mkfs(t, files)
	f := im.FS()
	for name, want := range files {
		got, err := f.ReadFile(name)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		info, err := f.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		in := *info.Sys().(*erofs.Inode)
		for _, at := range []int{0, 1, 4095, 4096, 4099, len(want) - 1} {
			for _, n := range []int{0, 1, 3, 4096, 5000} {
				p := make([]byte, n)
				got, err := im.ReadFileAt(in, p, int64(at))
				wantN, wantErr := bytes.NewReader([]byte(want)).ReadAt(p, int64(at))
				if got != wantN || at >= 0 && at < len(want) && err != wantErr || !strings.HasPrefix(want[min(max(at, 0), len(want)):], string(p[:got])) {
					t.Errorf("%s: %d bytes at %d: got %d, %v", name, n, at, got, err)
				}
			}
		}
	}
	if err := fstest.TestFS(f, "tail", "d/small", "d/e/none", "whole"); err != nil {
		t.Error(err)
	}
}

// TestReadFileAt has the edges of reading.
func TestReadFileAt(t *testing.T) {
	fx, im := openFixture(t, []tree.Entry{reg("f", 5000, 1), reg("huge", 9*gib, 2), dir("d", 0o755)})
	f, d := find(t, im, "f"), find(t, im, "d")
	for _, c := range []struct {
		name string
		in   erofs.Inode
		n    int
		off  int64
		want int
		is   error
	}{
		{"all", f, 5000, 0, 5000, nil},
		{"nothing", f, 0, 17, 0, nil},
		{"up to the end", f, 10, 4990, 10, nil},
		{"over the end", f, 10, 4995, 5, io.EOF},
		{"at the end", f, 10, 5000, 0, io.EOF},
		{"behind the end", f, 10, 1<<63 - 1, 0, io.EOF},
		{"before the start", f, 10, -1, 0, fs.ErrInvalid},
		{"a directory", d, 10, 0, 0, fs.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n, err := im.ReadFileAt(c.in, make([]byte, c.n), c.off); n != c.want || !errors.Is(err, c.is) {
				t.Errorf("%d bytes, %v; want %d, %v", n, err, c.want, c.is)
			}
		})
	}
	file, err := im.FS().Open("huge")
	if err != nil {
		t.Fatal(err)
	}
	if err := fx.checkContent(file.(io.ReaderAt), tree.Content{Layer: 0, Index: 2}, 9*gib); err != nil {
		t.Error(err)
	}
	if at, err := file.(io.Seeker).Seek(-1, io.SeekEnd); at != 9*gib-1 || err != nil {
		t.Errorf("sought to %d, %v", at, err)
	}
	if b, err := io.ReadAll(file); len(b) != 1 || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// brokenReader fails beyond the metadata's start.
type brokenReader struct {
	*sparse
	from, to int64
}

func (r brokenReader) ReadAt(p []byte, off int64) (int, error) {
	if off < r.to && off+int64(len(p)) > r.from {
		return 0, io.ErrNoProgress
	}
	return r.sparse.ReadAt(p, off)
}

// TestFSReadErrors has a disk that fails.
func TestFSReadErrors(t *testing.T) {
	s := newFixture(t, []tree.Entry{reg("f", 3*mib, 1)}).sparse(t)
	im, err := erofs.Open(brokenReader{s, 4 * mib, 5 * mib}, s.size)
	if err != nil {
		t.Fatal(err)
	}
	var pe *fs.PathError
	b, err := im.FS().ReadFile("f")
	if !errors.Is(err, io.ErrNoProgress) || !errors.As(err, &pe) || len(b) != 2*mib {
		t.Errorf("ReadFile: %d bytes, %v", len(b), err)
	}
	f, err := im.FS().Open("f")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, f); !errors.Is(err, io.ErrNoProgress) || !errors.As(err, &pe) || pe.Path != "f" || n > 2*mib {
		t.Errorf("reading: %d bytes, %v", n, err)
	}
	im, err = erofs.Open(brokenReader{s, s.metaOff, s.size}, s.size)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []func() error{
		func() error { _, err := im.FS().Open("f"); return err },
		func() error { _, err := im.FS().ReadDir("."); return err },
	} {
		if err := op(); !errors.Is(err, io.ErrNoProgress) || errors.Is(err, erofs.ErrInvalid) {
			t.Errorf("metadata that can't be read: %v", err)
		}
	}
}
