//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The device mapper's interface (Linux: include/uapi/linux/dm-ioctl.h). A call takes and gives back one buffer: a
// struct dm_ioctl, with what a call needs besides behind it.
const (
	dmControl = "/dev/mapper/control"

	dmHeader     = 312 // size of struct dm_ioctl
	dmTargetSpec = 40  // size of struct dm_target_spec
	dmNameLen    = 128
	dmKindLen    = 16

	dmDevCreate  = 3
	dmDevSuspend = 6 // or resume, without a flag that says so
	dmTableLoad  = 9

	dmReadonly = 1 << 0

	sectorSize = 512
)

// dmTarget is a device of one target, read-only.
type dmTarget struct {
	sectors uint64
	kind    string
	params  string
}

// mapDevice makes a device and returns its path, which appears when the device can be read.
func mapDevice(name string, t dmTarget) (path string, err error) {
	ctl, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("mapping device %s: %w", name, err)
	}
	defer ctl.Close()
	made, err := dmCall(ctl, dmDevCreate, dmRequest(name, 0, nil))
	if err == nil {
		if _, err = dmCall(ctl, dmTableLoad, dmRequest(name, dmReadonly, &t)); err == nil {
			_, err = dmCall(ctl, dmDevSuspend, dmRequest(name, 0, nil))
		}
	}
	if err != nil {
		return "", fmt.Errorf("mapping device %s: %w", name, err)
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(binary.NativeEndian.Uint64(made[40:]))), nil
}

// dmRequest makes the buffer of a call about the device name; t may be nil.
func dmRequest(name string, flags uint32, t *dmTarget) []byte {
	b := make([]byte, dmHeader)
	e := binary.NativeEndian
	e.PutUint32(b[0:], 4) // version 4.0.0, which all later kernels take
	e.PutUint32(b[16:], dmHeader)
	e.PutUint32(b[28:], flags)
	copy(b[48:48+dmNameLen-1], name)
	if t != nil {
		e.PutUint32(b[20:], 1) // targets
		spec := make([]byte, dmTargetSpec)
		e.PutUint64(spec[8:], t.sectors) // from sector 0 on
		copy(spec[24:24+dmKindLen-1], t.kind)
		b = append(b, spec...)
		b = append(b, t.params...)
		b = append(b, make([]byte, 8-len(b)%8)...) // a NUL, and padding
	}
	e.PutUint32(b[12:], uint32(len(b)))
	return b
}

// dmCall does one call and returns its buffer, now with the answer.
func dmCall(ctl *os.File, command uintptr, b []byte) ([]byte, error) {
	const dirReadWrite, dmType = 3, 0xfd
	req := uintptr(dirReadWrite)<<30 | dmHeader<<16 | dmType<<8 | command
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), req, uintptr(unsafe.Pointer(&b[0])))
	if errno != 0 {
		return nil, fmt.Errorf("device mapper call %d: %w", command, errno)
	}
	return b, nil
}
