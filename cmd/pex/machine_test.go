package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm/kernel"
	"github.com/pexfs/pex/vm/qemu"
)

// patience bounds every wait of these tests, for a machine that is emulated on a
// busy host.
const patience = 3 * time.Minute

// lab is what the tests with real machines share: the programs, an image, a cache.
type lab struct {
	bin, cache, runtime, kernel string
	image                       string // reference
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{
		bin: filepath.Join(dir, "bin"), cache: filepath.Join(dir, "cache"), runtime: filepath.Join(dir, "run"),
		kernel: testKernel(t),
	}
	for _, d := range []string{l.bin, l.runtime} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, pkg := range map[string]string{"pex": ".", "pex-init": "../pex-init", "guestprog": "./testdata/guestprog"} {
		l.build(t, name, pkg)
	}
	l.image = "oci:" + writeImage(t, filepath.Join(dir, "image"), filepath.Join(l.bin, "guestprog"))
	t.Cleanup(func() {
		if out, err := l.command("daemon", "stop").CombinedOutput(); err != nil {
			t.Errorf("stopping the daemon: %v\n%s", err, out)
		}
	})
	return l
}

// build makes a program of the lab.
func (l *lab) build(t *testing.T, name, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", filepath.Join(l.bin, name), pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
}

// testKernel finds the kernel that machines of tests boot.
func testKernel(t *testing.T) string {
	t.Helper()
	build := os.Getenv("PEX_BUILD")
	if build == "" {
		build = "../../build"
	}
	k, err := kernel.Find(kernel.Search{
		Given: []string{os.Getenv(kernelEnv)}, Dir: filepath.Join(build, "cache", "kernels"), Root: "/",
	})
	if err != nil {
		t.Fatalf("%v: `make kernel` gets one", err)
	}
	path, err := filepath.Abs(k.Path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Sizes of the image's data files, in bytes.
const (
	hugeSize  = 3 * 2 << 20 // three huge pages
	smallSize = 10_000
)

// fileContent is what the image's data file of that name holds.
func fileContent(name string, size int64) []byte {
	b := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(b)
	return b
}

// writeImage makes an OCI layout of one image that holds the program, and its
// configuration's defaults.
func writeImage(t *testing.T, dir, prog string) string {
	t.Helper()
	b, err := os.ReadFile(prog)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/prog", Mode: 0o755, Size: int64(len(b))},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/motd", Mode: 0o644, Size: 6},
		{Name: "etc/passwd", Mode: 0o644, Size: 46},
		{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "data/huge", Mode: 0o644, Size: hugeSize},
		{Name: "data/one", Mode: 0o644, Size: smallSize},
		{Name: "data/two", Mode: 0o644, Size: smallSize},
		{Name: "work/", Typeflag: tar.TypeDir, Mode: 0o777},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		switch h.Name {
		case "bin/prog":
			w.Write(b)
		case "etc/motd":
			io.WriteString(w, "hello\n")
		case "etc/passwd":
			io.WriteString(w, "root:x:0:0::/root:/\napp:x:1000:100::/work:/bin"[:46])
		case "data/huge", "data/one", "data/two":
			w.Write(fileContent("/"+h.Name, h.Size))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: "amd64",
		RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs(t, image)},
		Config: v1.Config{
			Entrypoint: []string{"prog"}, Cmd: []string{"print", "default"},
			Env: []string{"PATH=/bin", "A=image"}, WorkingDir: "/work", User: "app",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(image); err != nil {
		t.Fatal(err)
	}
	return dir
}

func diffIDs(t *testing.T, image v1.Image) []v1.Hash {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c.RootFS.DiffIDs
}

// command is a pex that uses the lab's cache.
func (l *lab) command(args ...string) *exec.Cmd { return l.program("pex", args...) }

// program is any program of the lab that uses its cache.
func (l *lab) program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(l.bin, name), args...)
	cmd.Env = append(os.Environ(), "PEX_CACHE_DIR="+l.cache, "XDG_RUNTIME_DIR="+l.runtime, kernelEnv+"="+l.kernel, initEnv+"=")
	return cmd
}

// result is what became of a command.
type result struct {
	status         int
	stdout, stderr string
}

// run runs a command to its end.
func (l *lab) run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := l.command(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	status := waitStatus(t, cmd)
	return result{status, stdout.String(), stderr.String()}
}

