package erofs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
)

const (
	maxLinks = 40   // symlinks followed for one name, as Linux does
	maxDepth = 4096 // directories from the root to what a name leads to; a path that Linux takes has fewer
	readStep = 1 << 20
)

var (
	_ fs.StatFS     = (*FS)(nil)
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.ReadFileFS = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
	_ fs.SubFS      = (*FS)(nil)
)

// FS is an image's tree, or a part of it, for io/fs. It may be used concurrently.
//
// Symlinks are followed as after chroot(2) to the FS's root: absolute targets begin there, ".." stops there, 40 are the most for
// one name. ReadLink and Lstat don't follow the last one. An open file is an io.ReaderAt and io.Seeker, an open directory an
// fs.ReadDirFile; of a file, only ReadAt may be called concurrently. Nothing need be closed. Devices, FIFOs and
// sockets are empty files. The Sys of an fs.FileInfo is an *Inode; two names of one file have the same Nid. For names
// that are not UTF-8, which io/fs doesn't have, there is Image.Lookup: they are listed, but every use of them is an error.
//
// Errors are *fs.PathError, of which errors.Is tells fs.ErrNotExist, ErrNotDir, ErrInvalid, ErrUnsupported and, for too many symlinks
// and more than 4,096 directories one in another, syscall.ELOOP and syscall.ENAMETOOLONG.
//
// In a hostile image directories could be in each other. Here they make a tree: a directory can be entered only from the
// one that its ".." names, the root from none, and one that names another twice, or names out of order, can't be listed to
// its end. So fs.WalkDir enters each at most once, whatever it does about errors, and ends. That directories don't share
// their names' bytes, so that a walk takes no more steps than the image has bytes, only a look at all of it can tell: see Check.
type FS struct {
	im   *Image
	root uint64 // its nid
}

// FS gives the image's tree for io/fs.
func (im *Image) FS() *FS { return &FS{im, im.super.RootNid} }

// Open opens a file or a directory.
func (f *FS) Open(name string) (fs.File, error) {
	in, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	return openFile(f.im, name, in), nil
}

// Stat tells what a name leads to.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	in, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	return newFileInfo(name, in), nil
}

// Lstat is Stat, but for the name of a symlink, which it tells of itself.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	in, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return newFileInfo(name, in), nil
}

// ReadLink gives a symlink's target, as it is.
func (f *FS) ReadLink(name string) (string, error) {
	const op = "readlink"
	in, err := f.find(op, name, false)
	if err != nil {
		return "", err
	}
	target, err := f.im.Readlink(in)
	return string(target), pathError(op, name, err)
}

// ReadDir lists a directory, sorted by name. With an error it gives what was read before.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	const op = "readdir"
	in, err := f.find(op, name, true)
	if err != nil {
		return nil, err
	}
	r := dirReader{im: f.im, dir: in}
	es, err := r.read(-1)
	return es, pathError(op, name, err)
}

// ReadFile reads a file. Memory follows what could be read of it, whatever size the image claims.
func (f *FS) ReadFile(name string) ([]byte, error) {
	const op = "read"
	in, err := f.find(op, name, true)
	if err != nil {
		return nil, err
	}
	if in.IsDir() {
		return nil, pathError(op, name, syscall.EISDIR)
	}
	b := []byte{}
	for size := contentSize(in); int64(len(b)) < size; {
		n := int(min(size-int64(len(b)), int64(max(len(b), readStep))))
		b = slices.Grow(b, n)
		n, err := f.im.ReadFileAt(in, b[len(b):len(b)+n], int64(len(b)))
		b = b[:len(b)+n]
		if err != nil {
			return b, pathError(op, name, err)
		}
	}
	return b, nil
}

// Sub gives the tree below a directory, which is the root of what it gives.
func (f *FS) Sub(dir string) (fs.FS, error) {
	const op = "sub"
	in, err := f.find(op, dir, true)
	if err != nil {
		return nil, err
	}
	if !in.IsDir() {
		return nil, pathError(op, dir, ErrNotDir)
	}
	return &FS{f.im, in.Nid}, nil
}

// Xattrs lists the extended attributes of what a name leads to. For those of a symlink itself give what Lstat's Sys is to Image.Xattrs.
func (f *FS) Xattrs(name string) ([]Xattr, error) {
	const op = "listxattr"
	in, err := f.find(op, name, true)
	if err != nil {
		return nil, err
	}
	xs, err := f.im.Xattrs(in)
	return xs, pathError(op, name, err)
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// find gives the inode that a name leads to; with follow, through a symlink that has it. op is for the error.
func (f *FS) find(op, name string, follow bool) (Inode, error) {
	if !fs.ValidPath(name) {
		return Inode{}, pathError(op, name, fs.ErrInvalid)
	}
	in, err := f.walk(name, follow)
	return in, pathError(op, name, err)
}

// walk does find's work.
func (f *FS) walk(name string, follow bool) (Inode, error) {
	root, err := f.im.Inode(f.root)
	if err != nil {
		return Inode{}, err
	}
	at, above := root, []Inode(nil) // above are the directories that at is in, the root first
	todo := appendPath(nil, name)
	for links := 0; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !at.IsDir() {
			return Inode{}, fmt.Errorf("inode %d: %w", at.Nid, ErrNotDir)
		}
		switch p {
		case "", ".":
			continue
		case "..":
			if n := len(above); n > 0 {
				at, above = above[n-1], above[:n-1]
			}
			continue
		}
		next, err := f.child(at, p)
		switch {
		case err != nil:
			return Inode{}, err
		case next.IsSymlink() && (follow || len(todo) > 0):
			if links++; links > maxLinks {
				return Inode{}, syscall.ELOOP
			}
			target, err := f.im.Readlink(next)
			if err != nil {
				return Inode{}, err
			}
			if target[0] == '/' {
				at, above = root, above[:0]
			}
			todo = appendPath(todo, string(target))
		case len(above) == maxDepth:
			return Inode{}, syscall.ENAMETOOLONG
		default:
			at, above = next, append(above, at)
		}
	}
	return at, nil
}

// appendPath appends a path's components, the last one first.
func appendPath(todo []string, path string) []string {
	n := len(todo)
	todo = slices.AppendSeq(todo, strings.SplitSeq(path, "/"))
	slices.Reverse(todo[n:])
	return todo
}

// child gives the inode of a name in a directory. A directory must be in no other one.
func (f *FS) child(dir Inode, name string) (Inode, error) {
	nid, err := f.im.Lookup(dir, name)
	if err != nil {
		return Inode{}, err
	}
	in, err := f.im.Inode(nid)
	if err != nil || !in.IsDir() {
		return in, err
	}
	parent, err := f.im.Lookup(in, "..")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Inode{}, err
	}
	if err != nil || parent != dir.Nid || nid == f.im.super.RootNid {
		return Inode{}, fmt.Errorf("%w: directory %d is in directory %d, which is not its parent", ErrInvalid, nid, dir.Nid)
	}
	return in, nil
}
