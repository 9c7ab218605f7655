package compress_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/compress"
	"github.com/pexfs/pex/lazy/tree"
)

const segment = 128 << 10

// files is a tree of contents of all sizes that are special, with all mixtures of what shrinks and what doesn't.
func files() []file {
	var all []file
	add := func(name string, b []byte) { all = append(all, file{name, b}) }
	for _, n := range []int{0, 1, 12, 13, 500, 3900, 4032, 4033, 4095, 4096, 4097, 4200, 5000, 8191, 8192, 8193, 12288, 12289, 20_000,
		segment - 1, segment, segment + 1, segment + 4095, segment + 4096, segment + 4097, segment + 8193, 2*segment - 1, 2 * segment, 3*segment + 5000} {
		add(fmt.Sprintf("text/%d", n), text(n, uint64(n)))
		add(fmt.Sprintf("noise/%d", n), noise(n, uint64(n)))
		add(fmt.Sprintf("zero/%d", n), make([]byte, n))
	}
	half := segment / 2
	add("mixed/text noise", join(text(segment, 1), noise(segment, 2)))
	add("mixed/noise text", join(noise(segment, 3), text(segment, 4)))
	add("mixed/noise text tail", join(noise(segment, 5), text(segment, 6), text(5001, 7)))
	add("mixed/text noise tail", join(text(segment, 8), noise(segment, 9), noise(4099, 10)))
	add("mixed/text noise text", join(text(segment, 11), noise(segment, 12), text(100, 13)))
	add("mixed/in one segment", join(text(half, 14), noise(half, 15)))
	add("mixed/just", join(noise(segment-2*4096, 16), make([]byte, 2*4096)))
	add("mixed/just not", join(noise(segment-4096, 17), make([]byte, 4096)))
	for i := range 300 {
		add(fmt.Sprintf("many/%03d", i), text(i*37, uint64(i)))
	}
	for i := range 3 {
		add(fmt.Sprintf("same/text%d", i), text(300_000, 99))
		add(fmt.Sprintf("same/small%d", i), text(700, 98))
		add(fmt.Sprintf("same/noise%d", i), noise(9000, 97))
	}
	return all
}

func others() []tree.Entry {
	wide := []tree.Entry{
		{Name: "text/hard link", Type: tree.HardLink, Linkname: "text/20000"},
		{Name: "link", Type: tree.Symlink, Linkname: "text/1"},
		{Name: "long link", Type: tree.Symlink, Linkname: strings.Repeat("a/", 2040)},
		{Name: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3},
		{Name: "fifo", Type: tree.Fifo, Mode: 0o600},
		{Name: "xattrs", Type: tree.Dir, Mode: 0o755, Xattrs: []tree.Xattr{{Name: "user.big", Value: noise(6000, 1)}, {Name: "trusted.t", Value: []byte("x")}}},
	}
	for i := range 500 {
		wide = append(wide, tree.Entry{Name: fmt.Sprintf("wide/%03d%s", i, strings.Repeat("n", i%200)), Type: tree.Regular, Mode: 0o600})
	}
	return wide
}

type algorithm struct {
	name string
	compress.Options
}

func algorithms() []algorithm {
	return []algorithm{
		{"lz4", compress.Options{Algorithm: compress.LZ4}},
		{"lz4 level 9", compress.Options{Algorithm: compress.LZ4, Level: 9}},
		{"zstd", compress.Options{Algorithm: compress.Zstd}},
		{"zstd level 22", compress.Options{Algorithm: compress.Zstd, Level: 22}},
	}
}

// TestWrite compresses a tree and reads it back: with this project's reader, and by the kernel, from two readers at a time.
// fsck.erofs sees LZ4 images; its version that Debian has knows no Zstandard.
func TestWrite(t *testing.T) {
	all := files()
	f, size := plain(t, all, others()...)
	im := open(t, f, size)
	for _, a := range algorithms() {
		t.Run(a.name, func(t *testing.T) {
			out, n := shrink(t, im, a.Options)
			if err := erofs.Check(out, n); err != nil {
				t.Errorf("Check: %v", err)
			}
			small := open(t, out, n)
			if !small.Super().Compressed || small.Super().UUID != im.Super().UUID || small.Super().Inodes != im.Super().Inodes {
				t.Errorf("superblock %+v of %+v", small.Super(), im.Super())
			}
			for _, f := range all {
				compareContent(t, f, small)
			}
			if a.Algorithm == compress.LZ4 {
				fsck(t, out.Name())
			}
			dir := mount(t, out.Name())
			for _, f := range all {
				compareFile(t, f, filepath.Join(dir, f.name))
			}
		})
	}
}

