package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// stat is what a reader says of an inode.
type stat struct {
	Mode            uint32
	UID, GID, Nlink uint32
	Size            int64
	Sec             int64
	Nsec            uint32
	Major, Minor    uint32
	Target          string
	Xattrs          map[string]string
	Names           []string // of a directory
	Ino             uint64
	SelfAndParent   [2]uint64 // "." and ".." of a directory, by their inode numbers
}

// want is what the tree says of it, but for inode numbers.
func (fx *fixture) want(i tree.Ino) stat {
	a := fx.tree.Stat(i)
	types := map[tree.Type]uint32{tree.Dir: unix.S_IFDIR, tree.Regular: unix.S_IFREG, tree.Symlink: unix.S_IFLNK, tree.Char: unix.S_IFCHR, tree.Block: unix.S_IFBLK, tree.Fifo: unix.S_IFIFO}
	s := stat{
		Mode: types[a.Type] | a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink, Size: a.Size, Sec: a.Mtime.Sec, Nsec: a.Mtime.Nsec,
		Major: a.Major, Minor: a.Minor, Target: a.Target, Xattrs: map[string]string{},
	}
	for name, value := range fx.tree.Xattrs(i) {
		ns, rest, _ := strings.Cut(name, ".")
		if rest != "" && (ns == "user" || ns == "trusted" || ns == "security") || strings.HasPrefix(name, "system.posix_acl_") {
			s.Xattrs[name] = string(value)
		}
	}
	for d := range fx.tree.Children(i) {
		s.Names = append(s.Names, d.Name)
	}
	return s
}

// view is a way to read an image: by this package, or by the kernel.
type view interface {
	// stat looks the path up before it lists anything.
	stat(path []string) (stat, error)
	open(path []string) (io.ReaderAt, func() error, error)
}

// compare walks the tree and looks every name up in a view.
func (fx *fixture) compare(t *testing.T, v view) {
	t.Helper()
	type visit struct {
		ino    tree.Ino
		path   []string
		parent uint64
	}
	numbers := map[tree.Ino]uint64{}
	owner := map[uint64]tree.Ino{}
	bad := 0
	fail := func(path []string, format string, args ...any) {
		t.Errorf("%.80q: %s", strings.Join(path, "/"), fmt.Sprintf(format, args...))
		if bad++; bad > 10 {
			t.FailNow()
		}
	}
	for todo := []visit{{0, nil, 0}}; len(todo) > 0; {
		at := todo[0]
		todo = todo[1:]
		got, err := v.stat(at.path)
		if err != nil {
			fail(at.path, "%v", err)
			continue
		}
		if at.ino == 0 {
			at.parent = got.Ino
		}
		if before, ok := numbers[at.ino]; ok && before != got.Ino {
			fail(at.path, "inode %d, another name has %d", got.Ino, before)
		}
		if o, ok := owner[got.Ino]; ok && o != at.ino {
			fail(at.path, "inode %d is another file's too", got.Ino)
		}
		numbers[at.ino], owner[got.Ino] = got.Ino, at.ino
		want := fx.want(at.ino)
		want.Ino = got.Ino
		if fx.tree.Stat(at.ino).Type == tree.Dir {
			want.Size, want.SelfAndParent = got.Size, [2]uint64{got.Ino, at.parent}
		}
		if d := cmp.Diff(want, got); d != "" {
			fail(at.path, "differs (-want +got):\n%.2000s", d)
		}
		if a := fx.tree.Stat(at.ino); a.Type == tree.Regular {
			r, done, err := v.open(at.path)
			if err == nil {
				err = errors.Join(fx.checkContent(r, a.Content, a.Size), done())
			}
			if err != nil {
				fail(at.path, "%v", err)
			}
		}
		for d := range fx.tree.Children(at.ino) {
			todo = append(todo, visit{d.Ino, append(slices.Clip(at.path), d.Name), got.Ino})
		}
	}
}

