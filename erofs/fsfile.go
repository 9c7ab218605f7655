package erofs

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"syscall"
	"time"
)

var (
	_ io.ReaderAt    = (*openedFile)(nil)
	_ io.Seeker      = (*openedFile)(nil)
	_ fs.ReadDirFile = (*openedDir)(nil)
)

func openFile(im *Image, name string, in Inode) fs.File {
	info := newFileInfo(name, in)
	if in.IsDir() {
		return &openedDir{dirReader: dirReader{im: im, dir: in}, info: info, name: name}
	}
	return &openedFile{io.NewSectionReader(content{im, in, name}, 0, contentSize(in)), info}
}

// contentSize is the size of a regular file; no other has a content.
func contentSize(in Inode) int64 {
	if in.IsRegular() {
		return in.Size
	}
	return 0
}

// content reads a regular file.
type content struct {
	im   *Image
	in   Inode
	name string
}

func (c content) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.im.ReadFileAt(c.in, p, off)
	if err != nil && err != io.EOF {
		err = pathError("read", c.name, err)
	}
	return n, err
}

// openedFile is an open file that is no directory.
type openedFile struct {
	*io.SectionReader
	info *fileInfo
}

func (f *openedFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openedFile) Close() error               { return nil }

// openedDir is an open directory.
type openedDir struct {
	dirReader
	info *fileInfo
	name string
}

func (d *openedDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openedDir) Close() error               { return nil }

func (d *openedDir) Read([]byte) (int, error) { return 0, pathError("read", d.name, syscall.EISDIR) }

// ReadDir is that of fs.ReadDirFile, sorted by name.
func (d *openedDir) ReadDir(n int) ([]fs.DirEntry, error) {
	es, err := d.read(n)
	switch {
	case err != nil:
		return es, pathError("readdir", d.name, err)
	case n > 0 && len(es) == 0:
		return nil, io.EOF
	}
	return es, nil
}

// dirReader lists a directory bit by bit, and sees to it that names ascend and that no directory is named twice.
type dirReader struct {
	im   *Image
	dir  Inode
	next uint64 // as ReadDir takes it
	last string // the name before
	dirs map[uint64]struct{}
}

// read gives the next n names, or all that are left if n is not positive. With an error it gives those before.
func (r *dirReader) read(n int) ([]fs.DirEntry, error) {
	es := []fs.DirEntry{}
	var bad error
	err := r.im.ReadDir(r.dir, r.next, func(d Dirent) bool {
		name := string(d.Name)
		if name <= r.last {
			bad = fmt.Errorf("%w: directory %d: %q follows %q", ErrInvalid, r.dir.Nid, name, r.last)
			return false
		}
		if name != "." && name != ".." {
			e := &dirEntry{im: r.im, name: name, nid: d.Nid}
			if bad = r.setType(e, d.Type); bad != nil {
				return false
			}
			es = append(es, e)
		}
		r.last, r.next = name, d.Next
		return n <= 0 || len(es) < n
	})
	if err == nil {
		err = bad
	}
	return es, err
}

// setType gives an entry the type that the directory tells of it, or its inode if the directory doesn't.
func (r *dirReader) setType(e *dirEntry, d uint8) error {
	mode := uint32(d) << 12 // d_type is the type's bits of st_mode
	if mode == 0 {
		in, err := r.im.Inode(e.nid)
		if err != nil {
			return err
		}
		mode = in.Mode
	}
	e.typ = goMode(mode).Type()
	if !e.IsDir() {
		return nil
	}
	if _, ok := r.dirs[e.nid]; ok {
		return fmt.Errorf("%w: directory %d: %q is directory %d, which has another name", ErrInvalid, r.dir.Nid, e.name, e.nid)
	}
	if r.dirs == nil {
		r.dirs = make(map[uint64]struct{})
	}
	r.dirs[e.nid] = struct{}{}
	return nil
}

// dirEntry is a name in a directory.
type dirEntry struct {
	im   *Image
	name string
	nid  uint64
	typ  fs.FileMode
}

func (e *dirEntry) Name() string      { return e.name }
func (e *dirEntry) IsDir() bool       { return e.typ.IsDir() }
func (e *dirEntry) Type() fs.FileMode { return e.typ }
func (e *dirEntry) String() string    { return fs.FormatDirEntry(e) }

// Info reads the inode, which must be of the type that the directory tells.
func (e *dirEntry) Info() (fs.FileInfo, error) {
	in, err := e.im.Inode(e.nid)
	if err == nil && goMode(in.Mode).Type() != e.typ {
		err = fmt.Errorf("%w: inode %d has mode %#o, its directory tells another type", ErrInvalid, in.Nid, in.Mode)
	}
	if err != nil {
		return nil, pathError("stat", e.name, err)
	}
	return newFileInfo(e.name, in), nil
}

// fileInfo is an inode under one of its names.
type fileInfo struct {
	name string
	in   Inode
}

func newFileInfo(name string, in Inode) *fileInfo { return &fileInfo{path.Base(name), in} }

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.in.Size }
func (i *fileInfo) Mode() fs.FileMode  { return goMode(i.in.Mode) }
func (i *fileInfo) ModTime() time.Time { return time.Unix(i.in.Mtime, int64(i.in.MtimeNsec)) }
func (i *fileInfo) IsDir() bool        { return i.in.IsDir() }
func (i *fileInfo) String() string     { return fs.FormatFileInfo(i) }

func (i *fileInfo) Sys() any {
	in := i.in
	return &in
}

// goMode is a mode of stat(2) as io/fs has it.
func goMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, b := range [...]struct {
		bit uint32
		as  fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if mode&b.bit != 0 {
			m |= b.as
		}
	}
	switch mode & modeFormat {
	case modeRegular:
	case modeDir:
		m |= fs.ModeDir
	case modeSymlink:
		m |= fs.ModeSymlink
	case modeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case modeBlock:
		m |= fs.ModeDevice
	case modeFifo:
		m |= fs.ModeNamedPipe
	case modeSocket:
		m |= fs.ModeSocket
	default:
		m |= fs.ModeIrregular
	}
	return m
}
