// Package fusefs shows an EROFS image as a file system: the image's own metadata, and a Data that gives its contents, turned
// into a fuse.RawFileSystem for /dev/fuse and for virtio-fs alike.
//
// A NodeID is an inode's nid, and so is st_ino; the root is 1 in both. An image never changes, so the kernel may keep
// everything it was told for ever: names, names that don't exist, attributes, symlinks, directories, pages. There is no state
// of the kernel's to keep: FORGET is empty, and nothing is opened or released by a request. So what was read once is read again
// without one. Everything that would write is EROFS.
//
// So a process that dies can be replaced: whoever holds its mount's Device keeps the mount, and Resume serves it on. What the kernel was
// told, it would be told again.
//
// ServeFile shows an image in another way: as one file, for the kernel to mount as EROFS.
//
// No lock is held anywhere. A read waits in Data for missing contents and ends with EINTR when its request is interrupted.
// NodeIDs, names and offsets come from a kernel that may be a hostile guest's: each goes through package erofs, which trusts none.
package fusefs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/pexfs/pex/erofs"
)

// Data gives the contents of an image by their offsets in it.
type Data interface {
	// ReadAt reads len(p) bytes at off and waits for those that are missing until ctx ends.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// FdData is a Data that can name a file where bytes that are present lie, so that they need not be copied.
type FdData interface {
	Data
	// ReadFd gives a descriptor and an offset in it for n bytes at off; ok is false where they aren't all present.
	ReadFd(off int64, n int) (fd uintptr, fdOff int64, ok bool)
}

// Options of an FS.
type Options struct {
	Log *slog.Logger // of reads that fail; nil: none
}

// FS is an image as a file system. Its methods may be called concurrently.
type FS struct {
	fuse.RawFileSystem // what isn't below is ENOSYS
	im                 *erofs.Image
	data               Data
	fd                 FdData // data, if it is one
	log                *slog.Logger
	openDirs           bool // the kernel is one that must be let open directories: before Linux 5.1
	copied             int  // reads of less bytes are copied rather than spliced
	attributes         attributes
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New makes a file system of an image's metadata and its data.
func New(im *erofs.Image, data Data, o Options) *FS {
	f := &FS{RawFileSystem: fuse.NewDefaultRawFileSystem(), im: im, data: data, log: o.Log}
	f.fd, _ = data.(FdData)
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	return f
}

func (f *FS) String() string { return "pexfs" }

// forever is a time-out in seconds that the kernel takes for unlimited.
const forever = 1 << 32

// errno is the one place where errors become the kernel's.
func (f *FS) errno(what string, node uint64, err error) fuse.Status {
	var e syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, erofs.ErrNotDir):
		return fuse.ENOTDIR
	case errors.Is(err, erofs.ErrNotSymlink):
		return fuse.EINVAL
	case errors.Is(err, erofs.ErrNoXattr):
		return fuse.ENOATTR
	case errors.As(err, &e) && (e == syscall.EISDIR || e == syscall.ERANGE):
		return fuse.Status(e)
	}
	f.log.Error(what, "nid", node, "err", err)
	return fuse.EIO
}

func attr(a *fuse.Attr, in erofs.Inode) {
	*a = fuse.Attr{
		Ino: in.Nid, Size: uint64(in.Size), Blocks: (uint64(in.Size) + 511) / 512, Mode: in.Mode, Nlink: in.Nlink,
		Owner: fuse.Owner{Uid: in.UID, Gid: in.GID}, Rdev: in.Rdev, Blksize: 4096,
		Mtime: uint64(in.Mtime), Mtimensec: in.MtimeNsec, Ctime: uint64(in.Mtime), Ctimensec: in.MtimeNsec, Atime: uint64(in.Mtime), Atimensec: in.MtimeNsec,
	}
}

func (f *FS) entry(nid uint64, out *fuse.EntryOut) fuse.Status {
	in, err := f.im.Inode(nid)
	if err != nil {
		return f.errno("lookup", nid, err)
	}
	out.NodeId, out.Generation = nid, 1
	out.EntryValid, out.AttrValid = forever, forever
	attr(&out.Attr, in)
	return fuse.OK
}

// Lookup finds a name. One that doesn't exist is answered with node 0, which the kernel remembers.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := f.im.Inode(h.NodeId)
	if err != nil {
		return f.errno("lookup", h.NodeId, err)
	}
	nid, err := f.im.Lookup(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		*out = fuse.EntryOut{EntryValid: forever}
		return fuse.OK
	}
	if err != nil {
		return f.errno("lookup", h.NodeId, err)
	}
	return f.entry(nid, out)
}

// Forget has nothing to forget.
func (f *FS) Forget(nodeid, nlookup uint64) {}

func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	i, err := f.im.Inode(in.NodeId)
	if err != nil {
		return f.errno("getattr", in.NodeId, err)
	}
	out.AttrValid = forever
	attr(&out.Attr, i)
	return fuse.OK
}

