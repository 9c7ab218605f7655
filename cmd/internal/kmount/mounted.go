package kmount

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounted is a mount of this process's mount namespace.
type Mounted struct {
	table   *os.File
	id, dev string // as the table has them: its number, its device's numbers
}

// Find finds the mount whose root is dir, so that its end can be waited for. It doesn't keep it in use.
func Find(dir string) (*Mounted, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		return nil, fmt.Errorf("looking for the mount on %s: %w", dir, err)
	}
	return watch(fmt.Sprint(st.Mnt_id), fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor))
}

func watch(id, dev string) (*Mounted, error) {
	// os.Open would have the runtime's own poller take what the kernel tells of changes
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("looking for a mount: %w", err)
	}
	return &Mounted{os.NewFile(uintptr(fd), "mountinfo"), id, dev}, nil
}

// Name names the mount for a process that comes later.
func (m *Mounted) Name() string { return m.id + " " + m.dev }

// Named gives the mount that has a name, so that its end can be waited for; it may have ended.
func Named(name string) (*Mounted, error) {
	id, dev, ok := strings.Cut(name, " ")
	if !ok {
		return nil, fmt.Errorf("looking for the mount %q: not a mount's name", name)
	}
	return watch(id, dev)
}

// is tells whether the mount is still there.
func (m *Mounted) is() (bool, error) {
	if _, err := m.table.Seek(0, 0); err != nil {
		return false, err
	}
	s := bufio.NewScanner(m.table)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if f := strings.Fields(s.Text()); len(f) > 3 && f[0] == m.id && f[2] == m.dev { // proc_pid_mountinfo(5)
			return true, nil
		}
	}
	return false, s.Err()
}

// Wait returns when the mount has ended, whoever ended it. It may be called once.
func (m *Mounted) Wait() error {
	defer m.table.Close()
	for {
		if is, err := m.is(); !is || err != nil {
			return err
		}
		// the kernel tells so of every change of the table since the last call
		fds := []unix.PollFd{{Fd: int32(m.table.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("waiting for the end of a mount: %w", err)
		}
	}
}
