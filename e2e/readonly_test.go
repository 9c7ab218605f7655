package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// frailDisk is a file system that turns read-only at its first error, which fail makes. again makes it one that can be written to, when
// nobody uses it.
func frailDisk(t *testing.T) (dir string, fail, again func()) {
	t.Helper()
	tool := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	dir = t.TempDir()
	disk := filepath.Join(t.TempDir(), "disk")
	tool("truncate", "-s", "64M", disk)
	tool("mkfs.ext4", "-q", disk)
	mount := func() { t.Helper(); tool("mount", "-o", "loop,errors=remount-ro", disk, dir) }
	mount()
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	fail = func() {
		t.Helper()
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); f[1] == dir {
				if err := os.WriteFile("/sys/fs/ext4/"+filepath.Base(f[0])+"/trigger_fs_error", []byte("1"), 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err == nil {
			t.Fatal("the disk can be written to")
		}
	}
	return dir, fail, func() {
		t.Helper()
		tool("umount", dir)
		mount()
	}
}

// TestReadOnly has the disk of a cache turn read-only under a mount: all of it reads right, the daemon says so once, and status as long
// as it lasts. Nothing starts on such a folder. When it can be written to again the image is completed, and right.
func TestReadOnly(t *testing.T) {
	disk, fail, again := frailDisk(t)
	l := newLab(t)
	l.cache = filepath.Join(disk, "cache")
	image := fixtureImage(t, formStargz)
	want := list(t, newLab(t).mount(image))
	var log bytes.Buffer
	daemon := l.command("pexfs", "daemon")
	daemon.Stderr = &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	dir := l.mount("--no-fill", image)
	fail()
	if d := diff(want, list(t, dir)); d != "" {
		t.Errorf("on a disk that is read-only and elsewhere:\n%s", d)
	}
	l.fails(1, []string{"read-only file system"}, "pexfs", "wait", image)
	if s := l.do("pexfs", "status"); !strings.Contains(s, "filling rests") || !strings.Contains(s, "read-only file system") {
		t.Errorf("status says: %s", s)
	}
	l.umount(dir)
	l.do("pexfs", "daemon", "stop")
	if err := daemon.Wait(); err == nil || !strings.Contains(log.String(), "syncing cache folder") {
		t.Errorf("the daemon, which could not put all on disk for good, ended with %v:\n%s", err, &log)
	}
	if n := strings.Count(log.String(), "takes no more"); n != 1 {
		t.Errorf("%d warnings in the log:\n%s", n, &log)
	}
	for _, args := range [][]string{{"daemon"}, {"mount", image, dir}} {
		l.fails(1, []string{l.cache, "read-only file system"}, "pexfs", args...)
	}
	again()
	dir = l.mount(image)
	s := l.seal(dir)
	if d := diff(want, list(t, dir)); d != "" {
		t.Errorf("when it can be written to again:\n%s", d)
	}
	if out := l.do("pexfs", "fsck", s.Key); !strings.Contains(out, "all right") {
		t.Error(out)
	}
	l.umount(dir)
	l.do("pexfs", "daemon", "stop")
}
