package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// processes gives those of a cache that are one of its programs' parts: view, hold.
func processes(cache, part string) []int {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var pids []int
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(b), "\x00"+part+"\x00") || !strings.Contains(string(b), "\x00--cache-dir\x00"+cache+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// only gives the one process of a cache's only mount, waiting for it.
func only(t *testing.T, cache, part string) int {
	t.Helper()
	for range 500 {
		if pids := processes(cache, part); len(pids) == 1 {
			return pids[0]
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the cache has processes %v of %s", processes(cache, part), part)
	return 0
}

// viewOf gives the only view of a cache.
func viewOf(t *testing.T, cache string) int { return only(t, cache, "view") }

// gone waits until nothing is left that shows images of a cache.
func gone(t *testing.T, cache string) {
	t.Helper()
	for range 500 {
		if len(processes(cache, "view"))+len(processes(cache, "hold")) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("views %v and holders %v are left", processes(cache, "view"), processes(cache, "hold"))
}

// kill ends a process, which may just have ended.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}

// bounded ends the mounts of a cache when a test takes too long, or is over: with the last process that has a mount's device open,
// whoever waits for it gets an error. A process that waits can't be killed otherwise.
func bounded(t *testing.T, cache string) {
	end := func() {
		for _, part := range []string{"hold", "view"} {
			for _, pid := range processes(cache, part) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	timer := time.AfterFunc(time.Minute, end)
	t.Cleanup(func() {
		timer.Stop()
		end()
	})
}

// mapped reads a file by pages in no order, in a process of its own, as often as it is told to.
const mapped = `
import mmap, random, sys, hashlib
name, rounds = sys.argv[1], int(sys.argv[2])
for r in range(rounds):
    with open(name, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        m.madvise(mmap.MADV_RANDOM)
        pages = list(range(0, len(m), 4096))
        random.shuffle(pages)
        got = {p: m[p:p + 4096] for p in pages}
        h = hashlib.sha256()
        for p in sorted(got):
            h.update(got[p])
        print(h.hexdigest(), flush=True)
`

// TestViewKilled kills the process that serves a mount twenty times, while programs read by all means: they see nothing of it.
func TestViewKilled(t *testing.T) {
	tree := filepath.Join(buildDir(t), "image/tree")
	want := tarOf(t, tree)
	for _, via := range []string{"fuse", "erofs"} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			bounded(t, l.cache)
			l.serve()
			before := l.sent()
			dir := l.mount("--via", via, "--no-fill", l.addr+"/demo-estargz")
			holder := only(t, l.cache, "hold")

			open, err := os.Open(filepath.Join(dir, "usr/share/doc"))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			names, err := open.Readdirnames(3)
			if err != nil {
				t.Fatal(err)
			}

			var readers sync.WaitGroup
			for range 2 {
				readers.Go(func() {
					if got, err := tarSum(dir); err != nil || got != want {
						t.Errorf("tar of the mount is %s, %v; want %s", got, err, want)
					}
				})
			}
			readers.Go(func() { // in the mount, also as its working folder
				cmd := exec.Command("sh", "-c", `for i in 1 2 3 4 5 6 7 8; do cat passwd group debian_version; sleep .2; cd .; done | sort -u | sha256sum`)
				cmd.Dir = filepath.Join(dir, "etc")
				got, err := cmd.Output()
				cmd = exec.Command("sh", "-c", `cat passwd group debian_version | sort -u | sha256sum`)
				cmd.Dir = filepath.Join(tree, "etc")
				if want, err2 := cmd.Output(); err != nil || err2 != nil || string(got) != string(want) {
					t.Errorf("in the mount: %q, want %q: %v, %v", got, want, err, err2)
				}
			})
			readers.Go(func() {
				out, err := exec.Command("python3", "-c", mapped, filepath.Join(dir, "usr/bin/perl"), "2").Output()
				want := shaFile(t, filepath.Join(tree, "usr/bin/perl"))
				if err != nil || string(out) != want+"\n"+want+"\n" {
					t.Errorf("by mmap: %s: %v", out, err)
				}
			})
			for i := range 20 {
				time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
				view := viewOf(t, l.cache)
				if i%7 == 3 { // both at once
					l.killDaemon()
				}
				kill(t, view)
			}
			readers.Wait()
			rest, err := open.Readdirnames(-1)
			all, err2 := os.ReadDir(filepath.Join(tree, "usr/share/doc"))
			if err := errors.Join(err, err2); err != nil || len(names)+len(rest) != len(all) {
				t.Errorf("an open folder has %d names and %d more, want %d: %v", len(names), len(rest), len(all), err)
			}
			open.Close()

			if size := layers(t, l); l.sent()-before > size+size/5 { // and what was under way when the daemon was killed
				t.Errorf("%d bytes were sent of an image of %d", l.sent()-before, size)
			}
			if only(t, l.cache, "hold") != holder {
				t.Error("the mount has another holder")
			}
			if b, err := os.ReadFile(filepath.Join(l.cache, "views.log")); err != nil || strings.Count(string(b), "another takes over") < 10 {
				t.Errorf("the log doesn't say that views took over: %v\n%s", err, b)
			}
			l.do("pexfs", "umount", dir)
			gone(t, l.cache)
		})
	}
}

// tarSum is the SHA-256 of all that tar says of a tree.
func tarSum(dir string) (string, error) {
	cmd := exec.Command("tar", "--sort=name", "--numeric-owner", "--hard-dereference", "-cf", "-", ".")
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", err
	}
	sum, err := shaOf(bufio.NewReaderSize(out, 1<<20))
	return sum, errors.Join(err, cmd.Wait())
}

func tarOf(t *testing.T, dir string) string {
	t.Helper()
	sum, err := tarSum(dir)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// layers is the size of all layers of the images that are cached, in bytes.
func layers(t *testing.T, l *lab) (size int64) {
	t.Helper()
	var st struct {
		Images []struct {
			Layers []struct{ Size int64 }
		}
	}
	decode(t, l.do("pexfs", "status", "--json"), &st)
	for _, i := range st.Images {
		for _, la := range i.Layers {
			size += la.Size
		}
	}
	if size == 0 {
		t.Fatal("no image has layers")
	}
	return size
}

// TestHolderKilled kills what would take over: the view goes on, and ends with its mount; and with nobody left, users get errors at once.
func TestHolderKilled(t *testing.T) {
	layout, tree := "oci:"+filepath.Join(buildDir(t), "image/demo-estargz"), filepath.Join(buildDir(t), "image/tree")
	l := newLab(t)
	bounded(t, l.cache)
	dir := l.mount("--no-fill", layout)
	kill(t, only(t, l.cache, "hold"))
	if got, want := shaFile(t, filepath.Join(dir, "bin/bash")), shaFile(t, filepath.Join(tree, "bin/bash")); got != want {
		t.Errorf("without a holder: %s, want %s", got, want)
	}
	l.do("pexfs", "umount", dir)
	gone(t, l.cache)

	dir = l.mount("--no-fill", layout)
	reader := exec.Command("cat", "/dev/stdin")
	in, err := os.Open(filepath.Join(dir, "bin/bash"))
	if err != nil {
		t.Fatal(err)
	}
	reader.Stdin = in
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	kill(t, only(t, l.cache, "hold"))
	kill(t, viewOf(t, l.cache))
	_ = reader.Wait() // it ends: with all it read, or an error
	gone(t, l.cache)
	if _, err := os.ReadFile(filepath.Join(dir, "usr/bin/perl")); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("what nobody serves: %v", err)
	}
	l.fails(1, []string{"transport endpoint is not connected"}, "pexfs", "mount", layout, dir)
	l.do("pexfs", "umount", dir)
	l.do("pexfs", "mount", layout, dir)
	l.do("pexfs", "umount", dir)
}

// TestHolderAndDaemonKilled leaves a view alone: it can't start a daemon, but uses the next one that is there.
func TestHolderAndDaemonKilled(t *testing.T) {
	tree := filepath.Join(buildDir(t), "image/tree")
	l := newLab(t)
	bounded(t, l.cache)
	dir := l.mount("--no-fill", "--no-profile", "--io-timeout", "1s", "oci:"+filepath.Join(buildDir(t), "image/demo-estargz"))
	want := shaFile(t, filepath.Join(tree, "bin/bash"))
	if got := shaFile(t, filepath.Join(dir, "bin/bash")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	kill(t, only(t, l.cache, "hold"))
	l.killDaemon()
	if got := shaFile(t, filepath.Join(dir, "bin/bash")); got != want {
		t.Errorf("what is there: %s, want %s", got, want)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "usr/bin/perl")); !errors.Is(err, unix.EIO) {
		t.Errorf("what nobody fetches: %v", err)
	}
	l.do("pexfs", "ls")
	if got, want := shaFile(t, filepath.Join(dir, "usr/bin/perl")), shaFile(t, filepath.Join(tree, "usr/bin/perl")); got != want {
		t.Errorf("with a daemon again: %s, want %s", got, want)
	}
}

// TestViewKilledKeepsImage has nobody but a holder that stands still for an image that is to be removed: it stays, until the mount has ended.
func TestViewKilledKeepsImage(t *testing.T) {
	layout, tree := "oci:"+filepath.Join(buildDir(t), "image/demo-estargz"), filepath.Join(buildDir(t), "image/tree")
	for _, via := range []string{"fuse", "erofs"} {
		t.Run(via, func(t *testing.T) {
			l := newLab(t)
			bounded(t, l.cache)
			dir := l.mount("--via", via, layout)
			l.do("pexfs", "wait", dir)
			holder := only(t, l.cache, "hold")
			for range 2 { // also from the hands of a successor
				if err := syscall.Kill(holder, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				view := viewOf(t, l.cache)
				kill(t, view)
				for slices.Contains(processes(l.cache, "view"), view) {
					time.Sleep(time.Millisecond)
				}
				out := l.do("pexfs", "gc", "--all")
				l.fails(1, []string{"in use"}, "pexfs", "rm", layout)
				if err := syscall.Kill(holder, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(out, "image ") {
					t.Fatalf("an image that is mounted was removed: %s", out)
				}
				if got, want := shaFile(t, filepath.Join(dir, "bin/bash")), shaFile(t, filepath.Join(tree, "bin/bash")); got != want {
					t.Errorf("after that: %s, want %s", got, want)
				}
			}
			l.do("pexfs", "umount", dir)
			l.do("pexfs", "rm", layout)
			gone(t, l.cache)
		})
	}
}

// TestUnmountForms ends mounts in all ways, with a view and while there is none: nothing is left of them.
func TestUnmountForms(t *testing.T) {
	layout := "oci:" + filepath.Join(buildDir(t), "image/demo-estargz")
	l := newLab(t)
	bounded(t, l.cache)
	for _, via := range []string{"fuse", "erofs"} {
		for name, command := range map[string]string{
			"umount":        "umount $0",
			"umount -l":     "umount -l $0",
			"fusermount3":   "fusermount3 -u $0",
			"pexfs umount":  "pexfs umount $0",
			"lazy, in use":  "exec 9<$0/bin/bash; umount -l $0; cat <&9 >/dev/null",
			"while in use":  "exec 9<$0/bin/bash; umount $0 2>/dev/null && exit 1; exec 9<&-; umount $0",
			"by the holder": "kill $1",
			"by the view":   "kill $2",
		} {
			for _, state := range []string{"served", "dead", "taken over"} {
				if via == "erofs" && name == "fusermount3" || state == "dead" && strings.HasPrefix(name, "by the") {
					continue
				}
				t.Run(via+", "+name+", "+state, func(t *testing.T) {
					l := l.in(t)
					dir := l.mount("--via", via, "--no-fill", layout)
					holder, view := only(t, l.cache, "hold"), viewOf(t, l.cache)
					if state == "dead" {
						if err := syscall.Kill(holder, syscall.SIGSTOP); err != nil {
							t.Fatal(err)
						}
						time.AfterFunc(100*time.Millisecond, func() { syscall.Kill(holder, syscall.SIGCONT) })
					}
					if state != "served" {
						kill(t, view)
					}
					if state == "taken over" {
						for view == viewOf(t, l.cache) {
							time.Sleep(time.Millisecond)
						}
						view = viewOf(t, l.cache)
					}
					cmd := exec.Command("sh", "-ec", command, dir, strconv.Itoa(holder), strconv.Itoa(view))
					cmd.Env = append(os.Environ(), "PEX_CACHE_DIR="+l.cache, "PATH="+filepath.Join(l.build, "bin")+":"+os.Getenv("PATH"))
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("%v: %s", err, out)
					}
					gone(t, l.cache)
					if fstype, _ := mountedAs(t, dir); fstype != "" {
						t.Errorf("%s is still mounted as %s", dir, fstype)
					}
				})
			}
		}
	}
}

// TestViewHopeless takes away what a view needs: its successors end, the mount with them, and whoever waits gets an error.
func TestViewHopeless(t *testing.T) {
	layout := "oci:" + filepath.Join(buildDir(t), "image/demo-estargz")
	for _, via := range []string{"fuse", "erofs"} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			bounded(t, l.cache)
			dir := l.mount("--via", via, "--no-fill", layout)
			images := filepath.Join(l.cache, "images")
			if err := os.Rename(images, images+".away"); err != nil {
				t.Fatal(err)
			}
			kill(t, viewOf(t, l.cache))
			if out, err := exec.Command("cat", filepath.Join(dir, "usr/bin/perl")).Output(); err == nil || len(out) > 0 {
				t.Errorf("%d bytes were read from nowhere", len(out))
			}
			gone(t, l.cache)
			if b, err := os.ReadFile(filepath.Join(l.cache, "views.log")); err != nil || !strings.Contains(string(b), "views end again and again") {
				t.Errorf("the log doesn't say why the mount has ended: %v\n%s", err, b)
			}
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHolderIsSmall bounds what each mount costs beside its view.
func TestHolderIsSmall(t *testing.T) {
	l := newLab(t)
	bounded(t, l.cache)
	dir := l.mount("--no-fill", "oci:"+filepath.Join(buildDir(t), "image/demo-estargz"))
	holder := only(t, l.cache, "hold")
	if _, err := tarSum(filepath.Join(dir, "usr/bin")); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		kill(t, viewOf(t, l.cache))
		if _, err := os.ReadDir(filepath.Join(dir, "usr/bin")); err != nil {
			t.Error(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", holder))
	if err != nil || strings.Contains(string(maps), l.cache) {
		t.Errorf("the holder has mapped files of the cache: %v\n%s", err, maps)
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", holder))
	if err != nil {
		t.Fatal(err)
	}
	fuse, image := 0, 0
	for _, fd := range links {
		name, err := os.Readlink(fd)
		if err == nil && strings.HasPrefix(name, l.cache) && !strings.HasSuffix(name, ".log") {
			image++ // locked, not read
		}
		if name == "/dev/fuse" {
			fuse++
		}
	}
	if fuse != 1 || image != 1 || len(links) > 20 {
		t.Errorf("the holder has %d devices, %d files of the cache and %d descriptors", fuse, image, len(links))
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", holder))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	var private int
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "Private_Dirty:"); ok {
			fmt.Sscan(n, &private)
		}
	}
	t.Logf("the holder has %d kB of its own and %d descriptors", private, len(links))
	if private == 0 || private > 8<<10 {
		t.Errorf("the holder has %d kB of its own", private)
	}
}
