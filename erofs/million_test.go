package erofs_test

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// childJob is set in processes of this test binary that are to do one thing and to be measured: a job and its arguments.
const childJob = "EROFS_TEST_CHILD"

func TestMain(m *testing.M) {
	if job, args, ok := strings.Cut(os.Getenv(childJob), " "); ok {
		jobs := map[string]func(folder, image string) error{"image": imageOf, "check": checkImage, "read": readImage, "walk": walkImage}
		folder, image, _ := strings.Cut(args, " ")
		if err := jobs[job](folder, image); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// run is what a process took.
type run struct {
	wall, cpu time.Duration
	peak      int64 // resident, in bytes
}

// BenchmarkMillion compares what becomes of a folder of a million inodes with mkfs.erofs, whole processes in turn, and measures
// checking and reading the image. Give it a folder in memory, and rounds enough for a median:
//
//	TMPDIR=/dev/shm go test ./erofs -run '^$' -bench Million -benchtime 5x -timeout 1h
//
// One file of eight has a content, of up to 8 KiB. A process's peak is never seen below this one's, some 30 MiB.
func BenchmarkMillion(b *testing.B) {
	tool, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		b.Fatalf("mkfs.erofs is needed (package erofs-utils): %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	tmp := b.TempDir()
	folder, image, other := filepath.Join(tmp, "tree"), filepath.Join(tmp, "pex.erofs"), filepath.Join(tmp, "mkfs.erofs")
	makeMillion(b, folder)
	names := []string{"mkfs.erofs", "pex", "pex-check", "pex-read", "pex-walk"}
	runs := map[string][]run{}
	for b.Loop() {
		for _, name := range names {
			cmd := exec.Command(self)
			job, _ := strings.CutPrefix(name, "pex-")
			switch name {
			case "mkfs.erofs":
				cmd = exec.Command(tool, "--quiet", other, folder)
			case "pex":
				job = "image"
			}
			cmd.Env = append(os.Environ(), childJob+"="+job+" "+folder+" "+image)
			start := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				b.Fatalf("%s: %v\n%s", name, err, out)
			}
			s := cmd.ProcessState
			r := run{time.Since(start), s.UserTime() + s.SystemTime(), s.SysUsage().(*syscall.Rusage).Maxrss << 10}
			runs[name] = append(runs[name], r)
			fmt.Fprintf(os.Stderr, "%-12s %7.2f s, %6.2f s of processors, peak %5d MiB\n", name, r.wall.Seconds(), r.cpu.Seconds(), r.peak/mib) // it takes minutes
		}
	}
	median := func(name string, of func(run) float64) float64 {
		rs := slices.SortedFunc(slices.Values(runs[name]), func(x, y run) int { return cmp.Compare(of(x), of(y)) })
		return of(rs[len(rs)/2])
	}
	b.ReportMetric(0, "ns/op") // of all together it means nothing
	for _, m := range []struct {
		unit string
		of   func(run) float64
	}{
		{"s", func(r run) float64 { return r.wall.Seconds() }},
		{"cpu-s", func(r run) float64 { return r.cpu.Seconds() }},
		{"peak-MiB", func(r run) float64 { return float64(r.peak) / mib }},
	} {
		for _, name := range names {
			b.ReportMetric(median(name, m.of), name+"-"+m.unit)
		}
		b.ReportMetric(median("pex", m.of)/median("mkfs.erofs", m.of), m.unit+"-ratio")
	}
	for _, name := range []string{image, other} {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(st.Blocks)/2048, filepath.Base(name)+"-image-MiB")
	}
}

// makeMillion makes 20,000 directories of 49 files, and those above them.
func makeMillion(b *testing.B, folder string) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 8*kib)
	for k := range 20_000 {
		dir := fmt.Sprintf("%s/usr/part%03d/package-%05d", folder, k/100, k)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range 49 {
			name := fmt.Sprintf("%s/file-of-some-name-%02d.ext", dir, i)
			var err error
			switch {
			case i == 48:
				err = os.Symlink("../package-00000/file-of-some-name-00.ext", name)
			case i%8 == 0:
				c := content[:1+r.IntN(len(content))]
				for at := range min(len(c), 16) {
					c[at] = byte(r.Uint32())
				}
				err = os.WriteFile(name, c, 0o644)
			default:
				err = os.WriteFile(name, nil, 0o644)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// folderLayer gives a folder's entries, and the names and digests of contents as they are numbered.
type folderLayer struct {
	root     string
	contents []string
	keys     [][32]byte
	linked   map[uint64]string // first names, by inode number
}

func (l *folderLayer) entries(yield func(tree.Entry, error) bool) {
	for todo := []string{""}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		names, err := os.ReadDir(filepath.Join(l.root, dir))
		if err != nil {
			yield(tree.Entry{}, err)
			return
		}
		for _, d := range names {
			name := dir + d.Name()
			e, err := l.entry(name)
			if !yield(e, err) || err != nil {
				return
			}
			if e.Type == tree.Dir {
				todo = append(todo, name+"/")
			}
		}
	}
}

func (l *folderLayer) entry(name string) (tree.Entry, error) {
	path := l.root + "/" + name
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return tree.Entry{}, err
	}
	if n, err := unix.Llistxattr(path, nil); err != nil || n != 0 {
		return tree.Entry{}, fmt.Errorf("%s: attributes of %d bytes, %w", path, n, err)
	}
	e := tree.Entry{Name: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Mtime: tree.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = tree.Dir
		return e, nil
	case unix.S_IFREG:
		e.Type, e.Size = tree.Regular, st.Size
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		e.Type, e.Linkname = tree.Symlink, target
		return e, err
	default:
		return e, fmt.Errorf("%s: mode %#o", path, st.Mode)
	}
	if first, ok := l.linked[st.Ino]; ok {
		e.Type, e.Size, e.Linkname = tree.HardLink, 0, first
		return e, nil
	} else if st.Nlink > 1 {
		l.linked[st.Ino] = name
	}
	if e.Size == 0 {
		return e, nil
	}
	b, err := os.ReadFile(path)
	e.Content = int32(len(l.contents))
	l.contents, l.keys = append(l.contents, name), append(l.keys, sha256.Sum256(b))
	return e, err
}

// imageOf makes an image of a folder, with identical contents once.
func imageOf(folder, image string) error {
	l := &folderLayer{root: folder, linked: map[uint64]string{}}
	b := tree.NewBuilder(tree.Options{})
	if err := b.AddLayer(l.entries); err != nil {
		return err
	}
	t, err := b.Build()
	if err != nil {
		return err
	}
	layout, err := erofs.NewLayout(t, func(c tree.Content) [32]byte { return l.keys[c.Index] }, [16]byte{})
	if err != nil {
		return err
	}
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(layout.Size()), layout.WriteTo(f)); err != nil {
		return err
	}
	for _, e := range layout.Extents() {
		b, err := os.ReadFile(filepath.Join(folder, l.contents[e.Content.Index]))
		if err == nil {
			_, err = f.WriteAt(b, e.Off)
		}
		if err != nil {
			return err
		}
	}
	return f.Close()
}

