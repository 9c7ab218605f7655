package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestColdToWarm is the main job: an image is mounted before it is downloaded, completed, checked by fsck.erofs, veritysetup and the
// kernel, and its programs run cold and warm, warm without the registry.
func TestColdToWarm(t *testing.T) {
	l := newLab(t)
	l.serve()
	want := list(t, filepath.Join(l.build, "image/tree"))
	ref := l.addr + "/demo-estargz:latest"

	before := l.sent()
	dir := l.mount("--no-fill", ref)
	if _, err := os.ReadDir(dir); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	blobs, err := filepath.Glob(filepath.Join(l.build, "image/demo-estargz/blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		st, err := os.Stat(b)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if n := l.sent() - before; n > total/20 {
		t.Errorf("mount and ls fetched %d of %d bytes", n, total)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mounts), ref+" "+dir+" fuse.pexfs ro,nosuid,nodev") {
		t.Errorf("/proc/mounts has no line for %s", ref)
	}

	if out, code := l.try("pex", "run", "--no-fill", "--root", "virtiofs", ref, "python3", "-c", "print(6*7)"); code != 0 || out != "42\n" {
		t.Errorf("cold run: %d: %s", code, out)
	}
	same(t, want, dir) // reads every byte through the cold mount
	l.do("pexfs", "wait", dir)
	same(t, want, dir)

	file := l.imageFile()
	out, err := exec.Command("fsck.erofs", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "<E>") {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
	var st []struct{ Root string }
	decode(t, l.do("pexfs", "ls", "--json"), &st)
	if out, err := exec.Command("veritysetup", "verify", file, filepath.Join(filepath.Dir(file), "merkle"), st[0].Root).CombinedOutput(); err != nil {
		t.Errorf("veritysetup: %v\n%s", err, out)
	}
	kernel := t.TempDir()
	if err := unix.Mount(file, kernel, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	same(t, want, kernel)
	unmount(t, kernel)

	l.stopRegistry()
	sum, err := sha(file)
	if err != nil {
		t.Fatal(err)
	}
	out2, code := l.try("pex", "run", "-v", "-u", "0", ref, "sh", "-c", "dd if=/dev/zero of=/dev/pmem0 bs=1M count=3 conv=fsync 2>&1; echo warm")
	if code != 0 || !strings.Contains(out2, "warm\n") || !strings.Contains(out2, "root pmem") || strings.Contains(out2, "warning") {
		t.Errorf("warm run: %d: %s", code, out2)
	}
	if after, err := sha(file); err != nil || after != sum {
		t.Errorf("the guest has changed the image: %v", err)
	}
	if out, code := l.try("pex", "run", ref, "sh", "-c", "exit 7"); code != 7 {
		t.Errorf("exit 7 gave %d: %s", code, out)
	}
	if out, code := l.try("pex", "run", ref, "no-such-program"); code != 127 {
		t.Errorf("a missing program gave %d: %s", code, out)
	}
}

// TestSameBytes fills an image in order, in disorder, and with the daemon killed halfway: the file and its Merkle root are
// the same. Streamed from gzip it is the same tree.
func TestSameBytes(t *testing.T) {
	layout := "oci:" + filepath.Join(buildDir(t), "image/demo-estargz")
	type result struct{ file, root string }
	sealed := func(l *lab) result {
		l.do("pexfs", "wait", layout)
		var st []struct{ Root string }
		decode(t, l.do("pexfs", "ls", "--json"), &st)
		sum, err := sha(l.imageFile())
		if err != nil {
			t.Fatal(err)
		}
		return result{sum, st[0].Root}
	}

	l := newLab(t)
	l.mount(layout)
	inOrder := sealed(l)

	l = newLab(t)
	dir := l.mount("--no-fill", layout)
	if out, err := exec.Command("sh", "-c", "cd "+dir+" && find . -type f -print0 | shuf -z | xargs -0 -P 4 cat >/dev/null").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if r := sealed(l); r != inOrder {
		t.Errorf("read in disorder: %v, in order: %v", r, inOrder)
	}

	l = newLab(t)
	dir = l.mount("--no-fill", layout)
	if _, err := sha(filepath.Join(dir, "usr/bin/bash")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/bin/perl", "usr/bin/dpkg", "usr/bin/apt-get"} {
		l.killDaemon()
		if _, err := sha(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if r := sealed(l); r != inOrder {
		t.Errorf("with the daemon killed: %v, in order: %v", r, inOrder)
	}
}

// TestStreamed mounts the image as umoci made it, in plain gzip.
func TestStreamed(t *testing.T) {
	l := newLab(t)
	l.serve()
	dir := l.mount(l.addr + "/demo:latest")
	same(t, list(t, filepath.Join(l.build, "image/tree")), dir)
}

// TestOnce runs four programs of an image at once, cold: its bytes are fetched once. An image of the same layers fetches none.
func TestOnce(t *testing.T) {
	l := newLab(t)
	l.serve()
	ref := l.addr + "/demo-estargz:latest"
	before := l.sent()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if out, code := l.try("pex", "run", ref, "python3", "-c", "print(6*7)"); code != 0 || out != "42\n" {
				t.Errorf("%d: %s", code, out)
			}
		})
	}
	wg.Wait()
	l.do("pexfs", "wait", ref)
	total := int64(0)
	var st []struct{ Layers []struct{ Size int64 } }
	decode(t, l.do("pexfs", "ls", "--json"), &st)
	for _, ly := range st[0].Layers {
		total += ly.Size
	}
	if n := l.sent() - before; n > total*11/10 {
		t.Errorf("%d bytes were fetched of an image of %d", n, total)
	}
	if out, err := exec.Command("skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+ref, "docker://"+l.addr+"/other:latest").CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	before = l.sent()
	l.mount(l.addr + "/other:latest")
	if n := l.sent() - before; n > 100<<10 {
		t.Errorf("%d bytes were fetched for layers that are cached", n)
	}
}