// compareContent reads a file whole, and in pieces that cross clusters.
func compareContent(t *testing.T, f file, im *erofs.Image) {
	t.Helper()
	in := lookUp(t, im, f.name)
	if in.Size != int64(len(f.b)) {
		t.Errorf("%s: %d bytes, want %d", f.name, in.Size, len(f.b))
		return
	}
	got := make([]byte, len(f.b)+1)
	if n, err := im.ReadFileAt(in, got, 0); n != len(f.b) || err != io.EOF || !bytes.Equal(got[:n], f.b) {
		t.Errorf("%s: read %d bytes, %v; equal: %t", f.name, n, err, bytes.Equal(got[:n], f.b))
	}
	r := rand.New(rand.NewPCG(uint64(len(f.b)), 2))
	for range 20 {
		if len(f.b) == 0 {
			break
		}
		off := r.IntN(len(f.b))
		p := make([]byte, 1+r.IntN(min(len(f.b)-off, 1+r.IntN(2*segment))))
		if n, err := im.ReadFileAt(in, p, int64(off)); n != len(p) || err != nil || !bytes.Equal(p, f.b[off:off+n]) {
			t.Errorf("%s: reading %d bytes at %d: %d, %v", f.name, len(p), off, n, err)
		}
	}
}

// compareFile reads a file of a mount, from the middle on first: the kernel decompresses parts of clusters differently.
func compareFile(t *testing.T, f file, name string) {
	t.Helper()
	g, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer g.Close()
	got := make([]byte, len(f.b)-len(f.b)/2)
	if _, err := g.ReadAt(got, int64(len(f.b)/2)); err != nil && len(got) > 0 || !bytes.Equal(got, f.b[len(f.b)/2:]) {
		t.Errorf("%s by the kernel, second half: %v", f.name, err)
	}
	if got, err := io.ReadAll(g); err != nil || !bytes.Equal(got, f.b) {
		t.Errorf("%s by the kernel: %v", f.name, err)
	}
}

// mount mounts an image file, without a loop device, until the test ends.
func mount(t *testing.T, image string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting EROFS images needs root: run the tests of this package as root")
	}
	dir := t.TempDir()
	if err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mounting an image file (needs Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE and the algorithms): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

// fsck runs fsck.erofs, which reads all contents. Its exit status says too little: any error line counts.
func fsck(t *testing.T, image string) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Fatalf("fsck.erofs is needed (package erofs-utils): %v", err)
	}
	out, err := exec.Command(tool, "--extract", image).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("<E>")) || bytes.Contains(out, []byte("<W>")) {
		t.Errorf("fsck.erofs: %v\n%.4000s", err, out)
	}
}

// TestSameBytes compresses with one processor and with several, and again with encoders that were not used before.
func TestSameBytes(t *testing.T) {
	f, size := plain(t, files(), others()...)
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for _, a := range algorithms() {
		t.Run(a.name, func(t *testing.T) {
			var want [32]byte
			for i, procs := range []int{1, 7, 2} {
				runtime.GOMAXPROCS(procs)
				out, n := shrink(t, open(t, f, size), a.Options)
				h := sha256.New()
				if _, err := io.Copy(h, io.NewSectionReader(out, 0, n)); err != nil {
					t.Fatal(err)
				}
				if got := [32]byte(h.Sum(nil)); i == 0 {
					want = got
				} else if got != want {
					t.Errorf("with %d processors the image has other bytes than with 1", procs)
				}
			}
		})
	}
}

// TestAgain compresses what is compressed: the contents of the result are the same again.
func TestAgain(t *testing.T) {
	all := files()
	f, size := plain(t, all)
	once, n := shrink(t, open(t, f, size), compress.Options{Algorithm: compress.Zstd})
	twice, n2 := shrink(t, open(t, once, n), compress.Options{Algorithm: compress.LZ4})
	if err := erofs.Check(twice, n2); err != nil {
		t.Errorf("Check: %v", err)
	}
	im := open(t, twice, n2)
	for _, f := range all {
		compareContent(t, f, im)
	}
}