func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	in, err := f.im.Inode(h.NodeId)
	if err != nil {
		return nil, f.errno("readlink", h.NodeId, err)
	}
	b, err := f.im.Readlink(in)
	return b, f.errno("readlink", h.NodeId, err)
}

// Access leaves the decision to the kernel, where default_permissions has it made, or grants what isn't writing.
func (f *FS) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	const write = 2
	if in.Mask&write != 0 {
		return fuse.EROFS
	}
	return fuse.ENOSYS // for good: the kernel then decides by itself
}

// Open and OpenDir are answered with ENOSYS, for good: the kernel then opens by itself, never asks to open, release or flush again,
// and keeps pages and names as if it had been told so. What can't be read is an error of READ and READDIR. A mount is read-only, so
// that no open for writing gets here; one of a kernel that does otherwise ends at its first WRITE.

func (f *FS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !f.openDirs {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// spliceMin is from how many bytes on three system calls and one copy take less time than two system calls and two copies.
const spliceMin = 64 << 10

// Init takes down what the kernel of a mount can do. It isn't called for virtio-fs, whose reads go straight to the guest's memory.
func (f *FS) Init(s *fuse.Server) {
	f.copied = spliceMin
	f.openDirs = s.KernelSettings().Flags64()&fuse.CAP_NO_OPENDIR_SUPPORT == 0
}

// request is the context of one request: it ends when the request is interrupted.
type request struct {
	context.Context
	cancel <-chan struct{}
}

func (r request) Done() <-chan struct{} { return r.cancel }

func (r request) Err() error {
	select {
	case <-r.cancel:
		return context.Canceled
	default:
		return nil
	}
}

func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	i, err := f.im.Inode(in.NodeId)
	if err != nil {
		return nil, f.errno("read", in.NodeId, err)
	}
	at, err := f.im.DataOff(i)
	inPieces := errors.Is(err, erofs.ErrUnsupported)
	if err != nil && !inPieces {
		return nil, f.errno("read", in.NodeId, err)
	}
	if in.Offset >= uint64(i.Size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	off := int64(in.Offset)
	n := int(min(int64(len(buf)), i.Size-off))
	if inPieces { // compressed, so of another writer than ours of lazy images: nothing is missing of it
		if _, err := f.im.ReadFileAt(i, buf[:n], off); err != nil {
			f.log.Error("read", "nid", in.NodeId, "off", off, "err", err)
			return nil, fuse.EIO
		}
		return fuse.ReadResultData(buf[:n]), fuse.OK
	}
	if f.fd != nil && n >= f.copied {
		if fd, fdOff, ok := f.fd.ReadFd(at+off, n); ok {
			return fuse.ReadResultFd(fd, fdOff, n), fuse.OK
		}
	}
	ctx := request{context.Background(), cancel}
	if k, err := f.data.ReadAt(ctx, buf[:n], at+off); k < n {
		if ctx.Err() != nil {
			return nil, fuse.EINTR
		}
		// whatever Data's error wraps, to a reader it is that the bytes can't be had
		f.log.Error("read", "nid", in.NodeId, "off", off, "err", err)
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Release and Flush have nothing to do; Flush says so for good.
func (f *FS) Release(<-chan struct{}, *fuse.ReleaseIn)                         {}
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status                 { return fuse.ENOSYS }
func (f *FS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status                 { return fuse.OK }
func (f *FS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status              { return fuse.OK }
func (f *FS) ReleaseDir(*fuse.ReleaseIn)                                       {}
func (f *FS) Lseek(<-chan struct{}, *fuse.LseekIn, *fuse.LseekOut) fuse.Status { return fuse.ENOSYS }

func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(d erofs.Dirent) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: string(d.Name), Ino: d.Nid, Mode: uint32(d.Type) << 12, Off: d.Next})
	})
}

func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(d erofs.Dirent) bool {
		name := string(d.Name)
		e := out.AddDirLookupEntry(fuse.DirEntry{Name: name, Ino: d.Nid, Mode: uint32(d.Type) << 12, Off: d.Next})
		if e == nil {
			return false
		}
		*e = fuse.EntryOut{}
		if name != "." && name != ".." {
			f.entry(d.Nid, e) // a name whose inode is damaged stays without attributes
		}
		return true
	})
}

func (f *FS) readDir(in *fuse.ReadIn, add func(erofs.Dirent) bool) fuse.Status {
	dir, err := f.im.Inode(in.NodeId)
	if err != nil {
		return f.errno("readdir", in.NodeId, err)
	}
	return f.errno("readdir", in.NodeId, f.im.ReadDir(dir, in.Offset, add))
}

// StatFs tells the image's size, with nothing free.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	s := f.im.Super()
	*out = fuse.StatfsOut{Blocks: uint64(s.Size) / 4096, Bsize: 4096, Frsize: 4096, Files: s.Inodes, NameLen: 255}
	return fuse.OK
}
