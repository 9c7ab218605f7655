package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// fsName is the type that a mount has behind "fuse." in /proc/mounts.
const fsName = "pexfs"

// mountDevice mounts on dir. The mount waits for a server.
func mountDevice(dir string, o MountOptions) (*Device, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("mounting: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("mounting on %s: not a directory", dir)
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: %w: %w", dir, ErrNoFUSE, err)
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	if os.Geteuid() == 0 {
		err = mountOn(dev, dir, o)
	} else {
		dev.Close()
		dev, err = fusermount(dir, o)
	}
	if err != nil {
		if dev != nil {
			dev.Close()
		}
		return nil, fmt.Errorf("mounting on %s: %w", dir, err)
	}
	d, err := newDevice(dev)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mounting on %s: %w", dir, err), Unmount(dir), dev.Close())
	}
	return d, nil
}

// mountOn mounts by mount(2). The kernel checks permissions.
func mountOn(dev *os.File, dir string, o MountOptions) error {
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions", dev.Fd(), unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxIO)
	if o.AllowOther {
		options += ",allow_other"
	}
	source := o.Source
	if source == "" {
		source = fsName
	}
	return unix.Mount(source, dir, "fuse."+fsName, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, options)
}

// fusermount mounts by fusermount3, which hands over the device.
func fusermount(dir string, o MountOptions) (*os.File, error) {
	program, err := exec.LookPath("fusermount3")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoFUSE, err)
	}
	options := fmt.Sprintf("ro,nosuid,nodev,subtype=%s,max_read=%d", fsName, maxIO)
	if o.Source != "" { // it splits at commas
		options += ",fsname=" + strings.NewReplacer(`\`, `\\`, ",", "_").Replace(o.Source)
	}
	if o.AllowOther {
		options += ",default_permissions,allow_other"
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket pair: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	var said bytes.Buffer
	cmd := exec.Command(program, "-o", options, "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3") // the first of ExtraFiles
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = &said
	err = cmd.Run()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(said.String()))
	}
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 8), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fusermount3: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("fusermount3: it sent no descriptor (%v)", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("fusermount3: it sent no descriptor (%v)", err)
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}
