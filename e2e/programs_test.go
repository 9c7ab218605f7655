// Package e2e tests the real programs on a real image, a Debian in two layers, made from its packages (see demo/make-image); and on
// generated ones, whose trees are compared four ways: what the packages merge, the view over FUSE, the kernel's mount of the sealed image, and
// judges that know nothing of these (see TestStacks, TestCases, TestRealImages).
package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// buildDir is what `make` made: bin, image, cache/kernels.
func buildDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("PEX_BUILD")
	if dir == "" {
		t.Fatal("PEX_BUILD is not set: run the tests by `make test`")
	}
	return dir
}

// lab is a cache folder and a registry of a test's own.
type lab struct {
	t        *testing.T
	build    string
	cache    string
	env      []string // of its programs, beside the test's
	registry *exec.Cmd
	addr     string
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, build: buildDir(t), cache: filepath.Join(t.TempDir(), "cache")}
	t.Cleanup(func() {
		l.command("pexfs", "daemon", "stop").Run()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(l.cache, "daemon.log"))
			t.Logf("the daemon's log:\n%.8000s", b)
		}
	})
	return l
}

// in is the lab for another test, which ends before the lab's own.
func (l *lab) in(t *testing.T) *lab {
	c := *l
	c.t = t
	return &c
}

func (l *lab) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(l.build, "bin", name), args...)
	cmd.Env = append(append(os.Environ(), l.env...), "PEX_CACHE_DIR="+l.cache, "PEX_KERNEL="+filepath.Join(l.build, "cache/kernels/default"))
	return cmd
}

// do runs a program that must succeed, and returns what it printed.
func (l *lab) do(name string, args ...string) string {
	l.t.Helper()
	out, code := l.try(name, args...)
	if code != 0 {
		l.t.Fatalf("%s %q ended with %d:\n%s", name, args, code, out)
	}
	return out
}

// try runs a program and returns its output, standard error behind standard output, and exit code.
func (l *lab) try(name string, args ...string) (string, int) {
	l.t.Helper()
	cmd := l.command(name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		l.t.Fatal(err)
	}
	return out.String() + errs.String(), cmd.ProcessState.ExitCode()
}

// serve starts the embedded registry with the demo's images in it.
func (l *lab) serve() {
	l.t.Helper()
	l.registry = l.command("pexfs", "registry", "--listen", "127.0.0.1:0", filepath.Join(l.t.TempDir(), "registry"))
	out, err := l.registry.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.registry.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(l.stopRegistry)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		l.t.Fatal(err)
	}
	l.addr = strings.TrimSpace(line[strings.LastIndex(line, " ")+1:])
	for _, image := range []string{"demo", "demo-estargz"} {
		from := "oci:" + filepath.Join(l.build, "image", image) + ":latest"
		if b, err := exec.Command("skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", from, "docker://"+l.addr+"/"+image+":latest").CombinedOutput(); err != nil {
			l.t.Fatalf("skopeo: %v\n%s", err, b)
		}
	}
}

func (l *lab) stopRegistry() {
	if l.registry != nil {
		l.registry.Process.Kill()
		l.registry.Wait()
		l.registry = nil
	}
}

// sent is how many bytes the registry has sent.
func (l *lab) sent() int64 {
	l.t.Helper()
	r, err := http.Get("http://" + l.addr + "/_pex/stats")
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Body.Close()
	var s struct{ Sent int64 }
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		l.t.Fatal(err)
	}
	return s.Sent
}

// mount mounts an image on a folder of its own until the test ends.
func (l *lab) mount(args ...string) (dir string) {
	l.t.Helper()
	dir = l.t.TempDir()
	l.do("pexfs", append(append([]string{"mount"}, args...), dir)...)
	l.t.Cleanup(func() { l.umount(dir) })
	return dir
}

func (l *lab) umount(dir string) {
	var a, b syscall.Stat_t
	if syscall.Stat(dir, &a) != nil || syscall.Stat(filepath.Dir(dir), &b) != nil || a.Dev == b.Dev {
		return // not mounted any more
	}
	if out, code := l.try("pexfs", "umount", dir); code != 0 {
		l.t.Errorf("umount: %s", out)
	}
}

// sealed is an image that is complete and on disk.
type sealed struct {
	Key, State, Root string
	file             string
}

// seal completes an image, named by its reference or a folder where it is mounted.
func (l *lab) seal(image string) sealed {
	l.t.Helper()
	lines := strings.Split(strings.TrimSpace(l.do("pexfs", "wait", "--json", image)), "\n")
	var s sealed
	decode(l.t, lines[len(lines)-1], &s)
	if s.State != "sealed" {
		l.t.Fatalf("%s is %s", image, s.State)
	}
	s.file = filepath.Join(l.cache, "images", s.Key, "image.erofs")
	return s
}

// imageFile is the only image of the cache.
func (l *lab) imageFile() string {
	l.t.Helper()
	files, err := filepath.Glob(filepath.Join(l.cache, "images/*/image.erofs"))
	if err != nil || len(files) != 1 {
		l.t.Fatal(files, err)
	}
	return files[0]
}

func (l *lab) killDaemon() {
	l.t.Helper()
	var pid int
	for i := 0; ; i++ { // while a daemon begins, the file is empty for a moment, or names the last one
		b, err := os.ReadFile(filepath.Join(l.cache, "lock"))
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err == nil {
			break
		}
		if i == 1000 {
			l.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for syscall.Kill(pid, 0) == nil {
		if b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); bytes.Contains(b, []byte(") Z ")) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
