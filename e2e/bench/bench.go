package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// port is the registry's, in the server's namespace.
const port = "5000"

// bench is what rows are measured with.
type bench struct {
	options
	dir      string // kept from run to run: images made, the registry's blobs
	work     string // state of one run
	links    map[string]*link
	registry *exec.Cmd
	lock     *os.File // held until this process ends
	began    time.Time
}

func newBench(o options) (*bench, error) {
	b := &bench{options: o, began: time.Now(), dir: filepath.Join(o.build, "bench"), links: map[string]*link{}}
	b.work = filepath.Join(b.dir, "run")
	return b, os.Setenv("PATH", filepath.Join(o.build, "bin")+":"+filepath.Join(b.dir, "bin")+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// open starts the registry and fills it with the images.
func (b *bench) open(ctx context.Context, images []*image) error {
	if err := settle(); err != nil {
		return err
	}
	var err error
	if b.lock, err = os.OpenFile(filepath.Join(b.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(b.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("locking %s: %w: another benchmark is running there", b.dir, err)
	}
	old, err := filepath.Glob(filepath.Join(b.dir, unfinished))
	if err != nil {
		return err
	}
	for _, d := range append(old, b.work) {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	for _, d := range []string{b.work, "/run/pex"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for k, v := range map[string]string{"XDG_RUNTIME_DIR": "/run/pex", "TMPDIR": b.work, "LC_ALL": "C"} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	b.registry = exec.Command("pexfs", "registry", "--listen", "0.0.0.0:"+port, filepath.Join(b.dir, "registry"))
	b.registry.Stderr = os.Stderr
	if err := b.registry.Start(); err != nil {
		return fmt.Errorf("starting the registry: %w", err)
	}
	for _, im := range images {
		for _, form := range []string{"gzip", "estargz"} {
			if err := b.push(ctx, im.layout(form), im.repo(form)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) close() error {
	var err error
	if b.registry != nil && b.registry.Process != nil {
		err = errors.Join(b.registry.Process.Kill(), ignoreExit(b.registry.Wait()))
	}
	return errors.Join(err, b.clean())
}

func ignoreExit(err error) error {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return nil
	}
	return err
}

// clean ends what a run has left, and removes its state.
func (b *bench) clean() error {
	for _, p := range processes(b.registry) {
		_ = syscall.Kill(p.pid, syscall.SIGKILL) // one that has just ended needs none
	}
	if err := unmountBelow(b.work); err != nil {
		return err
	}
	for until := time.Now().Add(10 * time.Second); len(processes(b.registry)) > 0 && time.Now().Before(until); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.RemoveAll(b.work); err != nil {
		return fmt.Errorf("removing what a run has left: %w", err)
	}
	return os.MkdirAll(b.work, 0o700)
}

// unmountBelow unmounts all below dir. A mount goes with those below it, whose paths may lead through a file system that nobody serves any more.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, p := range points {
		err = errors.Join(err, unix.Unmount(p, unix.MNT_DETACH))
	}
	left, listErr := mountsBelow(dir)
	if listErr != nil || len(left) > 0 {
		return errors.Join(fmt.Errorf("unmounting %q", left), err, listErr)
	}
	return nil
}

// mountsBelow are the mount points below dir, the first mounted first.
func mountsBelow(dir string) (points []string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	return points, nil
}

// link makes a link when it is first used.
func (b *bench) link(spec linkSpec) (*link, error) {
	if l := b.links[spec.name]; l != nil {
		return l, nil
	}
	l, err := newLink(spec, len(b.links)+1)
	if err == nil {
		b.links[spec.name] = l
	}
	return l, err
}

// requests is how many the registry has had.
func (b *bench) requests() (int64, error) {
	r, err := http.Get("http://127.0.0.1:" + port + "/_pex/stats")
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	var s struct{ Requests int64 }
	err = json.NewDecoder(r.Body).Decode(&s)
	return s.Requests, err
}

// start starts a program at the client's end of a link.
func start(l *link, cmd *exec.Cmd) error {
	if err := l.client.do(cmd.Start); err != nil {
		return fmt.Errorf("starting %s: %w", cmd.Args[0], err)
	}
	return nil
}

// output runs a program at the client's end of a link and returns what it printed.
func output(ctx context.Context, l *link, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	return finish(ctx, l, cmd)
}

func finish(ctx context.Context, l *link, cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second // daemons that it started may hold its output
	if err := start(l, cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		text := strings.TrimSpace(errs.String())
		return "", fmt.Errorf("running %.200q: %w: %s", cmd.Args, err, text[max(0, len(text)-400):])
	}
	return out.String(), nil
}

// inside runs a shell command with root as its root, where /tmp, /proc and /dev are the machine's, and waits for it.
func inside(ctx context.Context, l *link, root, command string) error {
	for _, m := range []struct{ source, dir, kind string }{{"tmpfs", "/tmp", "tmpfs"}, {"proc", "/proc", "proc"}, {"/dev", "/dev", ""}} {
		if st, err := os.Lstat(root + m.dir); err != nil || !st.IsDir() {
			continue // the image has none
		}
		flags := uintptr(0)
		if m.kind == "" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(m.source, root+m.dir, m.kind, flags, ""); err != nil {
			return fmt.Errorf("mounting %s in the image: %w", m.dir, err)
		}
		defer unix.Unmount(root+m.dir, unix.MNT_DETACH)
	}
	// by chroot(8): starting a program stops this process, and with it the link, until it is there; one of the image must come over the link
	cmd := exec.CommandContext(ctx, "chroot", root, "/bin/sh", "-c", command)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C", "PYTHONDONTWRITEBYTECODE=1"}
	_, err := finish(ctx, l, cmd)
	return err
}
