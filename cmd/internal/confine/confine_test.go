package confine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// childEnv has the folder of a process that confines itself and tells what it can do then; readerEnv says that it only reads.
const (
	childEnv  = "PEX_TEST_CONFINED"
	readerEnv = "PEX_TEST_READER"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		do := child
		if os.Getenv(readerEnv) != "" {
			do = reader
		}
		if err := json.NewEncoder(os.Stdout).Encode(do(dir)); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// told is what a confined process tells.
type told struct {
	State State
	Err   string
	Tried map[string]string // what it tried: "" or an errno's name
}

func child(dir string) told {
	var all sync.WaitGroup // threads that there are before
	stop := make(chan struct{})
	for range 8 {
		all.Go(func() { <-stop })
	}
	parent := os.Getppid()
	st, err := Self(Needs{Write: []string{filepath.Join(dir, "own")}, Remove: []string{filepath.Join(dir, "remove")}, Capabilities: []int{unix.CAP_DAC_READ_SEARCH}})
	in := func(name string) string { return filepath.Join(dir, name) }
	defer all.Wait()
	defer close(stop)
	return tell(st, err, map[string]func() error{
		"write":         func() error { return os.WriteFile(in("own/new"), []byte("x"), 0o600) },
		"make a folder": func() error { return os.MkdirAll(in("own/a/b"), 0o700) },
		"rename": func() error {
			return errors.Join(os.WriteFile(in("own/from"), nil, 0o600), os.Mkdir(in("own/sub"), 0o700), os.Rename(in("own/from"), in("own/sub/to")))
		},
		"truncate":         func() error { return os.Truncate(in("own/there"), 1) },
		"read elsewhere":   func() error { _, err := os.ReadFile(in("other/there")); return err },
		"read /proc":       func() error { _, err := os.ReadFile("/proc/self/status"); return err },
		"remove a socket":  func() error { return os.Remove(in("remove/there")) },
		"connect":          func() error { return connect(in("listen")) },
		"write elsewhere":  func() error { return os.WriteFile(in("other/new"), nil, 0o600) },
		"overwrite":        func() error { f, err := os.OpenFile(in("other/there"), os.O_WRONLY, 0); f.Close(); return err },
		"remove elsewhere": func() error { return os.Remove(in("other/there")) },
		"rename out":       func() error { return os.Rename(in("own/there"), in("other/out")) },
		"by a link":        func() error { return os.WriteFile(in("own/link/new"), nil, 0o600) },
		"make a link":      func() error { return os.Symlink("/", in("own/newlink")) },
		"make a device":    func() error { return unix.Mknod(in("own/dev"), unix.S_IFCHR|0o600, 0x103) },
		"execute":          func() error { return exec.Command("/proc/self/exe").Run() },
		"execute its own": func() error {
			return errors.Join(os.WriteFile(in("own/sh"), []byte("#!/bin/sh\n"), 0o700), exec.Command(in("own/sh")).Run())
		},
		"open a port":        func() error { return port() },
		"signal":             func() error { return syscall.Kill(parent, 0) },
		"change its user":    func() error { return unix.Setresuid(1, 1, 1) },
		"mount":              func() error { return unix.Mount("none", in("own"), "tmpfs", 0, "") },
		"change the root":    func() error { return unix.Chroot(in("own")) },
		"an abstract socket": func() error { return connect("\x00" + dir) },
	})
}

// tell tries all of it.
func tell(st State, err error, try map[string]func() error) told {
	t := told{State: st, Tried: make(map[string]string)}
	if err != nil {
		t.Err = err.Error()
		return t
	}
	for what, do := range try {
		// in some thread
		done := make(chan error)
		go func() { done <- do() }()
		err := <-done
		var errno syscall.Errno
		switch {
		case err == nil:
			t.Tried[what] = ""
		case errors.As(err, &errno):
			t.Tried[what] = unix.ErrnoName(errno)
		default:
			t.Tried[what] = err.Error()
		}
	}
	return t
}

// reader is a process that reads one folder, and a file.
func reader(dir string) told {
	in := func(name string) string { return filepath.Join(dir, name) }
	kept, err := os.Open(in("remove/there"))
	if err != nil {
		return told{Err: err.Error()}
	}
	defer kept.Close()
	st, err := Self(Needs{Read: []string{in("own"), in("other/there"), in("missing")}, Devices: []string{os.DevNull}, Capabilities: []int{unix.CAP_DAC_READ_SEARCH}})
	if err == nil {
		err = DropCapabilities()
	}
	open := func(name string, mode int) error {
		f, err := os.OpenFile(name, mode, 0)
		if err == nil {
			err = f.Close()
		}
		return err
	}
	return tell(st, err, map[string]func() error{
		"read":             func() error { return open(in("own/there"), os.O_RDONLY) },
		"read a file":      func() error { return open(in("other/there"), os.O_RDONLY) },
		"read what's open": func() error { _, err := kept.ReadAt(make([]byte, 1), 0); return err },
		"look at a file":   func() error { _, err := os.Stat(in("remove/there")); return err },
		"a device":         func() error { return open(os.DevNull, os.O_RDWR) },
		"connect":          func() error { return connect(in("listen")) },
		"capabilities":     func() error { return unix.Setresuid(1, 1, 1) },
		"read elsewhere":   func() error { return open(in("remove/there"), os.O_RDONLY) },
		"read by a link":   func() error { return open(in("own/link/there2"), os.O_RDONLY) },
		"read /proc":       func() error { return open("/proc/self/status", os.O_RDONLY) },
		"list":             func() error { _, err := os.ReadDir(dir); return err },
		"another device":   func() error { return open("/dev/zero", os.O_RDONLY) },
		"write":            func() error { return open(in("own/there"), os.O_WRONLY) },
		"make":             func() error { return os.WriteFile(in("own/new"), nil, 0o600) },
		"execute":          func() error { return exec.Command("/proc/self/exe").Run() },
		"open a port":      port,
		"connect by TCP":   func() error { return connectTCP() },
		"signal":           func() error { return syscall.Kill(os.Getppid(), 0) },
	})
}

// connectTCP connects to a port where nobody listens.
func connectTCP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 1})
}

