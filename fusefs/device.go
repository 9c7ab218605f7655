package fusefs

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Device is a mount as the kernel has it. Whoever holds File open keeps the mount alive while nobody serves it: its users wait.
type Device struct {
	File *os.File // of /dev/fuse
	Init []byte   // the first request, by which kernel and server agree on what both can do; a later server has to know it too
}

// maxInit is how long that request may be, in bytes; minRead is the shortest buffer for which the kernel gives requests.
const (
	maxInit = 1 << 10
	minRead = 8 << 10
)

// newDevice makes a Device of a mount that is quite new.
func newDevice(f *os.File) (*Device, error) {
	b := make([]byte, minRead)
	n, err := again(func() (int, error) { return unix.Read(int(f.Fd()), b) })
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's first request: %w", err)
	}
	return &Device{f, b[:n]}, nil
}

// Ended tells whether the mount has ended.
func (d *Device) Ended() bool {
	p := []unix.PollFd{{Fd: int32(d.File.Fd()), Events: unix.POLLIN}}
	_, err := again(func() (int, error) { return unix.Poll(p, 0) })
	return err == nil && p[0].Revents&unix.POLLERR != 0
}

// Close closes the file.
func (d *Device) Close() error { return d.File.Close() }

// resends tells whether the kernel brings requests again that a dead server had read (Linux 6.9).
func (d *Device) resends() bool {
	in := (*fuse.InitIn)(unsafe.Pointer(unsafe.SliceData(d.Init)))
	return len(d.Init) >= int(unsafe.Offsetof(in.Flags2)+unsafe.Sizeof(in.Flags2)) && in.Flags64()&fuse.CAP_HAS_RESEND != 0
}

// serve serves f on a device, until the mount ends. The device stays the caller's.
//
// go-fuse begins with an INIT request. So its server is made on a socket, where it finds the one that the kernel sent, and the device
// is put in the socket's place before anything else is read. The answer goes to the kernel from the first server of a mount only.
func serve(f fuse.RawFileSystem, d *Device, first bool, o *fuse.MountOptions) (*fuse.Server, error) {
	if len(d.Init) > maxInit {
		return nil, fmt.Errorf("a first request of %d bytes", len(d.Init))
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket pair: %w", err)
	}
	ours, theirs := pair[0], pair[1]
	defer unix.Close(ours)
	if _, err := unix.Write(ours, d.Init); err != nil {
		unix.Close(theirs)
		return nil, fmt.Errorf("beginning to serve: %w", err)
	}
	s, err := fuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", theirs), o) // theirs is its own from here on
	if err != nil {
		return nil, fmt.Errorf("beginning to serve: %w", err)
	}
	answer := make([]byte, maxInit)
	n, err := again(func() (int, error) { return unix.Read(ours, answer) })
	if err == nil {
		err = d.plug(theirs)
	}
	switch {
	case err != nil:
	case first:
		_, err = unix.Write(int(d.File.Fd()), answer[:n])
	case d.resends():
		err = d.resend()
	}
	if err != nil {
		_ = unix.Dup3(ours, theirs, unix.O_CLOEXEC) // a socket with nobody at its other end, which it sees and closes
		s.Serve()
		return nil, fmt.Errorf("beginning to serve: %w", err)
	}
	go s.Serve() // ends with the mount; Wait joins it
	return s, nil
}

// devClone is FUSE_DEV_IOC_CLONE (linux/fuse.h).
const devClone = 0x8004e500

// plug puts the device in fd's place. What is read from the descriptor that others hold as well isn't lost with this process if
// the kernel resends. One that doesn't must know when the reader dies, so that it fails what was being answered, rather than having
// its users wait for ever: they get a descriptor of their own.
func (d *Device) plug(fd int) error {
	if d.resends() {
		return unix.Dup3(int(d.File.Fd()), fd, unix.O_CLOEXEC)
	}
	own, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoFUSE, err)
	}
	defer unix.Close(own)
	if err := unix.IoctlSetPointerInt(own, devClone, int(d.File.Fd())); err != nil {
		return fmt.Errorf("cloning the device: %w", err)
	}
	return unix.Dup3(own, fd, unix.O_CLOEXEC)
}

// notifyResend is FUSE_NOTIFY_RESEND (linux/fuse.h).
const notifyResend = 7

// resend has requests come again that were read and not answered.
func (d *Device) resend() error {
	h := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: notifyResend}
	_, err := unix.Write(int(d.File.Fd()), unsafe.Slice((*byte)(unsafe.Pointer(&h)), h.Length))
	if err != nil && !errors.Is(err, unix.ENODEV) { // a mount that has ended is seen when it is read
		return fmt.Errorf("asking for requests again: %w", err)
	}
	return nil
}

// again calls f until no signal disturbs it.
func again(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
