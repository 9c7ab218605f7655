package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk is a file system of its own until the test ends.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil { // the process of a mount that was ended may be ending still
			t.Error(err)
		}
	})
	return dir
}

// takeAll writes to a file until its disk is full.
func takeAll(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if f.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestDiskFull mounts an image, and runs a machine of it, in a cache whose disk is full: all of it reads right, the daemon says so once, and
// status as long as it lasts. With room it is completed.
func TestDiskFull(t *testing.T) {
	disk := smallDisk(t, "400m")
	l := newLab(t)
	l.cache = filepath.Join(disk, "cache")
	ref := "oci:" + filepath.Join(l.build, "image", "demo-estargz") + ":latest"
	if out, code := l.try("pex", "run", "--no-fill", "--root", "blk", ref, "true"); code != 0 { // what machines boot is made once
		t.Fatal(out)
	}
	dir := l.mount("--no-fill", ref)
	ballast := filepath.Join(disk, "ballast")
	takeAll(t, ballast)
	want := shaFile(t, filepath.Join(l.mountElsewhere(ref), "usr/bin/perl"))
	if got := shaFile(t, filepath.Join(dir, "usr/bin/perl")); got != want {
		t.Errorf("a file has sum %s on a full disk, %s elsewhere", got, want)
	}
	if out, code := l.try("pex", "run", "--root", "blk", ref, "python3", "-c", "import json; print(6*7)"); code != 0 || out != "42\n" {
		t.Errorf("python ended with %d: %s", code, out)
	}
	l.fails(1, []string{"is full", "needed"}, "pexfs", "wait", ref)
	if s := l.do("pexfs", "status"); !strings.Contains(s, "filling rests") || !strings.Contains(s, "is full") {
		t.Errorf("status says: %s", s)
	}
	log, err := os.ReadFile(filepath.Join(l.cache, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "takes no more"); n > 1 { // the log may have had no room
		t.Errorf("%d warnings in the log:\n%s", n, log)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for strings.Contains(l.do("pexfs", "status"), "filling rests") { // it looks now and then
	}
	s := l.seal(ref)
	if s := l.do("pexfs", "status"); strings.Contains(s, "rests") {
		t.Errorf("status says: %s", s)
	}
	if out := l.do("pexfs", "fsck", s.Key); !strings.Contains(out, "all right") {
		t.Error(out)
	}
}

// mountElsewhere mounts an image with another cache.
func (l *lab) mountElsewhere(ref string) (dir string) {
	l.t.Helper()
	other := newLab(l.t)
	return other.mount("--no-fill", ref)
}
