//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm/guest"
)

// grace is how long the output of a program is still read after its end if something else holds it open.
const grace = 250 * time.Millisecond

// executor runs programs in the machine's root.
type executor struct {
	reaper   *reaper
	hostname string
	cwd      sync.Mutex // over this process's working directory
}

// run runs one program from START to EXIT.
func (x *executor) run(t *guest.Task) {
	e, err := x.execute(t)
	if err != nil {
		var r *refusal
		if !errors.As(err, &r) {
			r = refuse(guest.Refused, "%v", err)
		}
		e = r.exit()
	}
	if err := t.Exit(e); err != nil {
		fmt.Fprintln(os.Stderr, "pex-init: error:", err)
	}
}

func (x *executor) execute(t *guest.Task) (guest.Exit, error) {
	p := t.Process
	passwd, err := readAccounts("/etc/passwd")
	if err != nil {
		return guest.Exit{}, err
	}
	group, err := readAccounts("/etc/group")
	if err != nil {
		return guest.Exit{}, err
	}
	u, err := lookUpUser(p.User, passwd, group)
	if err != nil {
		return guest.Exit{}, err
	}
	dir := path.Join("/", p.Dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return guest.Exit{}, fmt.Errorf("making working directory: %w", err)
	}
	std, err := newStdio(p, u)
	if err != nil {
		return guest.Exit{}, err
	}
	defer std.close()
	attr := syscall.ProcAttr{
		Env:   environment(p.Env, x.hostname, u.home, p.Terminal != nil),
		Files: std.childFds(),
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Setctty:    p.Terminal != nil, // its standard input
			Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups},
		},
	}
	oomBefore := oomKills()
	begin := time.Now()
	var pid int
	var done <-chan ended
	err = tryAll(p.Args[0], candidates(p.Args[0], dir, attr.Env), func(file string) error {
		var err error
		pid, done, err = x.reaper.start(func() (int, error) { return x.fork(dir, file, p.Args, &attr) })
		return err
	})
	if err != nil {
		return guest.Exit{}, err
	}
	std.closeChild()
	c := &control{pid: pid, terminal: std.master()}
	t.Control(c)
	copied := std.copy(t)
	end := <-done
	elapsed := time.Since(begin)
	c.end()
	std.stopInput()
	std.limitOutput(grace)
	copied.Wait()
	return exitOf(end, elapsed, oomKills() > oomBefore), nil
}

// fork starts a program in dir. It is this process that changes to dir, as root may where the program's user may not.
func (x *executor) fork(dir, file string, args []string, attr *syscall.ProcAttr) (int, error) {
	x.cwd.Lock()
	defer x.cwd.Unlock()
	if err := os.Chdir(dir); err != nil {
		return 0, refuse(guest.Refused, "changing to working directory: %v", err)
	}
	pid, err := syscall.ForkExec(file, args, attr)
	return pid, errors.Join(err, os.Chdir("/"))
}

func exitOf(end ended, elapsed time.Duration, oom bool) guest.Exit {
	e := guest.Exit{Code: end.status.ExitStatus(), OOM: oom, Usage: guest.Usage{
		Elapsed:     elapsed,
		User:        time.Duration(end.usage.Utime.Nano()),
		System:      time.Duration(end.usage.Stime.Nano()),
		MaxRSS:      end.usage.Maxrss << 10,
		MajorFaults: end.usage.Majflt,
		MinorFaults: end.usage.Minflt,
	}}
	if end.status.Signaled() {
		e.Signal = int(end.status.Signal())
		e.Code = 128 + e.Signal
	}
	return e
}

// oomKills is how many processes the kernel has killed for lack of memory.
func oomKills() int {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(s))
			return n
		}
	}
	return 0
}

// control acts on a running program for the host.
type control struct {
	mu       sync.Mutex // so that no signal goes to a pid that is used again
	pid      int        // 0 when it has ended
	terminal *os.File   // or nil
}

func (c *control) Signal(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid != 0 {
		unix.Kill(c.pid, unix.Signal(n)) // it may be a zombie already, which is no error
	}
}

func (c *control) Resize(s guest.Size) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid != 0 && c.terminal != nil {
		if err := setSize(c.terminal, s); err != nil {
			fmt.Fprintln(os.Stderr, "pex-init: error: resizing terminal:", err)
		}
	}
}

func (c *control) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pid = 0
}

// copyOutput copies r to w until r ends. When r's deadline comes first, it copies what is still in r, at most as much
// as a pipe holds: all that the program can have left there.
func copyOutput(w io.Writer, r *os.File) error {
	buf := make([]byte, guest.MaxPayload)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return copyRest(w, r, buf)
		case err == io.EOF, errors.Is(err, unix.EIO): // EIO: nobody has the terminal open any more
			return nil
		}
		return err
	}
}

func copyRest(w io.Writer, r *os.File, buf []byte) error {
	conn, err := r.SyscallConn()
	if err != nil {
		return err
	}
	left := len(buf)
	conn.Control(func(fd uintptr) {
		if size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
			left = size
		}
	})
	for left > 0 {
		n := 0
		conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf[:min(left, len(buf))]) })
		if err != nil || n <= 0 {
			return nil // empty (EAGAIN), or ended
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}
