package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// daemonOf gives the only daemon of a cache.
func daemonOf(t *testing.T, cache string) int { return only(t, cache, "daemon") }

// socketOf is where the daemon of a lab listens. XDG_RUNTIME_DIR is the lab's own.
func socketOf(runtime, cache string) string {
	return filepath.Join(runtime, "pex", fmt.Sprintf("%x.sock", sha256.Sum256([]byte(cache)))[:12]+".sock")
}

// TestDaemonOfMany has fifty programs want a daemon at once: one is there afterwards, and all got what they wanted.
func TestDaemonOfMany(t *testing.T) {
	l := newLab(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if out, err := l.command("pexfs", "ls").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	pid := daemonOf(t, l.cache)
	if out := l.do("pexfs", "status"); !strings.HasPrefix(out, fmt.Sprintf("daemon %d,", pid)) {
		t.Errorf("process %d is left, but the daemon says %s", pid, out)
	}
}

// TestDaemonRestart replaces the daemon while it fetches an image for two who wait, and for readers of a mount. None of them sees it.
func TestDaemonRestart(t *testing.T) {
	tree := filepath.Join(buildDir(t), "image/tree")
	l := newLab(t)
	bounded(t, l.cache)
	l.serve()
	before := l.sent()
	dir := l.mount(l.addr + "/demo-estargz")
	var users sync.WaitGroup
	users.Go(func() {
		if got, err := tarSum(filepath.Join(dir, "usr/share")); err != nil || got != tarOf(t, filepath.Join(tree, "usr/share")) {
			t.Errorf("tar of the mount is %s, %v", got, err)
		}
	})
	for range 2 {
		users.Go(func() {
			if out, err := l.command("pexfs", "wait", l.addr+"/demo-estargz").CombinedOutput(); err != nil {
				t.Errorf("waiting: %v: %s", err, out)
			}
		})
	}
	said := regexp.MustCompile(`^was process (\d+), version \S.*; now process (\d+), version \S`)
	for range 5 {
		old := daemonOf(t, l.cache)
		m := said.FindStringSubmatch(l.do("pexfs", "daemon", "restart"))
		if m == nil || m[1] != strconv.Itoa(old) || m[2] != strconv.Itoa(daemonOf(t, l.cache)) {
			t.Errorf("restart says %q of %d and %d", m, old, daemonOf(t, l.cache))
		}
		time.Sleep(100 * time.Millisecond)
	}
	users.Wait()
	if size := layers(t, l); l.sent()-before > size+size/5 {
		t.Errorf("%d bytes were sent of an image of %d", l.sent()-before, size)
	}
	if out := l.do("pexfs", "status", dir); !strings.Contains(out, "mount "+dir) || !strings.Contains(out, "sealed") {
		t.Errorf("the mount isn't known to the next daemon: %s", out)
	}
	l.do("pexfs", "daemon", "stop")
	if out := l.do("pexfs", "daemon", "restart"); !strings.HasPrefix(out, "none ran; now process ") {
		t.Errorf("restart says %q", out)
	}
}

// TestDaemonKilled kills it while programs wait for its answers: they get them of the next one.
func TestDaemonKilled(t *testing.T) {
	l := newLab(t)
	l.serve()
	l.mount("--no-fill", l.addr+"/demo-estargz")
	var users sync.WaitGroup
	for _, args := range [][]string{{"wait", l.addr + "/demo-estargz"}, {"mount", l.addr + "/demo", t.TempDir()}, {"ls"}, {"status"}} {
		users.Go(func() {
			if out, err := l.command("pexfs", args...).CombinedOutput(); err != nil {
				t.Errorf("%q: %v: %s", args, err, out)
			}
			if args[0] == "mount" {
				l.umount(args[2])
			}
		})
	}
	for range 3 {
		time.Sleep(150 * time.Millisecond)
		l.killDaemon()
	}
	users.Wait()
	l.seal(l.addr + "/demo-estargz")
	l.seal(l.addr + "/demo") // what is being filled isn't checked
	users.Go(func() {
		if out, err := l.command("pexfs", "fsck").CombinedOutput(); err != nil {
			t.Errorf("fsck: %v: %s", err, out)
		}
	})
	time.Sleep(150 * time.Millisecond)
	l.killDaemon()
	users.Wait()
}

// TestDaemonSocketGone takes its socket away, as those do who clean up: another daemon is there in a moment.
func TestDaemonSocketGone(t *testing.T) {
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	l := newLab(t)
	l.do("pexfs", "ls")
	pid := daemonOf(t, l.cache)
	if _, err := os.Stat(socketOf(run, l.cache)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(run, "pex")); err != nil {
		t.Fatal(err)
	}
	l.do("pexfs", "ls")
	if daemonOf(t, l.cache) == pid {
		t.Error("it is there that nobody could reach")
	}
	// a dead one's socket is in nobody's way
	l.killDaemon()
	if _, err := os.Stat(socketOf(run, l.cache)); err != nil {
		t.Fatal(err)
	}
	l.do("pexfs", "ls")
}

// TestDaemonHangs stops the daemon: who asks it is told which process doesn't answer.
func TestDaemonHangs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.do("pexfs", "ls")
	pid := daemonOf(t, l.cache)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	var wg sync.WaitGroup
	for _, args := range [][]string{{"status"}, {"daemon", "restart"}} {
		wg.Go(func() {
			l.fails(1, []string{fmt.Sprintf("process %d", pid), "has not answered"}, "pexfs", args...)
		})
	}
	wg.Wait()
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.do("pexfs", "ls")
}

