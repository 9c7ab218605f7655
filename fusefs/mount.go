package fusefs

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// MountOptions of a mount.
type MountOptions struct {
	Source     string // what /proc/mounts shows as its source
	AllowOther bool   // users other than the one who mounts may enter; the kernel then checks permissions
	Debug      bool   // log every request
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

// Server is a mount being served.
type Server struct {
	s   *fuse.Server
	dir string
}

// Mount mounts f on dir, read-only, nosuid and nodev: by mount(2) as root, else by fusermount3. Where the kernel checks permissions,
// it heeds access lists, and keeps them. It returns when the mount can be used.
func Mount(f *FS, dir string, o MountOptions) (*Server, error) { return mountAny(f, dir, o) }

func mountAny(f fuse.RawFileSystem, dir string, o MountOptions) (*Server, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("mounting: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("mounting on %s: not a directory", dir)
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: %w: %w", dir, ErrNoFUSE, err)
	}
	dev.Close()
	m := ServerOptions()
	m.FsName, m.Name, m.Debug, m.AllowOther = o.Source, "pexfs", o.Debug, o.AllowOther
	if o.Debug {
		m.Logger = log.New(os.Stderr, "", log.Lmicroseconds)
	}
	if os.Geteuid() == 0 {
		m.DirectMountStrict = true
		m.DirectMountFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
		m.Options = []string{"default_permissions"}
		m.EnableAcl = true
	} else {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			return nil, fmt.Errorf("mounting on %s: %w: %w", dir, ErrNoFUSE, err)
		}
		m.Options = []string{"ro"}
		if o.AllowOther {
			m.Options = append(m.Options, "default_permissions")
			m.EnableAcl = true
		}
		// fusermount3 splits at commas
		m.FsName = strings.ReplaceAll(m.FsName, ",", "_")
	}
	s, err := fuse.NewServer(f, dir, m)
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: %w", dir, err)
	}
	go s.Serve() // ends with the mount; Wait joins it
	if err := s.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mounting on %s: %w", dir, err), s.Unmount())
	}
	return &Server{s, dir}, nil
}

// Wait returns when the mount has ended, whoever ended it.
func (s *Server) Wait() { s.s.Wait() }

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
