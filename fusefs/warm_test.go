package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// treeFS is a tree of these entries, whose files have zeros in them.
func treeFS(t *testing.T, entries ...tree.Entry) *FS {
	t.Helper()
	b := tree.NewBuilder(tree.Options{})
	if err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	tr, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	l, err := erofs.NewLayout(tr, func(c tree.Content) [32]byte { return [32]byte{byte(c.Index), byte(c.Index >> 8)} }, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := errors.Join(f.Truncate(l.Size()), l.WriteTo(f)); err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(f, l.Size())
	if err != nil {
		t.Fatal(err)
	}
	return New(im, &testData{f: f}, Options{})
}

// asked counts what a kernel asks.
type asked struct {
	*FS
	names, attrs, reads, opens, xattrs atomic.Int64
}

func (a *asked) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	a.names.Add(1)
	return a.FS.Lookup(c, h, name, out)
}

func (a *asked) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a.attrs.Add(1)
	return a.FS.GetAttr(c, in, out)
}

func (a *asked) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	a.names.Add(1)
	return a.FS.ReadDirPlus(c, in, out)
}

func (a *asked) Readlink(c <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	a.reads.Add(1)
	return a.FS.Readlink(c, h)
}

func (a *asked) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	a.reads.Add(1)
	return a.FS.Read(c, in, buf)
}

func (a *asked) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	a.opens.Add(1)
	return a.FS.Open(c, in, out)
}

func (a *asked) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	a.opens.Add(1)
	return a.FS.OpenDir(c, in, out)
}

func (a *asked) GetXAttr(c <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	a.xattrs.Add(1)
	return a.FS.GetXAttr(c, h, name, dest)
}

// mountAsked mounts f with a count of what is asked.
func mountAsked(t *testing.T, f *FS) (string, *asked) {
	t.Helper()
	dir, a := t.TempDir(), &asked{FS: f}
	s, err := mountAny(a, dir, MountOptions{Source: "x", AllowOther: true}, f.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		s.Wait()
	})
	return dir, a
}

// TestWarm reads a whole tree twice: the second time, the kernel asks nothing.
func TestWarm(t *testing.T) {
	var entries []tree.Entry
	for d := range 20 {
		for i := range 20 {
			entries = append(entries, tree.Entry{Name: fmt.Sprintf("%02d/%02d", d, i), Type: tree.Regular, Mode: 0o644, Size: int64(i * 1000), Content: int32(d*20 + i)})
		}
		entries = append(entries, tree.Entry{Name: fmt.Sprintf("%02d/link", d), Type: tree.Symlink, Mode: 0o777, Linkname: "00"})
	}
	dir, a := mountAsked(t, treeFS(t, entries...))
	read := func() {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			unix.Getxattr(path, "system.posix_acl_access", make([]byte, 100))
			if d.Type().IsRegular() {
				_, err = os.ReadFile(path)
			} else if d.Type() == fs.ModeSymlink {
				_, err = os.Readlink(path)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if n := a.opens.Load(); n > 4 {
		t.Errorf("%d files and folders are opened by requests", n)
	}
	if n := a.xattrs.Load(); n > lookAfter+4 {
		t.Errorf("%d questions for attributes of an image without", n)
	}
	if n := a.names.Load(); n > 2*21+4 {
		t.Errorf("%d look-ups and listings of 21 folders", n)
	}
	before := [...]int64{a.names.Load(), a.attrs.Load(), a.reads.Load(), a.opens.Load(), a.xattrs.Load()}
	read()
	if after := [...]int64{a.names.Load(), a.attrs.Load(), a.reads.Load(), a.opens.Load(), a.xattrs.Load()}; after != before {
		t.Errorf("names, attributes, contents, opens, xattrs: %v requests, and after a second pass %v", before, after)
	}
}

// acl is an access list in the form of an attribute: of the owner, of one more user, of the group, the mask, and of the others.
func acl(user byte) []byte {
	return []byte{
		2, 0, 0, 0,
		0x01, 0, 6, 0, 255, 255, 255, 255,
		0x02, 0, 4, 0, user, 0, 0, 0,
		0x04, 0, 0, 0, 255, 255, 255, 255,
		0x10, 0, 4, 0, 255, 255, 255, 255,
		0x20, 0, 0, 0, 255, 255, 255, 255,
	}
}

// TestAccessList reads a file that an access list opens to one user.
func TestAccessList(t *testing.T) {
	dir, a := mountAsked(t, treeFS(t,
		tree.Entry{Name: "d", Type: tree.Dir, Mode: 0o755},
		tree.Entry{Name: "d/file", Type: tree.Regular, Mode: 0o640, Size: 5, Xattrs: []tree.Xattr{{Name: "system.posix_acl_access", Value: acl(77)}}},
	))
	for _, c := range []struct {
		uid string
		ok  bool
	}{{"0", true}, {"77", true}, {"78", false}} {
		cmd := exec.Command("setpriv", "--reuid", c.uid, "--regid", "1000", "--clear-groups", "cat", "file")
		cmd.Dir = filepath.Join(dir, "d")
		if out, err := cmd.CombinedOutput(); (err == nil) != c.ok {
			t.Errorf("user %s: %v: %s", c.uid, err, out)
		}
	}
	n := a.xattrs.Load()
	for range 10 {
		unix.Getxattr(filepath.Join(dir, "d/file"), "system.posix_acl_access", make([]byte, 100))
	}
	if got := a.xattrs.Load(); got > n+1 {
		t.Errorf("%d more requests for an access list that the kernel knows", got-n)
	}
}

func TestHasNone(t *testing.T) {
	x := []tree.Xattr{{Name: "user.a", Value: []byte("b")}}
	file := tree.Entry{Name: "a/b/c", Type: tree.Regular, Mode: 0o644}
	with := func(e tree.Entry) tree.Entry { e.Xattrs = x; return e }
	for name, c := range map[string]struct {
		entries []tree.Entry
		want    bool
	}{
		"none":        {[]tree.Entry{file}, true},
		"empty":       {nil, true},
		"of a file":   {[]tree.Entry{with(file)}, false},
		"of a folder": {[]tree.Entry{with(tree.Entry{Name: "a", Type: tree.Dir, Mode: 0o755}), file}, false},
		"of the root": {[]tree.Entry{with(tree.Entry{Name: ".", Type: tree.Dir, Mode: 0o755}), file}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := treeFS(t, c.entries...)
			if got := hasNone(f.im); got != c.want {
				t.Errorf("%t, want %t", got, c.want)
			}
			for i := range 2 * lookAfter {
				var h fuse.InHeader
				h.NodeId = 1
				_, st := f.GetXAttr(nil, &h, "user.other", nil)
				if want := c.want && i >= lookAfter-1; (st == fuse.ENOSYS) != want {
					t.Fatalf("question %d is answered %v", i+1, st)
				}
			}
		})
	}
}
