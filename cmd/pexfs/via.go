package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

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

// shown is an image shown on a folder. Wait returns when the mount has ended, whoever ended it.
type shown interface {
	Wait()
	Unmount() error
}

// show shows an image of the cache.
func show(im *view.Image, s viewSpec, log *slog.Logger) (shown, error) {
	switch s.Via {
	case viaErofs:
		return showErofs(im, s, log, kmount.Mount)
	case viaAuto:
		// a mount by FUSE is closed to other users unless they are let in, which the kernel's can't be
		if os.Geteuid() != 0 || !s.AllowOther || s.Debug {
			break
		}
		m, err := showErofs(im, s, log, kmount.MountFile)
		if err == nil {
			return m, nil
		}
		log.Info("mounting by FUSE", "dir", s.Dir, "why", err)
	}
	return showFUSE(im.Meta(), im, s, log)
}

// showFUSE shows an image by this process.
func showFUSE(meta *erofs.Image, data fusefs.Data, s viewSpec, log *slog.Logger) (shown, error) {
	fs := fusefs.New(meta, data, fusefs.Options{Log: log})
	return fusefs.Mount(fs, s.Dir, fusefs.MountOptions{Source: s.Source, AllowOther: s.AllowOther, Debug: s.Debug})
}

// showErofs has the kernel mount an image, after a check of its whole metadata: a complete one from the image file. Of another the
// kernel sees a file that this process serves, and reads of what is missing wait; all else is as fast as if nothing were.
func showErofs(im *view.Image, s viewSpec, log *slog.Logger, mount func(f *os.File, dir, source string) error) (shown, error) {
	if err := sound(im.File(), im.Check); err != nil {
		return nil, err
	}
	if im.Complete() {
		if err := mount(im.File(), s.Dir, s.Source); err != nil {
			return nil, err
		}
		m, err := kmount.Find(s.Dir)
		if err != nil {
			return nil, errors.Join(err, fusefs.Unmount(s.Dir))
		}
		return &kernelMount{m, s.Dir, log}, nil
	}
	f, wait, err := fusefs.ServeFile(im.Size(), &wholeImage{im, im.Meta().Super().MetaOffset}, fusefs.Options{Log: log})
	if err != nil {
		return nil, err
	}
	err = mount(f, s.Dir, s.Source)
	f.Close()
	if err != nil {
		wait() // nobody has the file open
		return nil, err
	}
	return &lazyMount{wait, s.Dir}, nil
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
	m   *kmount.Mounted
	dir string
	log *slog.Logger
}

func (k *kernelMount) Wait() {
	if err := k.m.Wait(); err != nil {
		k.log.Error("waiting for the end of the mount", "dir", k.dir, "err", err)
	}
}

func (k *kernelMount) Unmount() error { return fusefs.Unmount(k.dir) }

// lazyMount is the kernel's mount of a file that this process serves: when it has really ended, nobody has the file open.
type lazyMount struct {
	wait func()
	dir  string
}

func (l *lazyMount) Wait()          { l.wait() }
func (l *lazyMount) Unmount() error { return fusefs.Unmount(l.dir) }

// wholeImage reads metadata, which is always there, past what looks after contents: it is no part of a profile.
type wholeImage struct {
	*view.Image
	meta int64
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
