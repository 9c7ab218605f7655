package qemu

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/pexfs/pex/vm"
)

// The descriptors that QEMU inherits, in the order of Command's files.
const (
	firstFD = 3
	portFD  = firstFD     // the port to PID 1
	qmpFD   = firstFD + 1 // QMP
	rootFD  = firstFD + 2 // the root: a vhost-user socket or the image
	hashFD  = firstFD + 3 // the hashes of a Verity root
)

// kernelParams are the kernel parameters of every machine. A panic resets the
// machine, which ends it. The others cut the boot: without cryptomgr.notests,
// self-tests of ciphers are more than half of the instructions that a boot takes.
// Without swiotlb=noforce the kernel sets aside 64 MiB, for devices that don't reach
// all memory, wherever there may be some above 4 GiB, as with pmem; virtio's reach it.
var kernelParams = []string{
	"console=ttyS0",
	"quiet",
	"panic=-1",
	"cryptomgr.notests",
	"no_timer_check",
	"init_on_alloc=0",
	"initcall_blacklist=tracer_init_tracefs",
	"swiotlb=noforce",
}

// emulatedParams are more of them for TCG. A kernel with one processor takes the lock
// prefixes out of its code, which there is a twentieth of a boot, and gains nothing:
// they cost time on a real processor only.
var emulatedParams = []string{"noreplace-smp"}

// Command gives QEMU's command line for s.
func (q *QEMU) Command(s vm.Spec) (argv []string, files []*os.File, err error) {
	if err := s.Check(); err != nil {
		return nil, nil, err
	}
	argv = []string{
		q.path,
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// A q35: on a pc the kernel spends a tenth of its boot on each PCI device's
		// interrupt link.
		"-machine", "q35,accel=" + string(s.Accel) + ",memory-backend=mem,hpet=off,vmport=off,usb=off,sata=off,smbus=off",
		"-smp", strconv.Itoa(s.VCPUs),
	}
	// KVM: what this processor has. TCG: all that QEMU can translate, so that
	// programs built for newer processors run.
	params := slices.Concat(kernelParams, s.Cmdline)
	if s.Accel == vm.KVM {
		argv = append(argv, "-cpu", "host")
	} else {
		argv = append(argv, "-cpu", "max")
		params = slices.Concat(kernelParams, emulatedParams, s.Cmdline)
	}
	if q.firmware != "" {
		argv = append(argv, "-bios", q.firmware)
	}
	argv = append(argv,
		"-kernel", s.Kernel,
		"-initrd", s.Initrd,
		"-append", strings.Join(params, " "),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD), "-mon", "chardev=qmp,mode=control",
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=port,fd=%d", portFD),
		"-device", "virtserialport,chardev=port,name="+vm.PortName,
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng",
	)
	// Guest memory is a memfd that is shared with the vhost-user device and
	// sealed, so that it can't shrink under it.
	const memory = "memory-backend-memfd,id=mem,share=on,seal=on,size=%dM"
	mib := s.Memory >> 20
	argv = append(argv, "-object", fmt.Sprintf(memory, mib))

	files = []*os.File{nil, nil}
	switch r := s.Rootfs.(type) {
	case vm.VirtioFS:
		files = append(files, r.Conn)
		argv = append(argv,
			"-m", fmt.Sprintf("%dM", mib),
			"-chardev", fmt.Sprintf("socket,id=root,fd=%d", rootFD),
			"-device", "vhost-user-fs-pci,chardev=root,queue-size=1024,tag="+r.Tag,
		)
	case vm.Block:
		files = append(files, r.Conn)
		argv = append(argv,
			"-m", fmt.Sprintf("%dM", mib),
			"-chardev", fmt.Sprintf("socket,id=root,fd=%d", rootFD),
			"-device", "vhost-user-blk-pci,chardev=root,num-queues=1,queue-size=128",
		)
	case vm.Pmem:
		files = append(files, r.File)
		// Without readonly=on root in the guest could write to the host's
		// file. Persistent memory lies above the memory, within maxmem.
		argv = append(argv,
			"-m", fmt.Sprintf("%dM,slots=1,maxmem=%dM", mib, mib+r.Size>>20),
			"-object", fmt.Sprintf("memory-backend-file,id=root,share=on,readonly=on,mem-path=/proc/self/fd/%d,size=%d", rootFD, r.Size),
			"-device", "virtio-pmem-pci,memdev=root",
		)
	case vm.Verity:
		files = append(files, r.Data, r.Hash)
		argv = append(argv, "-m", fmt.Sprintf("%dM", mib))
		for _, d := range []struct {
			name string
			fd   int
		}{{"root", rootFD}, {"hash", hashFD}} {
			// The guest finds the disks in this order. Nobody writes to the
			// files, so there is nothing to lock.
			argv = append(argv,
				"-blockdev", fmt.Sprintf("driver=file,node-name=%s,filename=/proc/self/fd/%d,read-only=on,locking=off", d.name, d.fd),
				"-device", "virtio-blk-pci,drive="+d.name,
			)
		}
	}
	return argv, files, nil
}
