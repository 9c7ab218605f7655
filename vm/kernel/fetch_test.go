package kernel

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tools puts stand-ins for apt and dpkg in PATH: shell scripts by name.
func tools(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, body := range scripts {
		write(t, filepath.Join(dir, name), []byte("#!/bin/sh\nset -e\n"+body))
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
}

const aptCache = `echo linux-image-cloud; echo "  Depends: linux-image-6.1.0-7"; echo "  Depends: other"` + "\n"

func TestFetch(t *testing.T) {
	parts := t.TempDir()
	write(t, filepath.Join(parts, "boot/vmlinuz-6.1.0-7"), bzImage("6.1.0-7", gz(elfFile(18))))
	write(t, filepath.Join(parts, "lib/modules/6.1.0-7/kernel/a.ko"), modInfo("a", "b"))
	write(t, filepath.Join(parts, "lib/modules/6.1.0-7/kernel/b.ko"), modInfo("b", ""))
	tools(t, map[string]string{
		"apt-cache": aptCache,
		"apt-get":   `test "$2 $3" = "download linux-image-6.1.0-7"; echo > linux-image.deb` + "\n",
		"dpkg-deb":  `test "$1" = -x; mkdir "$3"; cp -r ` + parts + `/* "$3"` + "\n",
	})
	dir := filepath.Join(t.TempDir(), "kernels")
	for range 2 { // the second replaces the first
		var said []string
		k, err := Fetch(t.Context(), dir, func(s string) { said = append(said, s) })
		if err != nil {
			t.Fatal(err)
		}
		found, err := Find(Search{Dir: dir, Root: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Kernel{filepath.Join(dir, "6.1.0-7/vmlinuz"), "6.1.0-7", filepath.Join(dir, "6.1.0-7/modules")}, k); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(k, found); diff != "" {
			t.Error(diff)
		}
		if len(said) == 0 {
			t.Error("no progress")
		}
		m, err := OpenModules(k.ModuleDir)
		if err != nil {
			t.Fatal(err)
		}
		list, err := m.Resolve("a")
		if diff := cmp.Diff([]string{"b", "a"}, names(list)); diff != "" || err != nil {
			t.Error(diff, err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 2 {
			t.Errorf("folder has %v, %v", left, err)
		}
	}
}

func TestFetchFails(t *testing.T) {
	isExit := func(err error) bool {
		var exit *exec.ExitError
		return errors.As(err, &exit)
	}
	for _, tt := range []struct {
		name    string
		scripts map[string]string
		want    func(error) bool
	}{
		{"unknown package", map[string]string{"apt-cache": "exit 0\n", "apt-get": "", "dpkg-deb": ""},
			func(err error) bool { return errors.Is(err, ErrCantFetch) }},
		{"download fails", map[string]string{"apt-cache": aptCache, "apt-get": "exit 100\n", "dpkg-deb": ""}, isExit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tools(t, tt.scripts)
			dir := t.TempDir()
			_, err := Fetch(t.Context(), dir, func(string) {})
			if !tt.want(err) {
				t.Errorf("error %v", err)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("folder has %v", left)
			}
		})
	}
	t.Run("no apt", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := Fetch(t.Context(), t.TempDir(), func(string) {}); !errors.Is(err, ErrCantFetch) {
			t.Errorf("error %v", err)
		}
	})
}
