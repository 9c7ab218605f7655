package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// file is all that a merged tree must get right of a name.
type file struct {
	Mode     uint32 // type, permissions, setuid, setgid, sticky
	UID, GID uint32
	Nlink    uint32
	Size     int64 // not of directories
	Mtime    unix.Timespec
	Rdev     uint64
	Target   string
	Sum      string // SHA-256 of a file's content
	Xattrs   string
	Same     string // of an inode of several names, the first of them
}

// files is a directory tree by path. The root is "".
type files map[string]file

// list reads a directory tree. Every name is looked up. Paths may be longer than the kernel takes in one call.
func list(t *testing.T, root string) files {
	t.Helper()
	l := lister{out: files{}, inodes: map[uint64][]string{}}
	d, err := os.Open(root)
	if err == nil {
		var f file
		if f, _, err = l.stat(root); err == nil {
			l.out[""] = f
			err = errors.Join(l.dir(d, ""), d.Close())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range l.inodes {
		if len(names) > 1 {
			slices.Sort(names)
			for _, n := range names {
				f := l.out[n]
				f.Same = names[0]
				l.out[n] = f
			}
		}
	}
	return l.out
}

type lister struct {
	out    files
	inodes map[uint64][]string
}

func (l *lister) dir(d *os.File, rel string) error {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("listing %.300q: %w", rel, err)
	}
	for _, n := range names {
		path := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), n)
		f, ino, err := l.stat(path)
		if err != nil {
			return fmt.Errorf("%.300q: %w", rel+"/"+n, err)
		}
		l.out[rel+"/"+n] = f
		if f.Mode&unix.S_IFMT != unix.S_IFDIR {
			l.inodes[ino] = append(l.inodes[ino], rel+"/"+n)
			continue
		}
		sub, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(l.dir(sub, rel+"/"+n), sub.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) stat(path string) (file, uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return file{}, 0, err
	}
	f := file{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), Mtime: st.Mtim}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Size, f.Sum = st.Size, noneSum
		if st.Size > 0 {
			f.Sum, err = sha(path)
		}
	case unix.S_IFLNK:
		f.Size = st.Size
		f.Target, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		f.Rdev = st.Rdev
	}
	x, xerr := getXattrs(path)
	f.Xattrs = showXattrs(x)
	return f, st.Ino, errors.Join(err, xerr)
}

func showXattrs(x map[string]string) string {
	s := ""
	for _, k := range slices.Sorted(maps.Keys(x)) {
		s += fmt.Sprintf(" %s=%x", k, x[k])
	}
	return s
}

// noneSum is the SHA-256 of nothing.
const noneSum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func sha(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return shaOf(f)
}

func shaOf(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func getXattrs(path string) (map[string]string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return nil, fmt.Errorf("listing attributes of %.300q: %w", path, err)
	}
	x := map[string]string{}
	for name := range bytes.SplitSeq(bytes.Clone(b[:n]), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		n, err := unix.Lgetxattr(path, string(name), b)
		if err != nil {
			return nil, fmt.Errorf("reading attribute %s of %.300q: %w", name, path, err)
		}
		x[string(name)] = string(b[:n])
	}
	return x, nil
}

// counted is the tree with the link counts of directories that they have where each subdirectory is one: file systems differ.
func (fs files) counted() files {
	dir := func(f file) bool { return f.Mode&unix.S_IFMT == unix.S_IFDIR }
	below := map[string]uint32{}
	for p, f := range fs {
		if i := strings.LastIndexByte(p, '/'); i >= 0 && dir(f) {
			below[p[:i]]++
		}
	}
	out := maps.Clone(fs)
	for p, f := range fs {
		if dir(f) {
			f.Nlink = 2 + below[p]
			out[p] = f
		}
	}
	return out
}

// seconds is the tree with times rounded as the estargz package rounds them in tables of contents.
func (fs files) seconds() files {
	out := files{}
	for p, f := range fs {
		f.Mtime = unix.Timespec{Sec: time.Unix(f.Mtime.Unix()).Round(time.Second).Unix()}
		out[p] = f
	}
	return out
}

// rootTimeless is the tree without its root's time: where no layer lists the root, extractors leave there what they like.
func (fs files) rootTimeless() files {
	out := maps.Clone(fs)
	f := out[""]
	f.Mtime = unix.Timespec{}
	out[""] = f
	return out
}

// diff is how two trees differ, or nothing.
func diff(want, got files) string {
	d := cmp.Diff(want, got)
	if len(d) > 4000 {
		d = d[:4000] + "…"
	}
	return d
}

// same compares a mount with the tree that umoci made of the same image, whose layers don't list their root. Times are in seconds: tables
// of contents round them.
func same(t *testing.T, want files, root string) {
	t.Helper()
	if d := diff(want.counted().seconds().rootTimeless(), list(t, root).seconds().rootTimeless()); d != "" {
		t.Errorf("%s, -umoci +ours:\n%s", root, d)
	}
}
