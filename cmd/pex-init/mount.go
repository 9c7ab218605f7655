//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Where things are before switchRoot.
const (
	lowerDir = "/lower" // the image
	rwDir    = "/rw"    // a tmpfs for what changes
	newRoot  = "/root"
)

// mount is mount(2), making the folder where it is missing.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("mounting %s: %w", target, err)
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s (%s): %w", source, target, fstype, err)
	}
	return nil
}

// mountOwn mounts what PID 1 itself needs to find the devices.
func mountOwn() error {
	return errors.Join(
		mount("proc", "/proc", "proc", 0, ""),
		mount("sysfs", "/sys", "sysfs", 0, ""),
		mount("devtmpfs", "/dev", "devtmpfs", 0, ""),
	)
}

// root is what mountRoot has found out.
type root struct {
	dax      bool
	warnings []string
}

// mountRoot mounts the image with a tmpfs above it on newRoot.
func mountRoot(cfg config) (root, error) {
	var r root
	const flags = unix.MS_RDONLY | unix.MS_NOATIME
	switch cfg.rootKind {
	case "virtiofs":
		if err := mount(cfg.source, lowerDir, "virtiofs", flags, ""); err != nil {
			return r, err
		}
	case "pmem":
		if err := waitForFile(cfg.source); err != nil {
			return r, err
		}
		if err := mount(cfg.source, lowerDir, "erofs", flags, "dax=always"); err != nil {
			return r, err
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return r, fmt.Errorf("reading mounts: %w", err)
		}
		if r.dax = hasDAX(string(mounts), lowerDir); !r.dax {
			r.warnings = append(r.warnings, "the root is mounted without DAX")
		}
	case "blk":
		if err := waitForFile(cfg.source); err != nil {
			return r, err
		}
		if err := mount(cfg.source, lowerDir, "erofs", flags, ""); err != nil {
			return r, err
		}
	case "verity":
		if err := mountVerity(cfg, flags); err != nil {
			return r, err
		}
	}
	if cfg.ahead != 0 {
		if err := setReadAhead(lowerDir, cfg.ahead); err != nil {
			r.warnings = append(r.warnings, err.Error())
		}
	}
	if err := mount("tmpfs", rwDir, "tmpfs", 0, "mode=0755"); err != nil {
		return r, err
	}
	if err := makeUpper(rwDir+"/upper", lowerDir); err != nil {
		return r, err
	}
	if err := os.Mkdir(rwDir+"/work", 0o755); err != nil {
		return r, fmt.Errorf("making overlay: %w", err)
	}
	// Renaming a folder of the image works, and changing a file's owner or mode doesn't read it.
	err := mount("overlay", newRoot, "overlay", 0,
		"lowerdir="+lowerDir+",upperdir="+rwDir+"/upper,workdir="+rwDir+"/work,redirect_dir=on,metacopy=on")
	return r, err
}

// makeUpper makes the folder whose owner and mode the overlay's root gets, with those that lower has.
func makeUpper(upper, lower string) error {
	var st unix.Stat_t
	err := unix.Stat(lower, &st)
	if err == nil {
		err = os.Mkdir(upper, 0o755)
	}
	if err == nil {
		err = os.Chown(upper, int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = unix.Chmod(upper, st.Mode&0o7777)
	}
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, upper, []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
	if err != nil {
		return fmt.Errorf("making overlay: %w", err)
	}
	return nil
}

// setReadAhead sets the read-ahead of the file system mounted on dir, in KiB.
func setReadAhead(dir string, kib int) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("setting read-ahead: %w", err)
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(path, fmt.Append(nil, kib), 0); err != nil {
		return fmt.Errorf("setting read-ahead: %w", err)
	}
	return nil
}

// hasDAX looks for dax=always among the options of dir in the text of /proc/self/mounts.
func hasDAX(mounts, dir string) bool {
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 || f[1] != dir {
			continue
		}
		for opt := range strings.SplitSeq(f[3], ",") {
			if opt == "dax=always" {
				return true
			}
		}
	}
	return false
}

// switchRoot makes dir the root of this process and, what /proc/1/root shows, of the whole mount namespace. What only
// the boot archive has is given up.
func switchRoot(dir string) error {
	for _, d := range []string{"/dev", "/sys", "/proc"} {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", d, err)
		}
	}
	if err := os.RemoveAll("/pex"); err != nil { // it is memory
		return fmt.Errorf("removing modules: %w", err)
	}
	err := os.Chdir(dir)
	if err == nil {
		err = unix.Mount(".", "/", "", unix.MS_MOVE, "")
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err == nil {
		err = os.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("switching to new root: %w", err)
	}
	return nil
}

// mountKernelFiles mounts in the new root what every program expects there.
func mountKernelFiles() error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := errors.Join(
		mount("proc", "/proc", "proc", safe, ""),
		mount("sysfs", "/sys", "sysfs", safe, ""),
		mount("cgroup2", "/sys/fs/cgroup", "cgroup2", safe, ""),
		mount("devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"),
		mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
		mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"),
		mount("mqueue", "/dev/mqueue", "mqueue", safe, ""),
	)
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
	} {
		if lerr := os.Symlink(l[0], l[1]); !errors.Is(lerr, os.ErrExist) {
			err = errors.Join(err, lerr)
		}
	}
	return err
}
