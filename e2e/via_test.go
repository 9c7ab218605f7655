package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mountedAs gives the type of the file system on dir, and the source that /proc/mounts shows.
func mountedAs(t *testing.T, dir string) (fstype, source string) {
	t.Helper()
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[1] == dir {
			fstype, source = f[2], f[0]
		}
	}
	return fstype, source
}

// TestVia shows one image in each way, unfinished and complete: always as the same tree.
func TestVia(t *testing.T) {
	layout := "oci:" + filepath.Join(buildDir(t), "image/demo-estargz")
	want := list(t, filepath.Join(buildDir(t), "image/tree"))
	for _, c := range []struct {
		name, fstype string
		args         []string
	}{
		{"fuse", "fuse.pexfs", []string{"--via", "fuse", "--allow-other"}},
		{"erofs", "erofs", []string{"--via", "erofs"}},
		{"auto", "fuse.pexfs", nil},
		{"auto, for all users", "erofs", []string{"--allow-other"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			for _, state := range []string{"lazy", "complete"} {
				dir := l.mount(append(c.args, "--no-fill", layout)...)
				fstype, source := mountedAs(t, dir)
				if fstype != c.fstype || source != layout {
					t.Errorf("%s: mounted as %s from %s, want %s from %s", state, fstype, source, c.fstype, layout)
				}
				var st unix.Statfs_t
				if err := unix.Statfs(dir, &st); err != nil {
					t.Fatal(err)
				}
				if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
					t.Errorf("%s: mounted with flags %#x", state, st.Flags)
				}
				if out := l.do("pexfs", "status", dir); !strings.Contains(out, "mount "+dir) {
					t.Errorf("%s: the mount has no lease:\n%s", state, out)
				}
				same(t, want, dir)
				l.seal(dir) // from here on the image is complete
				same(t, want, dir)

				open, err := os.Open(filepath.Join(dir, "etc/passwd"))
				if err != nil {
					t.Fatal(err)
				}
				if out, code := l.try("pexfs", "umount", dir); code != 1 || !strings.Contains(out, "busy") {
					t.Errorf("%s: unmounting what is in use: %d: %s", state, code, out)
				}
				open.Close()
				l.do("pexfs", "umount", dir)
				if out := l.do("pexfs", "status"); strings.Contains(out, dir) {
					t.Errorf("%s: a lease is left of the mount:\n%s", state, out)
				}
			}
			l.do("pexfs", "rm", layout) // nothing uses it
		})
	}
}

// TestViaErofsWaits reads an unfinished image through the kernel's EROFS while its daemon is killed, and then with nobody left
// who shows it: reads of what is missing wait in the first case and fail in the second, and never give zeros.
func TestViaErofsWaits(t *testing.T) {
	layout, tree := "oci:"+filepath.Join(buildDir(t), "image/demo-estargz"), filepath.Join(buildDir(t), "image/tree")
	l := newLab(t)
	dir := l.mount("--via", "erofs", "--no-fill", layout)
	l.killDaemon()
	want, err := sha(filepath.Join(tree, "bin/bash"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sha(filepath.Join(dir, "bin/bash")); err != nil || got != want {
		t.Errorf("with a daemon that was killed: %s, %v, want %s", got, err, want)
	}
	other := exec.Command("setpriv", "--reuid", "65534", "--clear-groups", "cat", "etc/debian_version")
	other.Dir = dir
	if out, err := other.Output(); err != nil || len(out) == 0 {
		t.Errorf("another user reads %q: %v", out, err)
	}

	kill(t, only(t, l.cache, "hold"))
	kill(t, viewOf(t, l.cache))
	read := 0
	err = filepath.WalkDir(filepath.Join(dir, "usr/bin"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		got, err := sha(path)
		if err != nil {
			return nil
		}
		read++
		if want, err := sha(filepath.Join(tree, strings.TrimPrefix(path, dir))); err != nil || got != want {
			t.Errorf("%s has other bytes when the view is gone (%v)", path, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := filepath.Glob(filepath.Join(tree, "usr/bin/*")); err != nil || read >= len(entries)/2 {
		t.Errorf("%d files can be read that nobody fetched: %v", read, err)
	}
}

// TestViaRefused checks what --via doesn't take.
func TestViaRefused(t *testing.T) {
	layout := "oci:" + filepath.Join(buildDir(t), "image/demo-estargz")
	l := newLab(t)
	dir := t.TempDir()
	l.fails(1, []string{"--via nfs", "not auto, fuse or erofs"}, "pexfs", "mount", "--via", "nfs", layout, dir)
	l.fails(1, []string{"--debug goes with --via fuse"}, "pexfs", "mount", "--via", "erofs", "--foreground", "--debug", layout, dir)

	// others may change the image file: not for the kernel, but for a process
	fuse := l.mount(layout)
	l.seal(fuse)
	l.do("pexfs", "umount", fuse)
	if err := os.Chmod(l.imageFile(), 0o666); err != nil {
		t.Fatal(err)
	}
	l.fails(1, []string{"others than root may change it"}, "pexfs", "mount", "--via", "erofs", layout, dir)
	fuse = l.mount("--allow-other", layout)
	if fstype, _ := mountedAs(t, fuse); fstype != "fuse.pexfs" {
		t.Errorf("mounted as %s", fstype)
	}
}
