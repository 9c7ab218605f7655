// Package vm says what a machine is: the Spec from which a machine monitor
// (VMM) starts it, the Machine that runs, and how one ended. It knows no VMM;
// vm/qemu is one. It also holds what every VMM needs: a child process that
// cannot outlive its parent, and the choice between KVM and emulation.
//
// A machine boots a kernel and an initramfs whose PID 1 speaks the protocol of
// vm/guest over one byte stream, the port. Its root file system is an EROFS
// image, given as a virtio-fs device (VirtioFS), as a disk that the host serves
// (Block), as persistent memory (Pmem), or as a disk with a second one that proves
// it (Verity). A machine has no network, no other disk and no display.
//
// What comes out of a machine is the guest's claim. A VMM's exit status says
// nothing about the program that ran inside.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ErrUnavailable reports that a VMM cannot be used on this host: it is not
// installed, or lacks something a Spec asks for.
var ErrUnavailable = errors.New("machine monitor unavailable")

// PmemAlign is the granularity of a persistent memory device's size: the
// kernel maps it in 2 MiB sections and ignores a device that ends within one.
const PmemAlign = 2 << 20

// Limits of a Spec that Check enforces.
const (
	MinMemory = 64 << 20
	MaxMemory = 1 << 40
	MaxVCPUs  = 255
)

// PortName is the name of the virtio-serial port that joins the host and PID 1.
const PortName = "pex.0"

// VMM starts machines. Its methods are safe for concurrent use.
type VMM interface {
	// Probe says what really works here. It returns an error wrapping
	// ErrUnavailable when nothing does.
	Probe(ctx context.Context) (Caps, error)

	// Command gives the command line that Start would use, without looking at
	// the host. files[i] is to be inherited as descriptor 3+i; a nil entry is
	// one end of a channel that Start makes.
	Command(s Spec) (argv []string, files []*os.File, err error)

	// Start starts a machine. The end of ctx kills it; Machine.Wait joins it.
	// The files of s stay the caller's, who may close them when Start returns.
	Start(ctx context.Context, s Spec) (*Machine, error)
}

// Caps is what a VMM can do on this host.
type Caps struct {
	Version  string // as the VMM says it
	KVM      bool   // built with support for KVM; says nothing about the host
	VirtioFS bool
	Pmem     bool
	Block    bool // disks that the host serves
	Verity   bool // disks that are files
}

// Accel is the way a machine's processor is executed.
type Accel string

// The accelerators.
const (
	TCG Accel = "tcg" // translated to host code: works everywhere
	KVM Accel = "kvm" // run by the host's processor
)

// Spec describes a machine.
type Spec struct {
	Accel   Accel
	VCPUs   int
	Memory  int64    // of the guest, in bytes; a multiple of 1 MiB
	Kernel  string   // path of a bzImage or of an ELF file with a PVH entry
	Initrd  string   // path of the boot archive
	Cmdline []string // kernel parameters added to those of the VMM
	Rootfs  Rootfs
}

// Rootfs is what holds the root file system: VirtioFS, Block, Pmem or Verity.
type Rootfs interface{ isRootfs() }

// VirtioFS is a root served by a vhost-user device of the host. Guest memory is
// then a sealed, shared memfd.
type VirtioFS struct {
	Tag  string   // 1 to 36 bytes
	Conn *os.File // the VMM's end of a connected unix socket; the other end is served before Start
}

// Block is a root on a read-only disk served by a vhost-user device of the host, the
// machine's only one. Guest memory is as with VirtioFS.
type Block struct {
	Conn *os.File // as VirtioFS has it
}

// Pmem is a root in a file that the guest sees as read-only persistent memory.
type Pmem struct {
	File *os.File // open read-only
	Size int64    // in bytes, a multiple of PmemAlign
}

// Verity is a root on two read-only disks: an image, and the hashes of its blocks,
// by which the guest checks all that it reads. What the hashes must come to, the
// guest learns from a kernel parameter. Data is the first disk, Hash the second.
type Verity struct {
	Data, Hash *os.File // open read-only; their sizes are multiples of 512 bytes
}

func (VirtioFS) isRootfs() {}
func (Block) isRootfs()    {}
func (Pmem) isRootfs()     {}
func (Verity) isRootfs()   {}

// Check reports what makes s unusable with any VMM. It doesn't look at the host.
func (s Spec) Check() error {
	switch {
	case s.Accel != TCG && s.Accel != KVM:
		return fmt.Errorf("checking machine: unknown accelerator %q", s.Accel)
	case s.VCPUs < 1 || s.VCPUs > MaxVCPUs:
		return fmt.Errorf("checking machine: %d processors: want 1 to %d", s.VCPUs, MaxVCPUs)
	case s.Memory < MinMemory || s.Memory > MaxMemory || s.Memory%(1<<20) != 0:
		return fmt.Errorf("checking machine: %d bytes of memory: want a multiple of 1 MiB between %d MiB and %d MiB", s.Memory, MinMemory>>20, MaxMemory>>20)
	}
	for _, p := range []string{s.Kernel, s.Initrd} {
		// Not every VMM can quote a path on its command line.
		if !filepath.IsAbs(p) || strings.ContainsAny(p, ",\n") {
			return fmt.Errorf("checking machine: %q: want an absolute path without commas", p)
		}
	}
	for _, a := range s.Cmdline {
		if a == "" || strings.ContainsAny(a, " \n\x00") {
			return fmt.Errorf("checking machine: kernel parameter %q", a)
		}
	}
	switch r := s.Rootfs.(type) {
	case VirtioFS:
		if r.Conn == nil {
			return errors.New("checking machine: virtio-fs root without a connection")
		}
		if r.Tag == "" || len(r.Tag) > 36 || strings.ContainsAny(r.Tag, ", \n\x00") {
			return fmt.Errorf("checking machine: virtio-fs tag %q", r.Tag)
		}
	case Block:
		if r.Conn == nil {
			return errors.New("checking machine: disk root without a connection")
		}
	case Pmem:
		if r.File == nil {
			return errors.New("checking machine: pmem root without a file")
		}
		if r.Size <= 0 || r.Size%PmemAlign != 0 {
			return fmt.Errorf("checking machine: pmem root of %d bytes: want a multiple of %d", r.Size, PmemAlign)
		}
	case Verity:
		if r.Data == nil || r.Hash == nil {
			return errors.New("checking machine: verity root without an image or its hashes")
		}
	default:
		return errors.New("checking machine: no root file system")
	}
	return nil
}
