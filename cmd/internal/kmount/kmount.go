// Package kmount mounts an EROFS image file by the kernel: from the file itself where the kernel can (Linux 6.12 and later), else
// by a loop device that goes with the mount.
package kmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV

// Mount mounts the image file on dir, read-only, nosuid and nodev; source is what /proc/mounts shows as the mount's source, if it can be
// shown. The kernel trusts an image's metadata more than it should: the caller has checked it and knows that nobody can change it. Only
// root may. Everybody may enter the mount, with the image's permissions.
func Mount(file *os.File, dir, source string) error {
	err := MountFile(file, dir, source)
	if err == nil || !errors.Is(err, unix.ENOTBLK) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	dev, err := loop(file)
	if err != nil {
		return fmt.Errorf("mounting %s by the kernel: %w", file.Name(), err)
	}
	defer dev.Close() // the mount holds the device from then on
	if err := mount(dev.Name(), dir, source); err != nil {
		return fmt.Errorf("mounting %s by the kernel: %w", file.Name(), err)
	}
	return nil
}

// MountFile is Mount without loop devices. The error wraps ENOTBLK where the kernel can't.
func MountFile(file *os.File, dir, source string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("mounting %s by the kernel: %w", file.Name(), unix.EPERM)
	}
	// what was checked, whatever has its name now
	if err := mount(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), dir, source); err != nil {
		return fmt.Errorf("mounting %s by the kernel: %w", file.Name(), err)
	}
	return nil
}

// loop makes a read-only loop device of the file, which goes away when nothing uses it any more.
func loop(file *os.File) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("making a loop device: %w", err)
	}
	defer ctl.Close()
	for range 16 { // another process may take the device that is free now
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("making a loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("making a loop device: %w", err)
		}
		c := unix.LoopConfig{Fd: uint32(file.Fd())}
		c.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		copy(c.Info.File_name[:len(c.Info.File_name)-1], filepath.Base(file.Name()))
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), &c); err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("making a loop device: %w", err)
		}
	}
	return nil, errors.New("making a loop device: others take each one that is free")
}
