package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// User is who a process of root's becomes.
type User struct {
	Name     string
	UID, GID int
	Groups   []int
	Home     string
}

// Lookup finds a user by name or number.
func Lookup(name string) (*User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if _, nerr := strconv.ParseUint(name, 10, 31); nerr != nil {
			return nil, fmt.Errorf("finding user %s: %w", name, err)
		}
		if u, err = user.LookupId(name); err != nil {
			return nil, fmt.Errorf("finding user %s: %w", name, err)
		}
	}
	id := &User{Name: u.Username, Home: u.HomeDir}
	if id.UID, err = strconv.Atoi(u.Uid); err == nil {
		id.GID, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		return nil, fmt.Errorf("finding user %s: %w", name, err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("finding groups of user %s: %w", name, err)
	}
	for _, g := range groups {
		n, err := strconv.Atoi(g)
		if err != nil {
			return nil, fmt.Errorf("finding groups of user %s: %w", name, err)
		}
		id.Groups = append(id.Groups, n)
	}
	return id, nil
}

// Owner is the user whose file or folder name is.
func Owner(name string) (*User, error) {
	st, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("whose %s is can't be told", name)
	}
	id := strconv.FormatUint(uint64(sys.Uid), 10)
	u, err := Lookup(id)
	if errors.As(err, new(user.UnknownUserIdError)) {
		return &User{Name: id, UID: int(sys.Uid), GID: int(sys.Gid), Home: "/"}, nil
	}
	return u, err
}

// Give makes a folder of root's, with all that is in it, the user's. A folder that is the user's already is left as it is, one of somebody
// else's is refused. The folder itself comes last, so that an interrupted call can be repeated; until then nobody else can change what is
// in it.
func (u *User) Give(dir string) error {
	of, err := Owner(dir)
	if err != nil {
		return err
	}
	switch of.UID {
	case u.UID:
		return nil
	case 0:
	default:
		return fmt.Errorf("%s is of user %s, not %s", dir, of.Name, u.Name)
	}
	err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		return os.Lchown(name, u.UID, u.GID)
	})
	if err == nil {
		err = os.Lchown(dir, u.UID, u.GID)
	}
	if err != nil {
		return fmt.Errorf("giving %s to user %s: %w", dir, u.Name, err)
	}
	return nil
}

// Become makes the process the user's, whose privileges it has from then on. The environment names the user's home; what in it led to
// files of the earlier user is taken away.
func (u *User) Become() error {
	groups := u.Groups
	if groups == nil {
		groups = []int{u.GID}
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("becoming user %s: %w", u.Name, err)
	}
	if err := syscall.Setresgid(u.GID, u.GID, u.GID); err != nil {
		return fmt.Errorf("becoming user %s: %w", u.Name, err)
	}
	if err := syscall.Setresuid(u.UID, u.UID, u.UID); err != nil {
		return fmt.Errorf("becoming user %s: %w", u.Name, err)
	}
	for _, name := range []string{"XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"} {
		os.Unsetenv(name)
	}
	return os.Setenv("HOME", u.Home)
}

// Do calls f in a thread that has the user's rights, and no others; f starts no goroutines. The process is root's.
func (u *User) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0},
			{unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)},
			{unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)},
		} {
			// these system calls are of one thread, unlike the functions of package syscall
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- fmt.Errorf("working as user %s: %w", u.Name, errno)
				return
			}
		}
		done <- f()
	}()
	return <-done
}