// TestDaemonActivated is systemd: it listens, starts the daemon when somebody comes, and is told when that serves and ends.
func TestDaemonActivated(t *testing.T) {
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	l := newLab(t)
	sock := socketOf(run, l.cache)
	if err := os.MkdirAll(filepath.Dir(sock), 0o700); err != nil {
		t.Fatal(err)
	}
	door, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: sock})
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	inherited, err := door.File()
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(run, "notify")})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	expect := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		if err := told.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := told.Read(b); err != nil || string(b[:n]) != want {
			t.Fatalf("was told %q, %v; want %q", b[:n], err, want)
		}
	}
	activate := func() *exec.Cmd {
		cmd := l.command("pexfs")
		cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" daemon --cache-dir "$1"`, cmd.Path, l.cache)
		cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+filepath.Join(run, "notify"))
		cmd.ExtraFiles = []*os.File{inherited}
		cmd.Stderr = new(bytes.Buffer)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	first := activate()
	expect("READY=1")
	if out := l.do("pexfs", "status"); !strings.HasPrefix(out, fmt.Sprintf("daemon %d,", first.Process.Pid)) {
		t.Errorf("not the activated daemon answers: %s", out)
	}
	var next *exec.Cmd
	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		if err := first.Wait(); err == nil {
			next = activate()
		}
	}()
	out := l.do("pexfs", "daemon", "restart")
	expect("STOPPING=1")
	<-restarted
	expect("READY=1")
	if want := fmt.Sprintf("was process %d, version ", first.Process.Pid); !strings.HasPrefix(out, want) || !strings.Contains(out, fmt.Sprintf("; now process %d,", next.Process.Pid)) {
		t.Errorf("restart says %q of %d and %d", out, first.Process.Pid, next.Process.Pid)
	}
	l.do("pexfs", "daemon", "stop")
	expect("STOPPING=1")
	if err := next.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, next.Stderr)
	}
	if _, err := os.Stat(sock); err != nil {
		t.Errorf("systemd's socket is gone: %v", err)
	}
}

// TestMachineDaemonKilled kills the daemon again and again while a machine reads what is missing of its disk.
func TestMachineDaemonKilled(t *testing.T) {
	const sums = "cd /usr/bin && sha256sum perl dpkg apt-get bash tar find grep sed gzip openssl sort ls cp dd mv"
	l := newLab(t)
	l.serve()
	tree := filepath.Join(buildDir(t), "image/tree")
	truth := exec.Command("sh", "-c", strings.Replace(sums, "/usr", tree+"/usr", 1)+" 2>/dev/null")
	want, _ := truth.Output() // of those that there are
	if bytes.Count(want, []byte("\n")) < 10 {
		t.Fatalf("the image has only %s", want)
	}
	cmd := l.command("pex", "run", "--root", "blk", "--no-fill", l.addr+"/demo-estargz", "sh", "-c", "echo begins; "+sums+" 2>/dev/null")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "begins\n" {
		t.Fatalf("the machine says %q, %v, %s", line, err, &errs)
	}
	over := make(chan struct{})
	var killer sync.WaitGroup
	killed := 0
	killer.Go(func() {
		for killed < 8 {
			if pids := processes(l.cache, "daemon"); len(pids) == 1 { // else none is needed yet
				kill(t, pids[0])
				killed++
			}
			select {
			case <-over:
				return
			case <-time.After(time.Duration(100+rand.IntN(200)) * time.Millisecond):
			}
		}
	})
	got, err := io.ReadAll(r)
	close(over)
	killer.Wait()
	_ = cmd.Wait() // sha256sum's own status tells of names that the image hasn't got
	if err != nil || string(got) != string(want) {
		t.Errorf("the machine read, with %d daemons killed:\n%s%v %s\nwant\n%s", killed, got, err, &errs, want)
	}
	if killed < 3 {
		t.Errorf("only %d daemons were killed", killed)
	}
}