// ourView reads with this package.
type ourView struct {
	im *erofs.Image
	f  io.ReaderAt
}

func (v ourView) inode(path []string) (erofs.Inode, error) {
	in, err := v.im.Inode(v.im.Super().RootNid)
	for _, name := range path {
		if err != nil {
			break
		}
		var nid uint64
		if nid, err = v.im.Lookup(in, name); err == nil {
			in, err = v.im.Inode(nid)
		}
	}
	return in, err
}

func (v ourView) stat(path []string) (stat, error) {
	in, err := v.inode(path)
	if err != nil {
		return stat{}, err
	}
	s := stat{Mode: in.Mode, UID: in.UID, GID: in.GID, Nlink: in.Nlink, Size: in.Size, Sec: in.Mtime, Nsec: in.MtimeNsec, Xattrs: map[string]string{}, Ino: in.Nid}
	s.Major, s.Minor = in.Device()
	xs, err := v.im.Xattrs(in)
	if err != nil {
		return s, err
	}
	for _, x := range xs {
		one, err := v.im.Xattr(in, x.Name)
		if err != nil || !bytes.Equal(one, x.Value) {
			return s, fmt.Errorf("attribute %q: %q alone, %q among all: %w", x.Name, one, x.Value, err)
		}
		s.Xattrs[x.Name] = string(x.Value)
	}
	if _, err := v.im.Xattr(in, "user.missing"); !errors.Is(err, erofs.ErrNoXattr) {
		return s, fmt.Errorf("an attribute that is missing: %w", err)
	}
	if in.IsSymlink() {
		b, err := v.im.Readlink(in)
		s.Target = string(b)
		return s, err
	}
	if !in.IsDir() {
		return s, nil
	}
	// all at once, and resumed after each name
	var again []string
	list := func(names *[]string, max int, off uint64) (next uint64, n int, err error) {
		err = v.im.ReadDir(in, off, func(d erofs.Dirent) bool {
			switch name := string(d.Name); name {
			case ".":
				s.SelfAndParent[0] = d.Nid
			case "..":
				s.SelfAndParent[1] = d.Nid
			default:
				*names = append(*names, name)
			}
			next = d.Next
			n++
			return n < max
		})
		return next, n, err
	}
	if _, _, err := list(&s.Names, 1<<30, 0); err != nil {
		return s, err
	}
	for off := uint64(0); len(s.Names) < 2000; {
		next, n, err := list(&again, 1, off)
		if err != nil {
			return s, err
		}
		if n == 0 {
			if !slices.Equal(again, s.Names) {
				return s, fmt.Errorf("resumed listing differs: %q, %q", again, s.Names)
			}
			break
		}
		off = next
	}
	if _, err := v.im.Lookup(in, "\xff missing"); !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("a name that is missing: %w", err)
	}
	return s, nil
}

func (v ourView) open(path []string) (io.ReaderAt, func() error, error) {
	in, err := v.inode(path)
	if err != nil {
		return nil, nil, err
	}
	off, err := v.im.DataOff(in)
	return io.NewSectionReader(v.f, off, in.Size), func() error { return nil }, err
}

// kernelView reads a mount.
type kernelView struct{ dir string }

func (v kernelView) path(path []string) string {
	return filepath.Join(v.dir, strings.Join(path, "/"))
}

func (v kernelView) stat(path []string) (stat, error) {
	p := v.path(path)
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return stat{}, fmt.Errorf("lstat: %w", err)
	}
	s := stat{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), Size: st.Size, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec), Xattrs: map[string]string{}, Ino: st.Ino}
	if t := st.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		s.Major, s.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return s, fmt.Errorf("llistxattr: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return s, fmt.Errorf("lgetxattr %q: %w", name, err)
		}
		s.Xattrs[name] = string(value[:n])
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		s.Target, err = os.Readlink(p)
	case unix.S_IFDIR:
		var names []os.DirEntry
		names, err = os.ReadDir(p) // sorted by name
		for _, d := range names {
			s.Names = append(s.Names, d.Name())
		}
		for i, name := range []string{".", ".."} {
			if name == ".." && len(path) == 0 {
				s.SelfAndParent[i] = st.Ino // the mount's parent is elsewhere
				continue
			}
			var d unix.Stat_t
			if err := unix.Lstat(p+"/"+name, &d); err != nil {
				return s, fmt.Errorf("lstat %s: %w", name, err)
			}
			s.SelfAndParent[i] = d.Ino
		}
	}
	return s, err
}

