//go:build linux

// Pex-init is PID 1 of a machine: it mounts the root that the kernel's parameters name, tells the host that it is ready
// over the virtio-serial port "pex.0", and runs the programs the host sends (package vm/guest). When the host says so,
// or its stream ends, or anything goes wrong, it powers the machine off; if it panics the kernel does, given panic=-1.
//
// Kernel parameters:
//
//	pex.root=virtiofs:TAG    the root, read-only: a virtio-fs device,
//	         pmem:DEVICE     an EROFS image in persistent memory, read with DAX,
//	         blk:DEVICE      or one on a disk,
//	         verity:DATA:HASH:BLOCKS:ROOT
//	                         or one of so many blocks on the disk DATA, read by way of
//	                         dm-verity with the hash device HASH and the Merkle root ROOT
//	pex.readahead=KIB        what reading a file in sequence reads of it in advance; not for pmem
//	pex.readonly             no file of the root can be changed; without it changes go to memory
//	pex.hostname=NAME        default "pex"
//	pex.ip=ADDRESS/BITS      address of eth0, pex.gateway=ADDRESS its default route
//	pex.dns=ADDRESS,…        name servers, for /etc/resolv.conf
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "pex-init: error: not PID 1 of a machine")
		os.Exit(1)
	}
	defer powerOff() // after a panic of this goroutine too, and after it was printed below
	defer func() {
		if v := recover(); v != nil {
			fmt.Fprintln(os.Stderr, "pex-init: panic:", v)
		}
	}()
	// Programs may send signals to PID 1. They end nothing here, but for SIGCHLD (reaper), and aren't ignored either: a
	// program would inherit that.
	signal.Notify(make(chan os.Signal, 1))
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "pex-init: error:", err)
	}
}

func powerOff() {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "pex-init: error: powering off:", err)
	}
}

// run does all that PID 1 does, until the machine is to end.
func run() error {
	if err := mountOwn(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("reading kernel parameters: %w", err)
	}
	build, err := os.ReadFile("/pex/build")
	if err != nil {
		return fmt.Errorf("reading boot archive: %w", err)
	}
	if err := loadModules("/pex"); err != nil {
		return err
	}
	port, err := openPort("pex.0")
	if err != nil {
		return err
	}
	defer port.Close()
	srv := guest.NewServer(port)
	if err := srv.Hello(strings.TrimSpace(string(build))); err != nil {
		return err
	}
	cfg, err := parseConfig(string(cmdline))
	var ready guest.Ready
	if err == nil {
		ready, err = setUp(cfg)
	}
	if err != nil {
		if ferr := srv.Fail(err); ferr != nil {
			fmt.Fprintln(os.Stderr, "pex-init: error:", ferr)
		}
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	if ready.Uptime, err = uptime(); err != nil {
		return err
	}
	if err := srv.Ready(ready); err != nil {
		return err
	}
	x := &executor{reaper: newReaper(children), hostname: cfg.hostname}
	if err := srv.Serve(x.run); err != nil {
		return fmt.Errorf("serving the host: %w", err)
	}
	return nil
}

// setUp makes the machine what the host asked for and leaves the boot archive.
func setUp(cfg config) (guest.Ready, error) {
	root, err := mountRoot(cfg)
	if err != nil {
		return guest.Ready{}, err
	}
	ready := guest.Ready{Root: cfg.rootKind, DAX: root.dax, Warnings: root.warnings}
	warn := func(err error) {
		if err != nil {
			ready.Warnings = append(ready.Warnings, err.Error())
		}
	}
	if err := switchRoot(newRoot); err != nil {
		return guest.Ready{}, err
	}
	if err := mountKernelFiles(); err != nil {
		return guest.Ready{}, err
	}
	if err := unix.Sethostname([]byte(cfg.hostname)); err != nil {
		return guest.Ready{}, fmt.Errorf("setting host name: %w", err)
	}
	warn(linkUp("lo"))
	if cfg.ip.IsValid() {
		if err := configureNet("eth0", cfg.ip, cfg.gateway); err != nil {
			return guest.Ready{}, err
		}
	}
	warn(writeEtc(cfg))
	// As containerd has it: enough for servers, and a soft limit that select(2) can live with.
	warn(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 524288}))
	if cfg.readonly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return guest.Ready{}, fmt.Errorf("making root read-only: %w", err)
		}
	}
	return ready, nil
}

// uptime is the time since the kernel started.
func uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("reading clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
