package erofs_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// openFixture writes a complete image and opens it.
func openFixture(t testing.TB, layers ...[]tree.Entry) (*fixture, *erofs.Image) {
	t.Helper()
	fx := newFixture(t, layers...)
	return fx, fx.open(t)
}

// open writes a complete image and opens it.
func (fx *fixture) open(t testing.TB) *erofs.Image {
	t.Helper()
	f, err := os.Open(fx.write(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	im, err := erofs.Open(f, fx.layout.Size())
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// TestFS runs the standard library's judge.
func TestFS(t *testing.T) {
	var wide []tree.Entry
	for i := range 5000 {
		wide = append(wide, reg(fmt.Sprintf("wide/%c%d", "!+-.09az~"[i%9], i), int64(i%3), int32(i%3)))
	}
	for _, c := range []struct {
		name     string
		layers   [][]tree.Entry
		expected []string
	}{
		{name: "empty"},
		{
			"everything",
			[][]tree.Entry{
				{dir("d/e", 0o7755), reg("d/f", 5000, 1), reg("low", 1, 2), reg("gone", 1, 2)},
				{hard("d/e/g", "d/f"), hard("h", "d/f"), reg("big", 2*mib+5, 3), reg("low", 4096, 4),
					link("l", "d/f"), link("d/up", "e/../e"), link("n/abs", "/d/e"), link("long", strings.Repeat("d/../", 800)+"d/e/g"),
					with(tree.Entry{Name: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3}, tree.Xattr{Name: "trusted.a", Value: []byte("b")}),
					{Name: "disk", Type: tree.Block, Major: 8}, {Name: "p", Type: tree.Fifo}, {Name: "s", Type: tree.Regular, Mode: 0o6711},
					reg("n/"+strings.Repeat("n", 255), 3, 5), reg("n/"+strings.Repeat("ü", 127)+"/f", 3, 5), reg("-/.../..a", 3, 5)},
			},
			[]string{"d/e/g", "d/f", "d/up", "h", "n/abs", "l", "long", "null", "disk", "p", "s", "big", "low", "n/" + strings.Repeat("n", 255), "-/.../..a"},
		},
		{"directory of 5,000", [][]tree.Entry{wide}, []string{"wide/!0", "wide/~4994"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, im := openFixture(t, c.layers...)
			if err := fstest.TestFS(im.FS(), c.expected...); err != nil {
				t.Error(err)
			}
		})
	}
}

// fsView reads with FS.
type fsView struct {
	im *erofs.Image
	f  *erofs.FS
}

func fsName(path []string) string {
	if len(path) == 0 {
		return "."
	}
	return strings.Join(path, "/")
}

func (v fsView) stat(path []string) (stat, error) {
	name := fsName(path)
	info, err := v.f.Lstat(name)
	if err != nil {
		return stat{}, err
	}
	in := info.Sys().(*erofs.Inode)
	s := stat{Mode: in.Mode, UID: in.UID, GID: in.GID, Nlink: in.Nlink, Size: info.Size(), Sec: info.ModTime().Unix(), Nsec: uint32(info.ModTime().Nanosecond()), Xattrs: map[string]string{}, Ino: in.Nid}
	s.Major, s.Minor = in.Device()
	xs, err := v.im.Xattrs(*in)
	for _, x := range xs {
		s.Xattrs[x.Name] = string(x.Value)
	}
	switch {
	case err != nil:
		return s, err
	case in.IsSymlink():
		s.Target, err = v.f.ReadLink(name)
		return s, err
	case in.IsDir():
		es, err := v.f.ReadDir(name)
		for _, e := range es {
			s.Names = append(s.Names, e.Name())
		}
		parent := *in
		if len(path) > 0 {
			up, err := v.f.Stat(fsName(path[:len(path)-1]))
			if err != nil {
				return s, err
			}
			parent = *up.Sys().(*erofs.Inode)
		}
		s.SelfAndParent = [2]uint64{in.Nid, parent.Nid}
		return s, err
	}
	again, err := v.f.Xattrs(name)
	if d := cmp.Diff(xs, again); err == nil && d != "" {
		err = fmt.Errorf("Xattrs (-inode's +name's):\n%s", d)
	}
	return s, err
}

func (v fsView) open(path []string) (io.ReaderAt, func() error, error) {
	f, err := v.f.Open(fsName(path))
	if err != nil {
		return nil, nil, err
	}
	return f.(io.ReaderAt), f.Close, nil
}

// TestFSImages looks at all cases whose names io/fs has. TestFSDepth has a deep one.
func TestFSImages(t *testing.T) {
	for _, c := range imageCases() {
		if c.name == "names" || c.name == "deep" { // the names have all bytes
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			fx, im := openFixture(t, c.layers...)
			fx.compare(t, fsView{im, im.FS()})
		})
	}
}

// resolveEntries is a tree with symlinks of all kinds.
func resolveEntries() []tree.Entry {
	es := []tree.Entry{
		dir("a/b/c", 0o755), reg("a/b/f", 5, 1), reg("top", 5, 2), dir("r/a", 0o755),
		link("abs", "/a/b/f"), link("a/b/rel", "../../top"), link("a/up", "../../../../top"), link("dirlink", "a/b/"), link("r/abs", "/a"),
		link("a/dots", ".//./b/./f"), link("filedir", "top/"), link("filedot", "top/."), link("filedotdot", "top/.."), link("through", "dirlink/c/../rel"),
		link("self", "self"), link("ping", "pong"), link("pong", "ping"), link("dangling", "none/f"), link("root", "/"), link("selfdir", "a/../a/b"),
		link("l40", "top"),
	}
	for i := range 40 {
		es = append(es, link(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
	}
	return es
}

func TestFSResolves(t *testing.T) {
	_, im := openFixture(t, resolveEntries())
	f := im.FS()
	sub, err := fs.Sub(f, "r")
	if err != nil {
		t.Fatal(err)
	}
	linked, err := fs.Sub(f, "dirlink")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		fsys     fs.FS
		name, to string
		is       error
	}{
		{f, "abs", "a/b/f", nil},
		{f, "a/b/rel", "top", nil},
		{f, "a/up", "top", nil},
		{f, "dirlink", "a/b", nil},
		{f, "dirlink/f", "a/b/f", nil},
		{f, "dirlink/rel", "top", nil},
		{f, "a/dots", "a/b/f", nil},
		{f, "through", "top", nil},
		{f, "root", ".", nil},
		{f, "root/root/root/a", "a", nil},
		{f, "selfdir/c", "a/b/c", nil},
		{f, "l1", "top", nil},
		{f, "l0", "", syscall.ELOOP},
		{f, "self", "", syscall.ELOOP},
		{f, "self/x", "", syscall.ELOOP},
		{f, "ping", "", syscall.ELOOP},
		{f, "filedir", "", erofs.ErrNotDir},
		{f, "filedot", "", erofs.ErrNotDir},
		{f, "filedotdot", "", erofs.ErrNotDir},
		{f, "top/x", "", erofs.ErrNotDir},
		{f, "abs/x", "", erofs.ErrNotDir},
		{f, "dangling", "", fs.ErrNotExist},
		{f, "none", "", fs.ErrNotExist},
		{f, "a/b/none/x", "", fs.ErrNotExist},
		{f, strings.Repeat("n", 300), "", fs.ErrNotExist},
		{f, "", "", fs.ErrInvalid},
		{f, "/a", "", fs.ErrInvalid},
		{f, "a/", "", fs.ErrInvalid},
		{f, "a/../top", "", fs.ErrInvalid},
		{f, "\xff", "", fs.ErrInvalid},
		// as after chroot
		{sub, "abs", "r/a", nil},
		{linked, "f", "a/b/f", nil},
		{linked, "rel", "", fs.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			info, err := fs.Stat(c.fsys, c.name)
			if c.is != nil {
				var pe *fs.PathError
				if !errors.Is(err, c.is) || !errors.As(err, &pe) || pe.Path != c.name || errors.Is(err, erofs.ErrInvalid) {
					t.Errorf("error %v, want one of the path that wraps %v", err, c.is)
				}
				return
			}
			want, wantErr := f.Lstat(c.to)
			if err != nil || wantErr != nil {
				t.Fatal(err, wantErr)
			}
			if got, want := info.Sys().(*erofs.Inode), want.Sys().(*erofs.Inode); got.Nid != want.Nid {
				t.Errorf("inode %d, want %d", got.Nid, want.Nid)
			}
			if base := c.name[strings.LastIndexByte(c.name, '/')+1:]; info.Name() != base {
				t.Errorf("name %q, want %q", info.Name(), base)
			}
		})
	}
}

// TestFSErrors has what works on some types only.
func TestFSErrors(t *testing.T) {
	_, im := openFixture(t, resolveEntries())
	f := im.FS()
	for _, c := range []struct {
		name string
		do   func() error
		want string
	}{
		{"reading a directory", func() error { _, err := f.ReadFile("a"); return err }, "read a: is a directory"},
		{"reading an open directory", func() error {
			d, err := f.Open("a")
			if err != nil {
				return err
			}
			_, err = d.Read(make([]byte, 1))
			return err
		}, "read a: is a directory"},
		{"listing a file", func() error { _, err := f.ReadDir("top"); return err }, "readdir top: inode %d: not a directory"},
		{"the target of a file", func() error { _, err := f.ReadLink("top"); return err }, "readlink top: inode %d: not a symlink"},
		{"a tree below a file", func() error { _, err := fs.Sub(f, "top"); return err }, "sub top: not a directory"},
		{"attributes of nothing", func() error { _, err := f.Xattrs("none"); return err }, "listxattr none: file does not exist"},
		{"a tree below nothing", func() error { _, err := fs.Sub(f, "none"); return err }, "sub none: file does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := strings.ReplaceAll(c.want, "%d", fmt.Sprint(find(t, im, "top").Nid))
			if err := c.do(); err == nil || err.Error() != want {
				t.Errorf("error %q, want %q", err, want)
			}
		})
	}
}

func TestFSInfo(t *testing.T) {
	acl := tree.Xattr{Name: "user.a", Value: []byte("b")}
	_, im := openFixture(t, []tree.Entry{
		with(tree.Entry{Name: "f", Type: tree.Regular, Mode: 0o7751, UID: 1, GID: 2, Size: 10, Content: 1, Mtime: tree.Time{Sec: -3, Nsec: 4}}, acl),
		with(tree.Entry{Name: "d/g", Type: tree.HardLink, Linkname: "f", Mode: 0o7751, UID: 1, GID: 2, Mtime: tree.Time{Sec: -3, Nsec: 4}}, acl), {Name: "c", Type: tree.Char, Major: 259, Minor: 70000}, {Name: "b", Type: tree.Block}, {Name: "p", Type: tree.Fifo}, link("l", "f"),
	})
	f := im.FS()
	got := map[string]string{}
	nids := map[string]uint64{}
	err := fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		in := info.Sys().(*erofs.Inode)
		major, minor := in.Device()
		got[name] = fmt.Sprintf("%v %d:%d %d links, dev %d:%d", info.Mode(), in.UID, in.GID, in.Nlink, major, minor)
		nids[name] = in.Nid
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		".": "drwxr-xr-x 0:0 3 links, dev 0:0", "d": "drwxr-xr-x 0:0 2 links, dev 0:0",
		"f": "ugtrwxr-x--x 1:2 2 links, dev 0:0", "d/g": "ugtrwxr-x--x 1:2 2 links, dev 0:0",
		"c": "Dc--------- 0:0 1 links, dev 259:70000", "b": "D--------- 0:0 1 links, dev 0:0", "p": "p--------- 0:0 1 links, dev 0:0", "l": "Lrwxrwxrwx 0:0 1 links, dev 0:0",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("walk (-want +got):\n%s", d)
	}
	if nids["f"] != nids["d/g"] || nids["f"] == nids["l"] {
		t.Errorf("nids %v", nids)
	}
	info, err := f.Stat("l")
	if err != nil || !info.ModTime().Equal(time.Unix(-3, 4)) || info.Size() != 10 || info.Name() != "l" {
		t.Errorf("%v, %v", info, err)
	}
	info.Sys().(*erofs.Inode).Nid = 0
	if info.Sys().(*erofs.Inode).Nid != nids["f"] {
		t.Error("what Sys gives can change the FileInfo")
	}
	xs, err := f.Xattrs("l")
	if d := cmp.Diff([]erofs.Xattr{{Name: acl.Name, Value: acl.Value}}, xs); d != "" || err != nil {
		t.Errorf("attributes (-want +got):\n%s%v", d, err)
	}
}

// TestFSConcurrent is for the race detector.
func TestFSConcurrent(t *testing.T) {
	_, im := openFixture(t, goldenEntries()...)
	f := im.FS()
	file, err := f.Open("d/f")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	list := func() (names []string, err error) {
		err = fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
			names = append(names, name)
			return err
		})
		return names, err
	}
	if want, err = list(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				got, err := list()
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%q, %v", got, err)
				}
				if _, err := file.(io.ReaderAt).ReadAt(make([]byte, 10), 3); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