func (v kernelView) open(path []string) (io.ReaderAt, func() error, error) {
	f, err := os.Open(v.path(path))
	if err != nil {
		return nil, nil, err
	}
	return f, f.Close, nil
}

// mount mounts an image file, without a loop device, until the test ends.
func mount(t *testing.T, image string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting EROFS images needs root: run the tests of this package as root")
	}
	dir := t.TempDir()
	if err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mounting an image file (needs Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

// fsck runs fsck.erofs. Its exit status says too little: any error line counts.
func fsck(t *testing.T, image string) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Fatalf("fsck.erofs is needed (package erofs-utils): %v", err)
	}
	// it recurses with several KiB of stack a level
	out, err := exec.Command("sh", "-c", `ulimit -s 262144; exec "$0" "$1"`, tool, image).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("<E>")) || bytes.Contains(out, []byte("<W>")) {
		t.Errorf("fsck.erofs: %v\n%.4000s", err, out)
	}
}

// TestImages tries each case with Check, the reader, fsck.erofs and the kernel.
func TestImages(t *testing.T) {
	for _, c := range append(imageCases(), goldenCases()...) {
		t.Run(c.name, func(t *testing.T) {
			fx := newFixture(t, c.layers...)
			name := fx.write(t)
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			size := fx.layout.Size()
			if err := erofs.Check(f, size); err != nil {
				t.Errorf("Check: %v", err)
			}
			im, err := erofs.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			fx.compare(t, ourView{im, f})
			fsck(t, name)
			fx.compare(t, kernelView{mount(t, name)})
		})
	}
}

// TestForeignImage reads what mkfs.erofs wrote: compact inodes, and its own order of things.
func TestForeignImage(t *testing.T) {
	tool, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Fatalf("mkfs.erofs is needed (package erofs-utils): %v", err)
	}
	src, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	files := map[string]string{"a": "content of a", "d/b": strings.Repeat("b", 5000), "d/e/c": "", "block": strings.Repeat("x", 4096)}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		p := filepath.Join(src, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(files[name]), 0o600), os.Chmod(p, 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("d/b", filepath.Join(src, "l")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "-T1234567", "-x-1", image, src).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	v := ourView{im, f}
	for name, content := range files {
		path := strings.Split(name, "/")
		s, err := v.stat(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Mode != unix.S_IFREG|0o640 || s.Size != int64(len(content)) || s.Sec != 1234567 {
			t.Errorf("%s: mode %#o, size %d, mtime %d", name, s.Mode, s.Size, s.Sec)
		}
		r, _, err := v.open(path)
		if name == "d/b" { // in two pieces, for its tail is inline
			if !errors.Is(err, erofs.ErrUnsupported) {
				t.Errorf("%s: error %v, want ErrUnsupported", name, err)
			}
			continue
		}
		got := make([]byte, len(content))
		if err == nil && len(got) > 0 {
			_, err = r.ReadAt(got, 0)
		}
		if err != nil || string(got) != content {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if s, err := v.stat([]string{"l"}); err != nil || s.Target != "d/b" {
		t.Errorf("symlink: %q, %v", s.Target, err)
	}
	if err := erofs.Check(f, st.Size()); !errors.Is(err, erofs.ErrInvalid) {
		t.Errorf("Check of an image of another layout: %v", err)
	}
}