func waitStatus(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

// child waits for a child of ppid that has word on its command line. (Others come
// and go: the os package of Go tries out what the kernel can do with a child.)
func child(t *testing.T, ppid int, word string) int {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", ppid))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			b, _ := os.ReadFile(task)
			for pid := range strings.FieldsSeq(string(b)) {
				args, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
				if !bytes.Contains(args, []byte(word)) {
					continue
				}
				n, err := strconv.Atoi(pid)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("process %d has no child %s", ppid, word)
	return 0
}

// watched is a process that is known to have been there.
type watched struct{ pid, fd int }

func watch(t *testing.T, pid int) watched {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return watched{pid, fd}
}

// waitGone waits until the process is no more.
func (w watched) waitGone(t *testing.T) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			t.Errorf("process %d is still there: %v", w.pid, err)
		}
		return
	}
}

// running is a `pex run` under way, and the processes behind it.
type running struct {
	cmd              *exec.Cmd
	stdout           *bufio.Reader
	stderr           bytes.Buffer
	supervisor, qemu watched
}

// start starts `pex run` and waits for its machine's process.
func (l *lab) start(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{cmd: l.command(append([]string{"run"}, args...)...)}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stdout, r.cmd.Stderr = bufio.NewReader(out), &r.stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.cmd.Process.Kill() })
	r.supervisor = watch(t, child(t, r.cmd.Process.Pid, superviseName))
	r.qemu = watch(t, child(t, r.supervisor.pid, qemu.Name))
	return r
}

// expect reads a line of the program's output.
func (r *running) expect(t *testing.T, want string) {
	t.Helper()
	line, err := r.stdout.ReadString('\n')
	if err != nil || line != want+"\n" {
		t.Fatalf("output %q, %v, want %q\n%s", line, err, want, r.stderr.String())
	}
}

func (r *running) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// ends waits for the end of everything.
func (r *running) ends(t *testing.T, status int) {
	t.Helper()
	io.Copy(io.Discard, r.stdout)
	if got := waitStatus(t, r.cmd); got != status {
		t.Errorf("status %d, want %d\n%s", got, status, r.stderr.String())
	}
	r.supervisor.waitGone(t)
	r.qemu.waitGone(t)
}