func connect(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: strings.Replace(name, "\x00", "@", 1)})
}

func port() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
}

// TestSelf has a process of root's confine itself. What a kernel without Landlock, or with an early one, can't refuse is expected to work.
func TestSelf(t *testing.T) {
	got := confined(t)
	files, cross := refused(got.State.Executes), refused(got.State.Executes)
	if cross != "" {
		cross = "EXDEV|EACCES"
	}
	want := map[string]string{
		"write": "", "make a folder": "", "rename": "", "truncate": "", "read elsewhere": "", "read /proc": "", "remove a socket": "", "connect": "",
		"write elsewhere": files, "overwrite": files, "remove elsewhere": files, "rename out": cross, "by a link": files, "make a link": files,
		"make a device": "EPERM|EACCES", "execute": files, "execute its own": files, "open a port": refused(got.State.OpensPorts),
		"signal": eperm(got.State.Signals), "an abstract socket": eperm(got.State.Signals), "change its user": "EPERM", "mount": "EPERM", "change the root": "EPERM",
	}
	compare(t, want, got)
	if s := got.State; !s.NoNewPrivileges || s.CoreDumps || fmt.Sprint(s.Capabilities) != "[CAP_DAC_READ_SEARCH]" || (s.Landlock > 0) == s.Executes {
		t.Errorf("%+v", s)
	}
	t.Logf("%+v, without %q", got.State, got.State.Missing())
}

