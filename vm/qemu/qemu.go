// Package qemu runs machines under QEMU's x86-64 system emulator, version 7.2
// or later.
//
// The machine is of type q35, with nothing but what a Spec asks for. Its serial
// console is QEMU's standard output; its port to PID 1, and the channel that
// controls QEMU (QMP), are socket pairs that Start makes, so that QEMU has no
// name in any file system and nothing to be connected to. QEMU may start no
// process and gain no privilege (-sandbox), and dies with its parent.
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm"
)

// Name is the name under which Find looks for QEMU.
const Name = "qemu-system-x86_64"

// lastWords bounds the wait for what QMP still has to say when QEMU is gone.
const lastWords = time.Second

// QEMU starts machines with one installed QEMU.
type QEMU struct {
	path     string
	firmware string
	identity string
	console  io.Writer
}

var _ vm.VMM = (*QEMU)(nil)

// Options are the choices of Find.
type Options struct {
	Path     string    // of the program; default: Name on the PATH
	Firmware string    // path; default: qboot if it is installed, else QEMU's own (SeaBIOS)
	Console  io.Writer // gets what guests print on their console; may be nil
}

// Find finds QEMU on this host. It starts nothing. The error wraps
// vm.ErrUnavailable if there is none.
func Find(o Options) (*QEMU, error) {
	path := o.Path
	if path == "" {
		path = Name
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("finding QEMU: %w: %w", vm.ErrUnavailable, err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("finding QEMU: %w: %w", vm.ErrUnavailable, err)
	}
	q := &QEMU{path: path, firmware: o.Firmware, console: o.Console}
	q.identity = fmt.Sprintf("%s %d %d", path, fi.Size(), fi.ModTime().UnixNano())
	if q.firmware == "" {
		for _, p := range []string{"/usr/share/qemu/qboot.rom", "/usr/local/share/qemu/qboot.rom"} {
			if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() {
				q.firmware = p
				break
			}
		}
	}
	return q, nil
}

// Identity changes when another QEMU is installed. It costs no start of QEMU, as
// its version would.
func (q *QEMU) Identity() string { return q.identity }

// Path is the path of the program.
func (q *QEMU) Path() string { return q.path }

// Probe asks QEMU what it is and which of the devices it has. It takes a
// fraction of a second.
func (q *QEMU) Probe(ctx context.Context) (vm.Caps, error) {
	ask := func(args ...string) (string, error) {
		var out bytes.Buffer
		p, err := vm.StartProcess(ctx, append([]string{q.path}, args...), nil, &out)
		if err == nil {
			err = p.Wait()
		}
		if err != nil {
			return "", fmt.Errorf("asking %s %s: %w: %w", q.path, strings.Join(args, " "), vm.ErrUnavailable, err)
		}
		return out.String(), nil
	}
	version, err := ask("-version")
	if err != nil {
		return vm.Caps{}, err
	}
	accels, err := ask("-accel", "help")
	if err != nil {
		return vm.Caps{}, err
	}
	devices, err := ask("-device", "help")
	if err != nil {
		return vm.Caps{}, err
	}
	if !hasDevice(devices, "virtserialport") {
		return vm.Caps{}, fmt.Errorf("probing %s: %w: no device virtserialport", q.path, vm.ErrUnavailable)
	}
	return vm.Caps{
		Version:  parseVersion(version),
		KVM:      hasWord(accels, "kvm"),
		VirtioFS: hasDevice(devices, "vhost-user-fs-pci"),
		Pmem:     hasDevice(devices, "virtio-pmem-pci"),
		Block:    hasDevice(devices, "vhost-user-blk-pci"),
		Verity:   hasDevice(devices, "virtio-blk-pci"),
	}, nil
}

// parseVersion finds the version in the first line of -version; it is empty if
// there is none.
func parseVersion(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	_, v, _ := strings.Cut(line, "version ")
	v, _, _ = strings.Cut(v, " ")
	return v
}

func hasDevice(help, name string) bool {
	return strings.Contains(help, "name \""+name+"\"")
}

func hasWord(text, word string) bool {
	for w := range strings.FieldsSeq(text) {
		if w == word {
			return true
		}
	}
	return false
}

// Start starts a machine. When it returns, QEMU has accepted the Spec and the
// processors run.
func (q *QEMU) Start(ctx context.Context, s vm.Spec) (*vm.Machine, error) {
	argv, files, err := q.Command(s)
	if err != nil {
		return nil, err
	}
	var port, control pair
	defer port.close()
	defer control.close()
	if err := port.open("port"); err != nil {
		return nil, err
	}
	if err := control.open("qmp"); err != nil {
		return nil, err
	}
	files[portFD-firstFD], files[qmpFD-firstFD] = port.theirs, control.theirs

	proc, err := vm.StartProcess(ctx, argv, files, q.console)
	if err != nil {
		return nil, err
	}
	// From here on only QEMU holds its ends, so that ours end with it.
	port.theirs.Close()
	control.theirs.Close()
	mon, err := openMonitor(ctx, control.ours)
	if err != nil {
		proc.Kill()
		perr := proc.Wait()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("starting QEMU: %w", ctx.Err())
		}
		if words := strings.TrimSpace(proc.Stderr()); words != "" {
			err = errors.New(words)
		} else if perr != nil && !proc.WasKilled() {
			err = perr
		}
		return nil, fmt.Errorf("starting QEMU: %w", err)
	}
	m := vm.NewMachine(proc, port.ours, func() vm.Cause { return mon.cause(lastWords) })
	port.ours, control.ours = nil, nil // now theirs who use them
	return m, nil
}

// pair is a socket pair: our end, and the one that QEMU inherits.
type pair struct {
	ours   *net.UnixConn
	theirs *os.File
}

func (p *pair) open(name string) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making %s of machine: %w", name, err)
	}
	p.theirs = os.NewFile(uintptr(fds[1]), name)
	f := os.NewFile(uintptr(fds[0]), name)
	defer f.Close() // FileConn works on a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("making %s of machine: %w", name, err)
	}
	p.ours = c.(*net.UnixConn)
	return nil
}

func (p *pair) close() {
	if p.ours != nil {
		p.ours.Close()
	}
	if p.theirs != nil {
		p.theirs.Close()
	}
}
