package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/cmd/internal/holder"
	"github.com/pexfs/pex/cmd/internal/kmount"
	"github.com/pexfs/pex/cmd/internal/view"
	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/fusefs"
)

// Ways of showing an image as a folder, as --via has them.
const (
	viaAuto  = "auto"
	viaFUSE  = "fuse"
	viaErofs = "erofs"
)

const viaUsage = "what answers the mount's users: fuse, a process; erofs, the kernel (root only, all users may enter); auto, the kernel where it can, for root with --allow-other"

// checkVia checks the flag.
func checkVia(via string, debug bool) error {
	switch {
	case via != viaAuto && via != viaFUSE && via != viaErofs:
		return fmt.Errorf("--via %s: not auto, fuse or erofs", via)
	case via == viaErofs && os.Geteuid() != 0:
		return errors.New("--via erofs: only root may have the kernel mount an image")
	case via == viaErofs && debug:
		return errors.New("--debug goes with --via fuse: the kernel logs no requests")
	}
	return nil
}

// shown is an image shown on a folder. Wait returns when the mount has ended, whoever ended it; its error means that it hasn't.
type shown interface {
	Wait() error
	Unmount() error
}

// mounter shows an image as its spec has it: on a new mount, or on that which an earlier view has left.
type mounter struct {
	viewSpec
	link  *holder.Link
	left  *left    // nil: there is none
	image *os.File // of the cache, locked by who reads it; or nil
	log   *slog.Logger
	warn  func(string) // the user who mounts

	dev      *fusefs.Device // of a new mount by FUSE that was made already; nil: there is none
	confined bool
}

// left is what a view leaves with its holder for a successor.
type left struct {
	Via   string `json:"via"`             // viaFUSE; viaErofs: the kernel mounted a file that is served; viaKernel: that needs nobody; viaEnded
	Init  []byte `json:"init,omitempty"`  // of the fusefs.Device, whose file comes with it
	Mount string `json:"mount,omitempty"` // of viaKernel: the mount's name
	dev   *fusefs.Device
	m     *kmount.Mounted
}

// viaKernel is a mount that the kernel serves alone, from the complete image file.
const viaKernel = "kernel"

// viaEnded is a mount that has ended.
const viaEnded = "ended"

// keep leaves a mount with the holder: what is to be served, with a device if there is one; and, behind that, the image file, whose lock keeps
// the image from being removed while nobody else has it open.
func (m *mounter) keep(l left, files ...*os.File) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if m.image != nil {
		files = append(files, m.image)
	}
	return m.link.Keep(b, files...)
}

// takeLeft understands what an earlier view has kept; nothing is nil.
func takeLeft(state []byte, files []*os.File) (*left, error) {
	if len(state) == 0 {
		return nil, nil
	}
	l := new(left)
	if err := json.Unmarshal(state, l); err != nil {
		return nil, fmt.Errorf("taking over a mount: %w", err)
	}
	switch {
	case l.Via == viaEnded:
	case l.Via == viaKernel:
		var err error
		if l.m, err = kmount.Named(l.Mount); err != nil {
			return nil, err
		}
	case len(files) == 0:
		return nil, errors.New("taking over a mount: no device's descriptor")
	default:
		l.dev = &fusefs.Device{File: files[0], Init: l.Init}
		files = files[1:]
	}
	for _, f := range files { // of the image, which the holder keeps locked
		f.Close()
	}
	return l, nil
}

// ended tells whether there is a mount, and it has ended.
func (l *left) ended() bool { return l != nil && (l.Via == viaEnded || l.dev != nil && l.dev.Ended()) }

// show shows an image of the cache.
func (m *mounter) show(im *view.Image) (shown, error) {
	if m.left != nil {
		switch m.left.Via {
		case viaErofs:
			return m.resumeFile(im)
		case viaKernel:
			return &kernelMount{m.left.m, m.Dir}, nil
		}
		return m.showFUSE(im.Meta(), im)
	}
	switch m.Via {
	case viaErofs:
		return m.showErofs(im, kmount.Mount)
	case viaAuto:
		if !m.mayKernel() {
			break
		}
		s, err := m.showErofs(im, kmount.MountFile)
		if err == nil {
			return s, nil
		}
		m.log.Info("mounting by FUSE", "dir", m.Dir, "why", err)
	}
	return m.showFUSE(im.Meta(), im)
}

// mayKernel tells whether the kernel may mount the image.
func (m *mounter) mayKernel() bool {
	// a mount by FUSE is closed to other users unless they are let in, which the kernel's can't be
	return m.File == "" && (m.Via == viaErofs || m.Via == viaAuto && os.Geteuid() == 0 && m.AllowOther && !m.Debug)
}

