package kmount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// image makes an image file of a root with one empty folder.
func image(t *testing.T) *os.File {
	t.Helper()
	b := tree.NewBuilder(tree.Options{})
	if err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
		yield(tree.Entry{Name: "folder", Type: tree.Dir, Mode: 0o755}, nil)
	}); err != nil {
		t.Fatal(err)
	}
	tr, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	l, err := erofs.NewLayout(tr, func(tree.Content) [32]byte { return [32]byte{} }, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := errors.Join(f.Truncate(l.Size()), l.WriteTo(f)); err != nil {
		t.Fatal(err)
	}
	return f
}

// source is what /proc/mounts shows as the source of the mount on dir, or "".
func source(t *testing.T, dir string) (source string) {
	t.Helper()
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[1] == dir {
			source = f[0]
		}
	}
	return source
}

func TestSource(t *testing.T) {
	f := image(t)
	long := strings.Repeat("x/", 400) + "x"
	for _, c := range []struct{ name, source, want string }{
		{"a name", "python:3.12", "python:3.12"},
		{"with folders", "host:5000/a/b@sha256:00", "host:5000/a/b@sha256:00"},
		{"a layout", "oci:/tmp/x", "oci:/tmp/x"},
		{"with a space", "a b", `a\040b`},
		{"long", long, long},
		{"too long", strings.Repeat("x", 256), "/proc/self/fd/"},
		{"absolute", "/dev/null", "/proc/self/fd/"},
		{"none", "", "/proc/self/fd/"},
		{"the folder itself", ".", "/proc/self/fd/"},
		{"above", "../x", "/proc/self/fd/"},
		{"above, later", "x/../../y", "/proc/self/fd/"},
		{"with a zero", "a\x00b", "/proc/self/fd/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := MountFile(f, dir, c.source); err != nil {
				t.Fatal(err)
			}
			got := source(t, dir)
			if got != c.want && !(strings.HasSuffix(c.want, "/") && strings.HasPrefix(got, c.want)) {
				t.Errorf("shown as %q, want %q", got, c.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "folder")); err != nil {
				t.Error(err)
			}
			if after, err := os.Getwd(); err != nil || after != before {
				t.Errorf("the working folder is now %s, %v", after, err)
			}
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRelative mounts on a folder that is named from the working folder.
func TestRelative(t *testing.T) {
	f, dir := image(t), t.TempDir()
	t.Chdir(filepath.Dir(dir))
	if err := MountFile(f, filepath.Base(dir), "x"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}

func TestLoop(t *testing.T) {
	f, dir := image(t), t.TempDir()
	dev, err := loop(f)
	if err != nil {
		t.Fatal(err)
	}
	err = mount(dev.Name(), dir, "x")
	dev.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "folder")); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}

// TestWait ends a mount while others come and go.
func TestWait(t *testing.T) {
	f := image(t)
	for name, end := range map[string]func(dir string) error{
		"unmounted": func(dir string) error { return unix.Unmount(dir, 0) },
		"detached":  func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) },
		"moved, then unmounted": func(dir string) error {
			to := t.TempDir()
			return errors.Join(unix.Mount(dir, to, "", unix.MS_MOVE, ""), unix.Unmount(to, 0))
		},
		"in disorder": func(dir string) error {
			for range 50 {
				other := t.TempDir()
				if err := errors.Join(MountFile(f, other, ""), unix.Unmount(other, 0)); err != nil {
					return err
				}
			}
			return unix.Unmount(dir, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := MountFile(f, dir, "x"); err != nil {
				t.Fatal(err)
			}
			m, err := Find(dir)
			if err != nil {
				t.Fatal(err)
			}
			if is, err := m.is(); !is || err != nil {
				t.Errorf("the mount isn't found: %v", err)
			}
			ended := make(chan error)
			go func() { ended <- m.Wait() }()
			if err := end(dir); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
