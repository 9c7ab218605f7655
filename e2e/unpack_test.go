package e2e

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unpacker applies layers, bottom first, to the directory that is the root of its process: by system calls, so that paths,
// symlinks and hard links mean what the kernel says. It follows the OCI image-spec's text, and where that is silent what
// containerd's archive.Apply does, and knows nothing of how the project merges. It is the judge of stacks for which umoci departs from
// that; see stackMaker.
type unpacker struct {
	times map[uint64]unix.Timespec // of directories by inode; they are set in the end
	given map[dirent]bool          // names that the layer has given
	has   map[uint64]bool          // directories in or below which the layer has something
}

type dirent struct {
	dir  uint64
	name string
}

// inRoot calls f in a thread whose root and working directory is dir, with a umask of 0. The thread ends with f.
func inRoot(t *testing.T, dir string, f func() error) {
	t.Helper()
	if err := inThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unsharing: %w", err)
		}
		if err := unix.Chroot(dir); err != nil {
			return fmt.Errorf("entering %s: %w", dir, err)
		}
		unix.Umask(0)
		if err := unix.Chdir("/"); err != nil {
			return err
		}
		return f()
	}); err != nil {
		t.Fatal(err)
	}
}

// inThread calls f in a thread that ends with it: not the process's first, whose root is what /proc/self shows to all.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		err := inThread(f) // while this one is held
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func newUnpacker() (*unpacker, error) {
	u := &unpacker{times: map[uint64]unix.Timespec{}}
	return u, u.imply("/")
}

// begin begins a layer.
func (u *unpacker) begin() { u.given, u.has = map[dirent]bool{}, map[uint64]bool{} }

// components are those of a name as tars mean it: ".." takes away what is before it, and nothing above the root.
func components(name string) (parts []string) {
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p != "..":
			parts = append(parts, p)
		case len(parts) > 0:
			parts = parts[:len(parts)-1]
		}
	}
	return parts
}

// apply applies an entry. After an error the directory is of no use.
func (u *unpacker) apply(e entry) error {
	parts := components(e.name)
	if e.kind == 'g' {
		return nil
	}
	if len(parts) == 0 {
		if e.kind != '5' {
			return errors.New("the root is no directory")
		}
		return u.set("/", e)
	}
	dirs, base := parts[:len(parts)-1], parts[len(parts)-1]
	if slices.ContainsFunc(dirs, func(p string) bool { return strings.HasPrefix(p, ".wh.") }) {
		return nil
	}
	if strings.HasPrefix(base, ".wh..wh.") && base != ".wh..wh..opq" {
		return nil
	}
	if err := u.enter(dirs); err != nil {
		return err
	}
	here, err := inode(".")
	if err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); base == ".wh..wh..opq" {
		err = u.hideAll()
	} else if ok {
		err = u.hide(hidden)
	} else {
		err = u.make(base, e)
		u.given[dirent{here, base}] = true
	}
	if err != nil {
		return err
	}
	return u.mark()
}

// enter goes to a directory. What is missing of its path, or is a file, becomes a directory.
func (u *unpacker) enter(parts []string) error {
	err := unix.Chdir("/" + strings.Join(parts, "/"))
	if err != unix.ENOENT && err != unix.ENOTDIR {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	for _, p := range parts {
		if err := u.step(p); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) step(p string) error {
	if err := unix.Chdir(p); err != unix.ENOENT && err != unix.ENOTDIR {
		return err // the kernel has followed all symlinks there are, or found a loop
	}
	target, err := os.Readlink(p)
	if err == nil {
		if strings.HasPrefix(target, "/") {
			if err := unix.Chdir("/"); err != nil {
				return err
			}
		}
		for c := range strings.SplitSeq(target, "/") {
			if c != "" {
				if err := u.step(c); err != nil {
					return err
				}
			}
		}
		return nil
	}
	here, err := inode(".")
	if err != nil {
		return err
	}
	if err := u.remove(p); err != nil {
		return err
	}
	if err := unix.Mkdir(p, 0o755); err != nil {
		return err
	}
	u.given[dirent{here, p}] = true
	if err := u.imply(p); err != nil {
		return err
	}
	return unix.Chdir(p)
}

// mark notes that the layer has something in the working directory.
func (u *unpacker) mark() error {
	for last := uint64(0); ; {
		ino, err := inode(".")
		if err != nil || ino == last {
			return err
		}
		u.has[ino], last = true, ino
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
}

// make makes a name of the working directory what an entry says.
func (u *unpacker) make(name string, e entry) error {
	if e.kind == '1' {
		return u.link(name, e)
	}
	var st unix.Stat_t
	old := unix.Lstat(name, &st)
	if e.kind == '5' && old == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return u.set(name, e)
	}
	if err := u.remove(name); err != nil {
		return err
	}
	var err error
	switch e.kind {
	case '0':
		err = writeContent(name, e.content)
	case '2':
		err = unix.Symlink(e.link, name)
	case '3':
		err = unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(e.major, e.minor)))
	case '4':
		err = unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(e.major, e.minor)))
	case '5':
		err = unix.Mkdir(name, 0o700)
	case '6':
		err = unix.Mknod(name, unix.S_IFIFO|0o600, 0)
	default:
		err = fmt.Errorf("kind %q", e.kind)
	}
	if err != nil {
		return fmt.Errorf("making %.300q: %w", e.name, err)
	}
	return u.set(name, e)
}