// mountOptions are those of a mount by FUSE.
func (m *mounter) mountOptions() fusefs.MountOptions {
	return fusefs.MountOptions{
		Source: m.Source, AllowOther: m.AllowOther, Debug: m.Debug,
		Keep: func(d *fusefs.Device) error { return m.keep(left{Via: viaFUSE, Init: d.Init}, d.File) },
	}
}

// showFUSE shows an image by this process.
func (m *mounter) showFUSE(meta *erofs.Image, data fusefs.Data) (shown, error) {
	fs := fusefs.New(meta, data, fusefs.Options{Log: m.log})
	switch {
	case m.left != nil:
		return fusefs.Resume(fs, m.Dir, m.left.dev, m.mountOptions())
	case m.dev != nil:
		if err := m.keep(left{Via: viaFUSE, Init: m.dev.Init}, m.dev.File); err != nil { // with the image, which was not open when the mount was made
			return nil, err
		}
		return fusefs.Begin(fs, m.Dir, m.dev, m.mountOptions())
	}
	return fusefs.Mount(fs, m.Dir, m.mountOptions())
}

// showErofs has the kernel mount an image, after a check of its whole metadata: a complete one from the image file. Of another the
// kernel sees a file that this process serves, and reads of what is missing wait; all else is as fast as if nothing were.
func (m *mounter) showErofs(im *view.Image, mount func(f *os.File, dir, source string) error) (shown, error) {
	if err := sound(im.File(), im.Check); err != nil {
		return nil, err
	}
	if im.Complete() {
		if err := mount(im.File(), m.Dir, m.Source); err != nil {
			return nil, err
		}
		at, err := kmount.Find(m.Dir)
		if err == nil {
			err = m.keep(left{Via: viaKernel, Mount: at.Name()})
		}
		if err != nil {
			return nil, errors.Join(err, fusefs.Unmount(m.Dir))
		}
		return &kernelMount{at, m.Dir}, nil
	}
	keep := func(d *fusefs.Device) error { return m.keep(left{Via: viaErofs, Init: d.Init}, d.File) }
	f, s, err := fusefs.ServeFile(im.Size(), newWholeImage(im), fusefs.Options{Log: m.log}, keep)
	if err != nil {
		return nil, err
	}
	err = mount(f, m.Dir, m.Source)
	f.Close()
	if err != nil {
		// nobody has the file open
		return nil, errors.Join(err, s.Wait())
	}
	return &lazyMount{s, m.Dir}, nil
}

// resumeFile serves the file again that the kernel has mounted.
func (m *mounter) resumeFile(im *view.Image) (shown, error) {
	s, err := fusefs.ResumeFile(im.Size(), newWholeImage(im), fusefs.Options{Log: m.log}, m.left.dev)
	if err != nil {
		return nil, err
	}
	return &lazyMount{s, m.Dir}, nil
}

// sound makes sure of what the kernel takes for granted: that nobody but root can change the file, and, by check, that it's right.
func sound(f *os.File, check func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("mounting %s: %w", f.Name(), err)
	}
	if st.Mode&0o022 != 0 || st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("mounting %s by the kernel: others than root may change it (mode %#o, owner %d)", f.Name(), st.Mode&0o7777, st.Uid)
	}
	if err := check(); err != nil {
		return fmt.Errorf("mounting %s by the kernel: it is not sound: %s", f.Name(), problems(err)[0])
	}
	return nil
}

// kernelMount is a mount that needs no process; this one holds the image's lease until it ends.
type kernelMount struct {
	*kmount.Mounted
	dir string
}

func (k *kernelMount) Unmount() error { return fusefs.Unmount(k.dir) }

// lazyMount is the kernel's mount of a file that this process serves: when it has really ended, nobody has the file open.
type lazyMount struct {
	*fusefs.Server
	dir string
}

func (l *lazyMount) Unmount() error { return fusefs.Unmount(l.dir) }

// wholeImage reads metadata, which is always there, past what looks after contents: it is no part of a profile.
type wholeImage struct {
	*view.Image
	meta int64
}

func newWholeImage(im *view.Image) *wholeImage {
	return &wholeImage{im, im.Meta().Super().MetaOffset}
}

func (w *wholeImage) contents(off int64) bool { return off >= contentsOff && off < w.meta }

// contentsOff is where the contents begin in an image, at the earliest.
const contentsOff = 4096

func (w *wholeImage) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if !w.contents(off) {
		return w.File().ReadAt(p, off)
	}
	return w.Image.ReadAt(ctx, p, off)
}

func (w *wholeImage) ReadFd(off int64, n int) (fd uintptr, fdOff int64, ok bool) {
	if !w.contents(off) {
		return 0, 0, false
	}
	return w.Image.ReadFd(off, n)
}
