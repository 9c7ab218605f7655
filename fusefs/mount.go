package fusefs

import (
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// MountOptions of a mount. A server that takes over is given those of the first one.
type MountOptions struct {
	Source     string // what /proc/mounts shows as its source
	AllowOther bool   // users other than the one who mounts may enter; the kernel then checks permissions
	Debug      bool   // log every request

	// Keep, if it isn't nil, is given the new mount's device before anything is served. An error ends the mount.
	Keep func(*Device) error
}

// ErrNoFUSE is wrapped where the machine has no /dev/fuse, or this user may not use it.
var ErrNoFUSE = errors.New("FUSE is not available")

// Hint says what people can do about ErrNoFUSE.
const Hint = "load the fuse module; an ordinary user also needs fusermount3 (fuse3) and the right to open /dev/fuse"

// maxIO is the greatest read in one request, in bytes.
const maxIO = 1 << 20

// ServerOptions are the options of the protocol, for /dev/fuse and virtio-fs alike.
func ServerOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		MaxWrite: maxIO, MaxReadAhead: maxIO, MaxBackground: 64, EnableSymlinkCaching: true,
		ExplicitDataCacheControl: true, // contents never change: no read asks whether they did
		// who offers it counts as a stacked file system, and Linux neither stacks two more on that nor mounts an image that lies in it
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		Logger:               log.New(io.Discard, "", 0),
	}
}

// options are those of the protocol for a mount. They decide what the kernel is told in the beginning, which holds for every
// later server of the mount.
func (o MountOptions) options(l *slog.Logger) *fuse.MountOptions {
	m := ServerOptions()
	m.Debug, m.EnableAcl = o.Debug, os.Geteuid() == 0 || o.AllowOther
	if o.Debug {
		m.Logger = log.New(os.Stderr, "", log.Lmicroseconds)
	}
	m.PanicHandler = panicked(l)
	return m
}

// panicked makes a request whose handler panics fail alone, and say so.
func panicked(l *slog.Logger) func(any) fuse.Status {
	return func(v any) fuse.Status {
		l.Error("a request panicked", "panic", v, "stack", string(debug.Stack()))
		return fuse.EIO
	}
}

// Server is a mount being served.
type Server struct {
	s   *fuse.Server
	d   *Device
	dir string // "": of a mount that is nowhere
}

// Mount mounts f on dir, read-only, nosuid and nodev: by mount(2) as root, else by fusermount3. Where the kernel checks permissions,
// it heeds access lists, and keeps them. It returns when the mount can be used.
func Mount(f *FS, dir string, o MountOptions) (*Server, error) { return mountAny(f, dir, o, f.log) }

func mountAny(f fuse.RawFileSystem, dir string, o MountOptions, l *slog.Logger) (*Server, error) {
	d, err := NewDevice(dir, o)
	if err != nil {
		return nil, err
	}
	s, err := begin(f, dir, d, o, l)
	if err != nil {
		return nil, errors.Join(err, Unmount(dir))
	}
	return s, nil
}

// NewDevice does the first half of Mount, which needs the right to mount: its users wait until Begin serves it. A mount whose device was
// closed instead is there until it is unmounted, and an error to its users.
func NewDevice(dir string, o MountOptions) (*Device, error) {
	d, err := mountDevice(dir, o)
	if err != nil {
		return nil, err
	}
	if o.Keep != nil {
		if err := o.Keep(d); err != nil {
			return nil, errors.Join(fmt.Errorf("mounting on %s: %w", dir, err), d.Close(), Unmount(dir))
		}
	}
	return d, nil
}

// Begin does the second half of Mount, with what NewDevice was told. d is the server's from here on.
func Begin(f *FS, dir string, d *Device, o MountOptions) (*Server, error) {
	return begin(f, dir, d, o, f.log)
}

func begin(f fuse.RawFileSystem, dir string, d *Device, o MountOptions, l *slog.Logger) (*Server, error) {
	s, err := serve(f, d, true, o.options(l))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mounting on %s: %w", dir, err), d.Close())
	}
	if o.Keep == nil {
		neverPolled(dir)
	}
	return &Server{s, d, dir}, nil
}

// neverPolled has the kernel learn that nothing here can be polled. Go polls what package os opens, in a call during which it keeps the
// processor: were that of a file of a mount that this very process serves, the two could wait for each other. go-fuse has a file for it.
//
// It isn't for mounts that outlive their servers. One that is killed while it waits for its own answer is never gone: it waits for that
// until another server gives it, which is started when this one is gone.
func neverPolled(dir string) {
	fd, err := unix.Open(filepath.Join(dir, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, _ = again(func() (int, error) { return unix.Poll(p, 0) }) // it is asked and answered, whatever the answer is
}

// Resume serves f on a mount on dir whose server has ended, in its place. What the kernel was told by that one must be true of f: it's
// of the same image. Requests that the other one had read come again, on Linux 6.9 and later; on an earlier one they failed.
// d is the server's from here on.
func Resume(f *FS, dir string, d *Device, o MountOptions) (*Server, error) {
	s, err := serve(f, d, false, o.options(f.log))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("taking over the mount on %s: %w", dir, err), d.Close())
	}
	return &Server{s, d, dir}, nil
}

// errStopped says that a server has ended before its mount.
var errStopped = errors.New("the mount is there, but is served no more")

// Wait returns when the mount has ended, whoever ended it. It may be called once. An error means that it has not ended: another
// server must take over.
func (s *Server) Wait() error {
	s.s.Wait()
	ended := s.d.Ended()
	err := s.d.Close()
	if !ended {
		return errors.Join(errStopped, err)
	}
	return err
}

// Unmount ends the mount; see the function Unmount.
func (s *Server) Unmount() error { return Unmount(s.dir) }

// Unmount ends a mount on dir. One that is in use stays, with an error that wraps EBUSY.
func Unmount(dir string) error {
	if os.Geteuid() == 0 {
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
		return nil
	}
	out, err := exec.Command("fusermount3", "-u", dir).CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		if strings.Contains(text, "busy") {
			err = unix.EBUSY
		} else {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	return nil
}