func writeContent(name string, c content) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(c.size)
	for _, p := range c.parts {
		if err == nil {
			_, err = f.WriteAt(p.b, p.off)
		}
	}
	return errors.Join(err, f.Close())
}

// link makes a name one with what the entry's target is now. It changes the inode's mode, owner and time, and no attributes: chown
// takes capabilities away, which come back.
func (u *unpacker) link(name string, e entry) error {
	const aside = ".unpacker"
	if err := unix.Link("/"+strings.Join(components(e.link), "/"), aside); err != nil {
		return fmt.Errorf("linking %.300q to %.300q: %w", e.name, e.link, err)
	}
	if err := u.remove(name); err != nil {
		return err
	}
	if err := unix.Rename(aside, name); err != nil {
		return err
	}
	var err error
	if e.xattrs, err = getXattrs(name); err != nil {
		return err
	}
	return u.set(name, e)
}

// set gives a name of the working directory the mode, owner, time and attributes of an entry.
func (u *unpacker) set(name string, e entry) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return err
	}
	err := unix.Lchown(name, int(e.uid), int(e.gid))
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		err = unix.Chmod(name, e.mode)
	}
	if err != nil {
		return fmt.Errorf("setting owner and mode of %.300q: %w", e.name, err)
	}
	old, err := getXattrs(name)
	if err != nil {
		return err
	}
	for k := range old {
		if err := unix.Lremovexattr(name, k); err != nil {
			return fmt.Errorf("removing attribute %s of %.300q: %w", k, e.name, err)
		}
	}
	for k, v := range e.xattrs {
		if err := unix.Lsetxattr(name, k, []byte(v), 0); err != nil {
			return fmt.Errorf("setting attribute %s of %.300q: %w", k, e.name, err)
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		u.times[st.Ino] = e.mtime
		return nil
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{e.mtime, e.mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

// imply makes a directory one that no entry speaks of.
func (u *unpacker) imply(name string) error {
	return u.set(name, entry{name: name, kind: '5', mode: 0o755})
}

// hideAll takes from the working directory what lower layers gave.
func (u *unpacker) hideAll() error {
	names, err := readNames()
	for _, n := range names {
		if err == nil {
			err = u.hide(n)
		}
	}
	return err
}

// hide takes from a name and all below what lower layers gave. A directory that only they describe but that the layer has something
// in becomes an implied one.
func (u *unpacker) hide(name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	here, err := inode(".")
	if err != nil {
		return err
	}
	given, dir := u.given[dirent{here, name}], st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case !given && dir && u.has[st.Ino]:
		err = u.imply(name)
	case !given:
		return u.remove(name)
	case !dir:
		return nil
	}
	return errors.Join(err, unix.Chdir(name), u.hideAll(), unix.Chdir(".."))
}

// remove removes a name of the working directory and all below it.
func (u *unpacker) remove(name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.Unlink(name)
	}
	if err := unix.Chdir(name); err != nil {
		return err
	}
	names, err := readNames()
	for _, n := range names {
		if err == nil {
			delete(u.given, dirent{st.Ino, n})
			err = u.remove(n)
		}
	}
	// what is noted of an inode must not be said of the next one with its number
	delete(u.has, st.Ino)
	delete(u.times, st.Ino)
	for d := range u.given {
		if d.dir == st.Ino {
			delete(u.given, d)
		}
	}
	return errors.Join(err, unix.Chdir(".."), unix.Rmdir(name))
}

// end sets the times of directories, which making and removing names has changed.
func (u *unpacker) end() error {
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return u.setTimes()
}

func (u *unpacker) setTimes() error {
	names, err := readNames()
	if err != nil {
		return err
	}
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Lstat(n, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := errors.Join(unix.Chdir(n), u.setTimes(), unix.Chdir("..")); err != nil {
				return err
			}
		}
	}
	ino, err := inode(".")
	if err != nil {
		return err
	}
	return unix.UtimesNano(".", []unix.Timespec{u.times[ino], u.times[ino]})
}

func inode(name string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(name, &st)
	return st.Ino, err
}

func readNames() ([]string, error) {
	d, err := os.Open(".")
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}
