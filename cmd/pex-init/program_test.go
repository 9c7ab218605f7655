//go:build linux

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm/guest"
)

func TestEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name     string
		env      []string
		terminal bool
		want     []string
	}{
		{"defaults", nil, false, []string{"PATH=" + defaultPath, "HOSTNAME=box", "HOME=/root"}},
		{"terminal", nil, true, []string{"PATH=" + defaultPath, "HOSTNAME=box", "TERM=xterm", "HOME=/root"}},
		{"given", []string{"A=1", "PATH=/x", "HOME=", "TERM=vt100"}, true,
			[]string{"PATH=/x", "HOSTNAME=box", "TERM=vt100", "HOME=", "A=1"}},
		{"the last counts", []string{"A=1", "B=2", "A=3=4"}, false,
			[]string{"PATH=" + defaultPath, "HOSTNAME=box", "HOME=/root", "A=3=4", "B=2"}},
		{"malformed", []string{"A", "", "=x", "B="}, false,
			[]string{"PATH=" + defaultPath, "HOSTNAME=box", "HOME=/root", "B="}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, environment(tt.env, "box", "/root", tt.terminal)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCandidates(t *testing.T) {
	for _, tt := range []struct {
		name, path string
		want       []string
	}{
		{"sh", "/bin:/usr/bin/", []string{"/bin/sh", "/usr/bin/sh"}},
		{"sh", ":.:rel:/bin", []string{"/bin/sh"}},
		{"sh", "", nil},
		{"/sh", "/bin", []string{"/sh"}},
		{"./sh", "/bin", []string{"/srv/./sh"}},
		{"a/../sh", "/bin", []string{"/srv/a/../sh"}},
		{"", "/bin", nil},
	} {
		if diff := cmp.Diff(tt.want, candidates(tt.name, "/srv", []string{"X=1", "PATH=" + tt.path})); diff != "" {
			t.Errorf("%q in %q: %s", tt.name, tt.path, diff)
		}
	}
}

func TestTryAll(t *testing.T) {
	dir := t.TempDir()
	file, folder, none := filepath.Join(dir, "file"), filepath.Join(dir, "folder"), filepath.Join(dir, "none")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Mkdir(folder, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		arg   string
		paths []string
		errs  []error // one for each path that is tried
		code  int
		msg   string
	}{
		{"first", "x", []string{"/a", "/b"}, []error{nil}, 0, ""},
		{"second", "x", []string{none, "/b"}, []error{unix.ENOENT, nil}, 0, ""},
		{"denied, then found", "x", []string{file, "/b"}, []error{unix.EACCES, nil}, 0, ""},
		{"nowhere", "x", []string{none, none}, []error{unix.ENOENT, unix.ENOTDIR}, 127, `exec: "x": executable file not found in $PATH`},
		{"no PATH", "x", nil, nil, 127, `exec: "x": executable file not found in $PATH`},
		{"empty", "", nil, nil, 127, `exec: "": executable file not found in $PATH`},
		{"path", none, []string{none}, []error{unix.ENOENT}, 127, `exec: "` + none + `": stat ` + none + `: no such file or directory`},
		{"denied", "x", []string{file, none}, []error{unix.EACCES, unix.ENOENT}, 126, `exec: "x": permission denied`},
		{"folder", folder, []string{folder}, []error{unix.EACCES}, 126, `exec: "` + folder + `": is a directory`},
		{"folder in PATH", "x", []string{folder}, []error{unix.EACCES}, 127, `exec: "x": executable file not found in $PATH`},
		{"format", "x", []string{file, "/b"}, []error{unix.ENOEXEC}, 126, `exec: "x": exec format error`},
		{"interpreter", "x", []string{file}, []error{unix.ENOENT}, 127,
			`exec: "x": no such file or directory: the interpreter of ` + file + ` is missing`},
		{"too long", "x", []string{file, "/b"}, []error{&fs.PathError{Op: "fork", Path: "x", Err: unix.E2BIG}}, 126,
			`exec: "x": fork x: argument list too long`},
		{"refused", "x", []string{file, "/b"}, []error{refuse(guest.Refused, "no folder")}, 125, "no folder"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tried []string
			err := tryAll(tt.arg, tt.paths, func(p string) error {
				tried = append(tried, p)
				return tt.errs[len(tried)-1]
			})
			if len(tried) != len(tt.errs) {
				t.Errorf("tried %q", tried)
			}
			if tt.code == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var r *refusal
			if !errors.As(err, &r) {
				t.Fatalf("error %v", err)
			}
			if e := r.exit(); e.Code != tt.code || e.Message != tt.msg {
				t.Errorf("%d %q, want %d %q", e.Code, e.Message, tt.code, tt.msg)
			}
		})
	}
}
