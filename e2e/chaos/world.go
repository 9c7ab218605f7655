package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// commandTime bounds every command: one that takes longer hangs.
const commandTime = 2 * time.Minute

// world is a cache folder, its daemon, and mounts, in a folder of its own.
type world struct {
	dir   string // of all this
	bin   string
	cache string
	env   []string
	kills atomic.Int64
	views atomic.Int64 // that were killed
	hurt  atomic.Int64 // reads that failed as a view was killed

	mu    sync.Mutex // guards what follows
	wrong []string   // what must not be
	begun map[string]int
	broke map[string]int // commands that a kill has ended, by name
}

func newWorld(bin string) (*world, error) {
	dir, err := os.MkdirTemp("", "pex-chaos-")
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, bin: bin, cache: filepath.Join(dir, "cache"), begun: make(map[string]int), broke: make(map[string]int)}
	for _, d := range []string{"run", "home", "mnt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	w.env = append(os.Environ(), "PEX_CACHE_DIR="+w.cache, "XDG_RUNTIME_DIR="+filepath.Join(dir, "run"), "HOME="+filepath.Join(dir, "home"))
	return w, nil
}

// fault notes something that must not be.
func (w *world) fault(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) < 100 {
		w.wrong = append(w.wrong, s)
	}
	fmt.Fprintln(os.Stderr, "chaos: WRONG:", s)
}

func (w *world) faults() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.wrong)
}

// ended is a command that didn't succeed.
type ended struct {
	args   []string
	code   int
	killed bool // a victim was killed meanwhile
	out    string
}

func (e *ended) Error() string {
	return fmt.Sprintf("pexfs %q ended with %d: %s", e.args, e.code, strings.TrimSpace(e.out))
}

// try runs pexfs once. The error is an *ended, or that of ctx.
func (w *world) try(ctx context.Context, args ...string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	before := w.kills.Load()
	cmd := exec.CommandContext(limited, w.bin, args...)
	cmd.Env = w.env
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if limited.Err() != nil {
		w.fault("pexfs %q takes longer than %v: %s", args, commandTime, errs.Bytes())
	}
	killed := w.kills.Load() != before
	w.mu.Lock()
	w.begun[args[0]]++
	if err != nil && killed {
		w.broke[args[0]]++
	}
	w.mu.Unlock()
	if err != nil {
		return out.String(), &ended{args, cmd.ProcessState.ExitCode(), killed, out.String() + errs.String()}
	}
	return out.String(), nil
}

// do runs pexfs until it succeeds: a command that a kill has ended is tried again. Any other that fails must not.
func (w *world) do(ctx context.Context, args ...string) (string, error) {
	for {
		out, err := w.try(ctx, args...)
		var e *ended
		if err == nil || !errors.As(err, &e) {
			return out, err
		}
		if !e.killed {
			w.fault("%v", err)
			return out, err
		}
	}
}

// cached is an image as the cache lists it.
type cached struct {
	Key, State, Root string
	Refs             []string
}

// list gives the images of the cache by reference.
func (w *world) list(ctx context.Context) (map[string]cached, error) {
	out, err := w.do(ctx, "ls", "--json")
	if err != nil {
		return nil, err
	}
	var all []cached
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, err
	}
	by := make(map[string]cached)
	for _, c := range all {
		for _, r := range c.Refs {
			by[r] = c
		}
	}
	return by, nil
}

// seal waits until an image is sealed, and gives its root.
func (w *world) seal(ctx context.Context, image string) (root string, err error) {
	out, err := w.do(ctx, "wait", "--json", image)
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var c cached
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &c); err != nil {
		return "", err
	}
	if c.State != "sealed" || c.Root == "" {
		w.fault("%s is %s with root %q after `pexfs wait`", image, c.State, c.Root)
	}
	return c.Root, nil
}

// kill ends a process at once, and returns when it is no more.
func (w *world) kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !slices.ContainsFunc(w.processes(), func(p process) bool { return p.pid == pid }) {
		return unix.ESRCH // and another has its number
	}
	w.kills.Add(1)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}

// mounts are the folders of this world that something is mounted on, and the minor number of its device.
func (w *world) mounts() map[string]uint64 {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	all := make(map[string]uint64)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.HasPrefix(f[4], w.dir+"/") {
			continue
		}
		_, minor, _ := strings.Cut(f[2], ":")
		n, _ := strconv.ParseUint(minor, 10, 64)
		all[f[4]] = n
	}
	return all
}

// leftovers are what must not be there when nothing is mounted and no daemon runs.
func (w *world) leftovers() (all []string) {
	for _, p := range w.processes() {
		all = append(all, fmt.Sprintf("process %v", p))
	}
	for dir := range w.mounts() {
		all = append(all, "mount "+dir)
	}
	for _, d := range []string{w.cache + "/tmp", w.dir + "/run", w.cache + "/layers", w.cache + "/images", w.cache + "/refs", w.cache + "/records", w.cache + "/blobs"} {
		_ = filepath.WalkDir(d, func(name string, e fs.DirEntry, err error) error {
			if err != nil || name == d || e.IsDir() && d == w.dir+"/run" {
				return nil
			}
			switch base := filepath.Base(name); {
			case d == w.cache+"/images" && base != "image.erofs" && base != "map" && base != "merkle" && base != "plan" && base != "info.json" && base != "layers" && len(base) != 64,
				strings.HasPrefix(base, ".new-"), d == w.cache+"/tmp", d == w.dir+"/run", d == w.cache+"/layers":
				all = append(all, "file "+name)
			}
			return nil
		})
	}
	return all
}

// settle checks all images, ends the daemon, and sees that nothing is left over.
func (w *world) settle(ctx context.Context) {
	if _, err := w.do(ctx, "fsck", "-n"); err != nil {
		w.fault("in the end: %v", err)
	}
	if _, err := w.do(ctx, "daemon", "stop"); err != nil {
		w.fault("in the end: %v", err)
	}
	for range 50 { // views end behind their mounts
		if len(w.processes()) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, l := range w.leftovers() {
		w.fault("left over: %s", l)
	}
}

// logs prints what the daemon and views have said last, but for what they always say.
func (w *world) logs() {
	for _, name := range []string{"daemon.log", "views.log"} {
		b, _ := os.ReadFile(filepath.Join(w.cache, name))
		lines := slices.DeleteFunc(strings.SplitAfter(string(b), "\n"), func(l string) bool { return strings.Contains(l, `"daemon serves"`) })
		fmt.Fprintf(os.Stderr, "the end of %s:\n%s", name, strings.Join(lines[max(0, len(lines)-50):], ""))
	}
}

// end ends all that is left of this world, by force where need be, and removes it.
func (w *world) end() error {
	for dir, minor := range w.mounts() {
		// what hangs in it is told first
		_ = os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", minor), []byte("1"), 0)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	for _, p := range w.processes() {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
	for range 100 {
		if len(w.processes()) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return os.RemoveAll(w.dir)
}