// openImage opens an image file, which stays open.
func openImage(image string) (*os.File, *erofs.Image, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	im, err := erofs.Open(f, st.Size())
	return f, im, err
}

func checkImage(_, image string) error {
	f, im, err := openImage(image)
	if err != nil {
		return err
	}
	return erofs.Check(f, im.Super().Size)
}

// readImage lists every directory, and reads every inode, by its nid.
func readImage(_, image string) error {
	_, im, err := openImage(image)
	if err != nil {
		return err
	}
	dirs := []uint64{im.Super().RootNid}
	for count := uint64(1); len(dirs) > 0; {
		dir, err := im.Inode(dirs[len(dirs)-1])
		if err != nil {
			return err
		}
		dirs = dirs[:len(dirs)-1]
		var bad error
		err = im.ReadDir(dir, 0, func(d erofs.Dirent) bool {
			if name := string(d.Name); name == "." || name == ".." {
				return true
			}
			in, err := im.Inode(d.Nid)
			if in.IsDir() {
				dirs = append(dirs, d.Nid)
			}
			count++
			bad = err
			return err == nil
		})
		if err := errors.Join(err, bad); err != nil {
			return err
		}
		if len(dirs) == 0 && count != im.Super().Inodes {
			return fmt.Errorf("%d inodes of %d", count, im.Super().Inodes)
		}
	}
	return nil
}

// walkImage does it with io/fs.
func walkImage(_, image string) error {
	_, im, err := openImage(image)
	if err != nil {
		return err
	}
	return fs.WalkDir(im.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		return err
	})
}
