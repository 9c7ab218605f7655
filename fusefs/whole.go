package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// wholeName is the name of the one file of a Whole.
const wholeName = "image"

const (
	wholeRoot = fuse.FUSE_ROOT_ID
	wholeFile = 2
)

// whole is a file system of one file, which is an image's bytes, for Linux to mount as EROFS: what is missing of it is waited for when
// the kernel reads it. Reads of contents go past the page cache of this file, since EROFS caches them itself, and into EROFS' own
// pages; so nothing is read ahead but what EROFS asks for.
type whole struct {
	fuse.RawFileSystem // what isn't below is ENOSYS
	size               int64
	data               Data
	fd                 FdData // data, if it is one
	log                *slog.Logger
}

func (w *whole) String() string { return "pexfs" }

func (w *whole) attr(node uint64, a *fuse.Attr) {
	*a = fuse.Attr{Ino: node, Nlink: 2, Mode: syscall.S_IFDIR | 0o500, Blksize: 4096, Owner: fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}}
	if node == wholeFile {
		a.Nlink, a.Mode, a.Size, a.Blocks = 1, syscall.S_IFREG|0o400, uint64(w.size), (uint64(w.size)+511)/512
	}
}

func (w *whole) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != wholeRoot || name != wholeName {
		return fuse.ENOENT
	}
	*out = fuse.EntryOut{NodeId: wholeFile, Generation: 1, EntryValid: forever, AttrValid: forever}
	w.attr(wholeFile, &out.Attr)
	return fuse.OK
}

func (w *whole) Forget(nodeid, nlookup uint64) {}

func (w *whole) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	w.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (w *whole) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != wholeFile {
		return fuse.Status(syscall.EISDIR)
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Read gives all that was asked for, up to the file's end, or an error: of less, EROFS would take the rest for zeros. An interrupt
// doesn't end it, since the kernel has no use for half a page; whoever waits for the page can be killed all the same.
func (w *whole) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.NodeId != wholeFile || in.Offset >= uint64(w.size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	off := int64(in.Offset)
	n := int(min(int64(len(buf)), w.size-off))
	if w.fd != nil && n >= spliceMin {
		if fd, fdOff, ok := w.fd.ReadFd(off, n); ok {
			return fuse.ReadResultFd(fd, fdOff, n), fuse.OK
		}
	}
	if k, err := w.data.ReadAt(context.Background(), buf[:n], off); k < n {
		w.log.Error("read", "off", off, "err", err)
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (w *whole) Release(<-chan struct{}, *fuse.ReleaseIn)           {}
func (w *whole) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status   { return fuse.ENOSYS }
func (w *whole) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }
func (w *whole) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func newWhole(size int64, data Data, o Options) *whole {
	w := &whole{RawFileSystem: fuse.NewDefaultRawFileSystem(), size: size, data: data, log: o.Log}
	w.fd, _ = data.(FdData)
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	return w
}

// wholeOptions are those of the protocol.
func (w *whole) options() *fuse.MountOptions {
	m := ServerOptions()
	m.ExtraCapabilities = fuse.CAP_ASYNC_DIO
	m.PanicHandler = panicked(w.log)
	return m
}

// ServeFile serves an image of size bytes as a file on a mount that is in no tree of folders, which only root may make. It gives the
// file, open for reading. The mount ends when nobody has the file open any more, neither the caller nor a file system that the kernel has
// mounted from it. Keep, if it isn't nil, is that of MountOptions.
func ServeFile(size int64, data Data, o Options, keep func(*Device) error) (*os.File, *Server, error) {
	f, s, err := newWhole(size, data, o).serve(keep)
	if err != nil {
		return nil, nil, fmt.Errorf("serving the image as a file: %w", err)
	}
	return f, s, nil
}

// ResumeFile serves the file in the place of a server that has ended: see Resume.
func ResumeFile(size int64, data Data, o Options, d *Device) (*Server, error) {
	w := newWhole(size, data, o)
	s, err := serve(w, d, false, w.options())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serving the image as a file: %w", err), d.Close())
	}
	return &Server{s, d, ""}, nil
}

// serve makes a FUSE mount that is nowhere, and serves w on it. The mount goes away with the last descriptor of what is in it.
func (w *whole) serve(keep func(*Device) error) (*os.File, *Server, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNoFUSE, err)
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	tree, err := detached(fd)
	if err != nil {
		dev.Close()
		return nil, nil, err
	}
	defer unix.Close(tree)
	d, err := newDevice(dev)
	if err == nil && keep != nil {
		err = keep(d)
	}
	var s *fuse.Server
	if err == nil {
		s, err = serve(w, d, true, w.options())
	}
	if err != nil {
		dev.Close()
		return nil, nil, err
	}
	image, err := unix.Openat(tree, wholeName, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil { // nothing is left of the mount once tree is closed
		return nil, nil, err
	}
	return os.NewFile(uintptr(image), "the image served as a file"), &Server{s, d, ""}, nil
}

// detached makes the mount, and gives a descriptor of its root.
func detached(dev int) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, kv := range [][2]string{
		{"source", "pexfs"}, {"subtype", "pexfs"}, {"fd", fmt.Sprint(dev)}, {"rootmode", fmt.Sprintf("%o", unix.S_IFDIR)},
		{"user_id", fmt.Sprint(os.Geteuid())}, {"group_id", fmt.Sprint(os.Getegid())}, {"max_read", fmt.Sprint(maxIO)},
	} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return -1, fmt.Errorf("fsconfig %s=%s: %w", kv[0], kv[1], err)
		}
	}
	err = errors.Join(unix.FsconfigSetFlag(fs, "ro"))
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return tree, nil
}