// TestReader has one confine itself to reading a folder and a file.
func TestReader(t *testing.T) {
	got := confined(t, readerEnv+"=1")
	files := refused(got.State.Executes)
	tcp := refused(got.State.Connects)
	if tcp == "" {
		tcp = "ECONNREFUSED"
	}
	compare(t, map[string]string{
		"read": "", "read a file": "", "read what's open": "", "look at a file": "", "a device": "", "connect": "",
		"capabilities": "EPERM", "read elsewhere": files, "read by a link": files, "read /proc": files, "list": files, "another device": files,
		"write": files, "make": files, "execute": files, "open a port": refused(got.State.OpensPorts), "connect by TCP": tcp, "signal": eperm(got.State.Signals),
	}, got)
}

// refused and eperm are what comes of what a process may do or not.
func refused(may bool) string {
	if may {
		return ""
	}
	return "EACCES"
}

func eperm(may bool) string {
	if may {
		return ""
	}
	return "EPERM"
}

// compare compares what was tried with what should have come of it: one of several names of errors.
func compare(t *testing.T, want map[string]string, got told) {
	t.Helper()
	same := cmp.Comparer(func(a, b string) bool {
		return a == b || strings.Contains("|"+a+"|", "|"+b+"|") && b != "" || strings.Contains("|"+b+"|", "|"+a+"|") && a != ""
	})
	if d := cmp.Diff(want, got.Tried, same); d != "" {
		t.Errorf("%+v: %s", got.State, d)
	}
}

// confined runs a process that confines itself, in a folder with what it tries, and gives what that tells.
func confined(t *testing.T, env ...string) (got told) {
	t.Helper()
	dir, err := os.MkdirTemp("", "confine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"own", "other", "remove"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d, "there"), []byte("there"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "other/there2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../other", filepath.Join(dir, "own/link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(dir, "listen"), "@" + dir} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), childEnv+"="+dir), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	if err := json.Unmarshal(out, &got); err != nil || got.Err != "" {
		t.Fatalf("%v: %s", err, out)
	}
	return got
}

// TestGive gives folders to a user, one of them in several ways not to be given.
func TestGive(t *testing.T) {
	const uid = 12345
	u := &User{Name: "test", UID: uid, GID: uid}
	dir, err := os.MkdirTemp("/tmp", "confine") // where all may enter
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(dir, "outside")
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(os.WriteFile(outside, nil, 0o600), os.MkdirAll(filepath.Join(tree, "a/b"), 0o700), os.Symlink(outside, filepath.Join(tree, "a/link"))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := u.Give(tree); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]int{"tree": uid, "tree/a": uid, "tree/a/b": uid, "tree/a/link": uid, "outside": 0} {
		if of, err := Owner(filepath.Join(dir, name)); err != nil || of.UID != want {
			t.Errorf("%s is of %+v: %v", name, of, err)
		}
	}
	if err := u.Do(func() error { return os.Mkdir(filepath.Join(dir, "new"), 0o700) }); !errors.Is(err, os.ErrPermission) {
		t.Errorf("making a folder in root's: %v", err)
	}
	if err := u.Do(func() error { return os.Mkdir(filepath.Join(tree, "new"), 0o700) }); err != nil {
		t.Error(err)
	}
	if of, err := Owner(filepath.Join(tree, "new")); err != nil || of.UID != uid || os.Geteuid() != 0 {
		t.Errorf("what the user made is of %+v: %v; the process of %d", of, err, os.Geteuid())
	}
	if err := (&User{Name: "else", UID: uid + 1, GID: uid}).Give(tree); err == nil {
		t.Error("a folder of one user was given to another")
	}
	if of, err := Owner(tree); err != nil || of.Name != "12345" || of.Home != "/" {
		t.Errorf("%+v, %v", of, err)
	}
	if u, err := Lookup("root"); err != nil || u.UID != 0 || u.Home == "" {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := Lookup("no-such-user"); err == nil {
		t.Error("there is a user called no-such-user")
	}
}