func TestMachine(t *testing.T) {
	l := newLab(t)
	// The first opening, so that the machine is the only child of what follows, and
	// the daemon's.
	if r := l.run(t, "", "run", "-v", l.image); r.status != 0 || r.stdout != "[default]\n/work image  1000 100\n" {
		t.Fatalf("the image's own program: %+v", r)
	}

	big := func(i int) string {
		b := make([]byte, 1<<20)
		for j := range b {
			b[j] = byte('a' + (i+j)%26)
		}
		return string(b)
	}
	input := strings.Repeat("0123456789abcde\n", 1<<15)
	t.Run("programs", func(t *testing.T) {
		tests := []struct {
			name  string
			flags []string
			args  []string
			stdin string
			want  result // stderr: a part of it
		}{
			{"arguments and settings", []string{"--root", "virtiofs", "-e", "B=2", "-w", "/etc", "-u", "0"}, []string{"print", "-e", "x y"}, "",
				result{0, "[-e x y]\n/etc image 2 0 0\n", ""}},
			{"status", []string{"-c", "2", "-m", "300m"}, []string{"exit", "7"}, "", result{7, "", ""}},
			{"not found", []string{"--entrypoint", "nosuch"}, nil, "", result{127, "", `pex: error: running "nosuch"`}},
			{"not executable", []string{"--entrypoint", "/etc/motd"}, nil, "", result{126, "", `pex: error: running "/etc/motd"`}},
			{"unknown user", []string{"-u", "nobody"}, nil, "", result{125, "", "nobody"}},
			{"input", []string{"-i", "--root", "virtiofs"}, []string{"cat"}, input, result{0, input, ""}},
			{"input without -i", nil, []string{"cat"}, input, result{0, "", ""}},
			{"output", []string{"--root", "blk"}, []string{"spew", strconv.Itoa(1 << 20)}, "", result{0, big(0), big(1)}},
			{"switched off", []string{"-u", "0", "--root", "blk"}, []string{"poweroff"}, "", result{125, "", "pex: error: the machine was switched off from inside"}},
			{"panic", []string{"-u", "0", "--root", "blk"}, []string{"panic"}, "", result{125, "", "pex: error: the machine's kernel panicked: sysrq triggered crash"}},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				args := append(append([]string{"run"}, tt.flags...), l.image)
				got := l.run(t, tt.stdin, append(args, tt.args...)...)
				if got.status != tt.want.status || !strings.Contains(got.stderr, tt.want.stderr) {
					t.Errorf("status %d, want %d\nstandard error %.1000q, want %.100q", got.status, tt.want.status, got.stderr, tt.want.stderr)
				}
				if got.stdout != tt.want.stdout {
					t.Errorf("output:\n%.1000s", cmp.Diff(tt.want.stdout, got.stdout))
				}
			})
		}
	})

	t.Run("interrupted before the program runs", func(t *testing.T) {
		r := l.start(t, l.image, "wait")
		r.signal(t, syscall.SIGINT)
		r.ends(t, 130)
	})
	t.Run("interrupted", func(t *testing.T) {
		r := l.start(t, l.image, "wait")
		r.expect(t, "waiting")
		r.signal(t, syscall.SIGINT)
		r.ends(t, 130)
	})
	t.Run("interrupted three times", func(t *testing.T) {
		r := l.start(t, "--root", "virtiofs", l.image, "stubborn")
		r.expect(t, "waiting")
		r.signal(t, syscall.SIGUSR1)
		r.expect(t, "got 10")
		r.signal(t, syscall.SIGTERM)
		r.expect(t, "got 15")
		for range killInterrupts {
			r.signal(t, syscall.SIGINT)
			time.Sleep(50 * time.Millisecond) // equal signals that wait are one
		}
		r.ends(t, 130)
	})
	t.Run("pex killed", func(t *testing.T) {
		r := l.start(t, "--root", "virtiofs", l.image, "wait")
		r.expect(t, "waiting")
		r.signal(t, syscall.SIGKILL)
		r.ends(t, -1)
	})
	t.Run("supervisor killed", func(t *testing.T) {
		r := l.start(t, "--root", "virtiofs", l.image, "wait")
		r.expect(t, "waiting")
		if err := unix.Kill(r.supervisor.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.ends(t, 125)
		if !strings.Contains(r.stderr.String(), "supervisor ended: signal: killed") {
			t.Errorf("standard error %q", r.stderr.String())
		}
	})
	t.Run("QEMU killed", func(t *testing.T) {
		r := l.start(t, l.image, "wait")
		r.expect(t, "waiting")
		if err := unix.Kill(r.qemu.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.ends(t, 125)
		if !strings.Contains(r.stderr.String(), "machine monitor ended: signal: killed") {
			t.Errorf("standard error %q", r.stderr.String())
		}
	})

	t.Run("huge pages", func(t *testing.T) {
		r := l.run(t, "", "run", "--root", "pmem", l.image, "fault", "/data/huge")
		var aligned, shifted int
		if _, err := fmt.Sscanf(r.stdout, "aligned %d\nshifted %d\n", &aligned, &shifted); err != nil || r.status != 0 {
			t.Fatalf("%v: %+v", err, r)
		}
		t.Logf("faults for %d pages of 4 KiB: %d at a multiple of 2 MiB, %d elsewhere", hugeSize/4096, aligned, shifted)
		// Three are needed; the program has some of its own.
		if aligned > 100 || shifted < hugeSize/4096 {
			t.Errorf("%d faults at a multiple of 2 MiB, %d elsewhere; want few, and %d or more", aligned, shifted, hugeSize/4096)
		}
	})
	t.Run("image overwritten from inside", func(t *testing.T) {
		before := l.imageSum(t)
		r := l.run(t, "", "run", "--root", "pmem", "-u", "0", l.image, "overwrite")
		if r.status != 0 || r.stdout != "" {
			t.Errorf("overwriting: %+v", r)
		}
		if after := l.imageSum(t); after != before {
			t.Error("the guest changed the host's image")
		}
	})
	// A machine is started with what the name stood for, and again with what it stands for now.
	t.Run("another image under the name", func(t *testing.T) {
		old := l.image
		l.lazily(t)
		folder := strings.TrimPrefix(old, "oci:")
		if err := errors.Join(os.RemoveAll(folder), os.Rename(strings.TrimPrefix(l.image, "oci:"), folder)); err != nil {
			t.Fatal(err)
		}
		r := l.run(t, "", "run", "-v", "--no-fill", old)
		if r.status != 0 || r.stdout != "[default]\n/work image  1000 100\n" || !strings.Contains(r.stderr, "root blk\n") {
			t.Errorf("%+v", r)
		}
	})
}

// imageSum is the SHA-256 of the one image in the cache.
func (l *lab) imageSum(t *testing.T) [32]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(l.cache, "images", "*", "image.erofs"))
	if err != nil || len(files) != 1 {
		t.Fatalf("images %q, %v, want one", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}