// TestSizes pins what is compressed and what isn't.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		name   string
		files  []file
		lz4    int64 // blocks of the image
		zstd   int64
		blocks int64 // that the contents have in the plain image
	}{
		// block 0 and one of inodes
		{"nothing", nil, 2, 2, 0},
		{"inline", []file{{"a", noise(2000, 1)}}, 2, 2, 1},
		{"an end that is inline", []file{{"a", noise(4096+2000, 1)}}, 3, 3, 2},
		{"an end too big", []file{{"a", noise(4096+4090, 1)}}, 4, 4, 2},
		{"a block saved", []file{{"a", text(8000, 1)}}, 3, 3, 2},
		{"no block saved", []file{{"a", noise(8192, 1)}}, 4, 4, 2},
		{"zeros", []file{{"a", make([]byte, 10*segment)}}, 12, 12, 320},
		{"zeros of several inodes", []file{{"a", make([]byte, 10*segment)}, {"b", make([]byte, 10*segment)}}, 322, 13, 320},
		{"a segment of three", []file{{"a", join(noise(segment, 1), make([]byte, segment), noise(segment, 2))}}, 67, 67, 96},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, size := plain(t, c.files)
			for a, want := range map[compress.Algorithm]int64{compress.LZ4: c.lz4, compress.Zstd: c.zstd} {
				if _, n := shrink(t, open(t, f, size), compress.Options{Algorithm: a}); n != want*4096 {
					t.Errorf("%v: %d blocks, want %d", a, n/4096, want)
				}
			}
		})
	}
}

func TestProgress(t *testing.T) {
	f, size := plain(t, files())
	var calls, last, whole int64
	shrink(t, open(t, f, size), compress.Options{Algorithm: compress.LZ4, Progress: func(done, total int64) {
		if done <= last || whole != 0 && total != whole {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		calls, last, whole = calls+1, done, total
	}})
	if last != whole || calls < 2 || calls > 200 {
		t.Errorf("%d calls, %d of %d bytes", calls, last, whole)
	}
}

// failing fails to write or read from some byte on.
type failing struct {
	io.ReaderAt
	from int64
	err  error
}

func (f failing) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return len(p), nil
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from && off < f.from {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestErrors(t *testing.T) {
	f, size := plain(t, files())
	im := open(t, f, size)
	broken := errors.New("broken")
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	lz4 := compress.Options{Algorithm: compress.LZ4}
	for _, c := range []struct {
		name string
		ctx  context.Context
		w    io.WriterAt
		im   *erofs.Image
		o    compress.Options
		want string
	}{
		{"no algorithm", context.Background(), failing{}, im, compress.Options{}, "compressing: Algorithm(0) is no algorithm"},
		{"lz4's level", context.Background(), failing{}, im, compress.Options{Algorithm: compress.LZ4, Level: 10}, "compressing: level 10 of lz4: it must be 1 to 9, or 0 for the default"},
		{"zstd's level", context.Background(), failing{}, im, compress.Options{Algorithm: compress.Zstd, Level: -1}, "compressing: level -1 of zstd: it must be 1 to 22, or 0 for the default"},
		{"canceled", canceled, failing{}, im, lz4, "reading image: context canceled"},
		{"write", context.Background(), failing{from: 1 << 20, err: broken}, im, lz4, "compressing contents: writing image: broken"},
		{"read", context.Background(), failing{from: 1 << 40}, open(t, failing{f, 3 << 20, broken}, size), lz4, "broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := compress.Write(c.ctx, c.w, c.im, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
		})
	}
	for _, name := range []string{"lz4", "zstd"} {
		if a, err := compress.ParseAlgorithm(name); err != nil || a.String() != name {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	if _, err := compress.ParseAlgorithm("gzip"); err == nil {
		t.Error("gzip is no algorithm")
	}
}

// TestReadBothAtOnce reads two inodes of one content at the same moment, many times.
func TestReadBothAtOnce(t *testing.T) {
	b := text(5_000_000, 1)
	f, size := plain(t, []file{{"a", b}, {"b", b}})
	for _, a := range algorithms() {
		out, _ := shrink(t, open(t, f, size), a.Options)
		dir := mount(t, out.Name())
		errs := make(chan error, 2)
		for _, name := range []string{"a", "b"} {
			go func() {
				got, err := os.ReadFile(filepath.Join(dir, name))
				if err == nil && !bytes.Equal(got, b) {
					err = fmt.Errorf("%s of %s differs", name, a.name)
				}
				errs <- err
			}()
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
}
