package kmount

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// mount mounts the image file or device at path on dir. /proc/mounts shows the words that a file was mounted by: so that these are source,
// it is the name of a link in a tmpfs that is nowhere, and the working folder of the thread that mounts. Where that can't be, path is shown.
func mount(path, dir, source string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if !printable(source) {
		return unix.Mount(path, dir, "erofs", flags, "")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and its working folder with the thread
		if linked(path, source) != nil {
			source = path
		}
		done <- unix.Mount(source, dir, "erofs", flags, "")
	}()
	return <-done
}

// printable tells whether source can be the name of a link in a folder without leaving it.
func printable(source string) bool {
	return source != "" && len(source) < 1024 && source[0] != '/' && !strings.Contains(source, "\x00") && path.Clean(source) == source && source != "." && source != ".." && !strings.HasPrefix(source, "../")
}

// linked makes the calling thread's working folder one in which source leads to path.
func linked(to, source string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	folders := strings.Split(source, "/")
	for i := range folders[1:] {
		if err := unix.Mkdirat(tree, strings.Join(folders[:i+1], "/"), 0o700); err != nil {
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	return errors.Join(unix.Symlinkat(to, tree, source), unix.Fchdir(tree))
}
