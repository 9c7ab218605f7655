package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// testData is an image file, of which the content named blocked never comes, and that named broken can't be read.
type testData struct {
	f               *os.File
	blocked, broken int64 // image offsets, or 0
	waiting         chan struct{}
}

func (d *testData) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	switch off {
	case d.blocked:
		d.waiting <- struct{}{}
		<-ctx.Done()
		return 0, context.Cause(ctx)
	case d.broken:
		return 0, errors.New("the disk says no")
	}
	return d.f.ReadAt(p, off)
}

// testFS is a small tree as an image and a file system.
func testFS(t *testing.T) (*FS, *testData, *erofs.Image) {
	t.Helper()
	b := tree.NewBuilder(tree.Options{})
	entries := []tree.Entry{
		{Name: "d", Type: tree.Dir, Mode: 0o1750, UID: 7, GID: 8, Mtime: tree.Time{Sec: -5, Nsec: 250}},
		{Name: "d/file", Type: tree.Regular, Mode: 0o4755, Size: 5, Content: 0, Mtime: tree.Time{Sec: 9, Nsec: 1}, Xattrs: []tree.Xattr{{Name: "user.a", Value: []byte{0, 1}}}},
		{Name: "d/link", Type: tree.HardLink, Linkname: "d/file", Mode: 0o4755, Mtime: tree.Time{Sec: 9, Nsec: 1}},
		{Name: "empty", Type: tree.Regular, Mode: 0o600},
		{Name: "sym", Type: tree.Symlink, Mode: 0o777, Linkname: "d/file"},
		{Name: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3},
		{Name: "blocked", Type: tree.Regular, Mode: 0o644, Size: 10, Content: 1},
		{Name: "broken", Type: tree.Regular, Mode: 0o644, Size: 10, Content: 2},
	}
	for i := range 20000 {
		entries = append(entries, tree.Entry{Name: fmt.Sprintf("many/%05d", i), Type: tree.Fifo, Mode: 0o600})
	}
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
	l, err := erofs.NewLayout(tr, func(c tree.Content) [32]byte { return [32]byte{byte(c.Index)} }, [16]byte{})
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
	d := &testData{f: f, waiting: make(chan struct{}, 8)}
	for _, e := range l.Extents() {
		switch e.Content.Index {
		case 0:
			if _, err := f.WriteAt([]byte("hello"), e.Off); err != nil {
				t.Fatal(err)
			}
		case 1:
			d.blocked = e.Off
		case 2:
			d.broken = e.Off
		}
	}
	im, err := erofs.Open(f, l.Size())
	if err != nil {
		t.Fatal(err)
	}
	return New(im, d, Options{}), d, im
}

func mount(t *testing.T, f *FS) string {
	t.Helper()
	dir := t.TempDir()
	s, err := Mount(f, dir, MountOptions{Source: "host:5000/a b,c:1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestMount(t *testing.T) {
	f, _, im := testFS(t)
	dir := mount(t, f)
	for name, want := range map[string]struct {
		mode, uid, gid uint32
		nlink          uint64
		size, sec, ns  int64
		rdev           uint64
	}{
		"d":      {unix.S_IFDIR | 0o1750, 7, 8, 2, -1, -5, 250, 0},
		"d/file": {unix.S_IFREG | 0o4755, 0, 0, 2, 5, 9, 1, 0},
		"d/link": {unix.S_IFREG | 0o4755, 0, 0, 2, 5, 9, 1, 0},
		"empty":  {unix.S_IFREG | 0o600, 0, 0, 1, 0, 0, 0, 0},
		"sym":    {unix.S_IFLNK | 0o777, 0, 0, 1, 6, 0, 0, 0},
		"null":   {unix.S_IFCHR | 0o666, 0, 0, 1, 0, 0, 0, unix.Mkdev(1, 3)},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid || st.Nlink != want.nlink || st.Mtim.Sec != want.sec || st.Mtim.Nsec != want.ns || st.Rdev != want.rdev || want.size >= 0 && st.Size != want.size {
			t.Errorf("%s: %+v, want %+v", name, st, want)
		}
		if in, err := im.Inode(st.Ino); err != nil || in.Mode != st.Mode {
			t.Errorf("%s: st_ino %d is not its nid: %v", name, st.Ino, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "sym")); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "empty")); err != nil || len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
	buf := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(dir, "d/file"), "user.a", buf); err != nil || !bytes.Equal(buf[:n], []byte{0, 1}) {
		t.Errorf("attribute %q, %v", buf, err)
	}
	if _, err := unix.Getxattr(filepath.Join(dir, "d/file"), "user.b", buf); err != unix.ENODATA {
		t.Errorf("a missing attribute: %v", err)
	}
	if names, err := os.ReadDir(filepath.Join(dir, "many")); err != nil || len(names) != 20000 || names[19999].Name() != "19999" {
		t.Errorf("%d names, %v", len(names), err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || int64(fs.Blocks)*fs.Bsize != im.Super().Size || fs.Bfree != 0 || fs.Files != im.Super().Inodes || fs.Namelen != 255 {
		t.Errorf("statfs %+v, %v", fs, err)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || !strings.Contains(string(mounts), `host:5000/a\040b,c:1 `+dir+" fuse.pexfs ro,nosuid,nodev") {
		t.Errorf("no such mount: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "broken")); !errors.Is(err, unix.EIO) {
		t.Errorf("what can't be read: %v", err)
	}
	open, err := os.Open(filepath.Join(dir, "empty"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(dir); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmounting what is in use: %v", err)
	}
	open.Close()
}

// counting counts look-ups.
type counting struct {
	*FS
	n atomic.Int64
}

func (c *counting) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c.n.Add(1)
	return c.FS.Lookup(cancel, h, name, out)
}

// TestNegativeLookups checks that the kernel remembers names that don't exist.
func TestNegativeLookups(t *testing.T) {
	f, _, _ := testFS(t)
	dir := t.TempDir()
	o := ServerOptions()
	o.DirectMountStrict = true
	c := &counting{FS: f}
	s, err := fuse.NewServer(c, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve()
	defer s.Unmount()
	if err := s.WaitMount(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := os.Lstat(filepath.Join(dir, "nothing")); !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if n := c.n.Load(); n > 2 { // go-fuse looks one name up itself
		t.Errorf("%d look-ups for one missing name", n)
	}
}

// TestInterrupt kills a process that waits for bytes that never come.
func TestInterrupt(t *testing.T) {
	f, d, _ := testFS(t)
	dir := mount(t, f)
	cmd := exec.Command("cat", filepath.Join(dir, "blocked"))
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-d.waiting
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "d/file")); err != nil || string(b) != "hello" {
		t.Errorf("the mount is of no use afterwards: %q, %v", b, err)
	}
}
