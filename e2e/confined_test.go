package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// daemonStatus is what the lab's daemon says of itself, and the kernel of it.
func (l *lab) daemonStatus() (st struct {
	PID      int
	Confined *struct {
		NoNewPrivileges bool
		Landlock        int
		Writes          []string
		Capabilities    []string
	}
}, kernel map[string]string) {
	l.t.Helper()
	decode(l.t, l.do("pexfs", "status", "--json"), &st)
	return st, kernelStatus(l.t, st.PID)
}

// kernelStatus is what the kernel says of a process: proc_pid_status(5).
func kernelStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	kernel := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		kernel[k] = v
	}
	return kernel
}

// TestConfined looks at what the kernel says of daemons that are at work.
func TestConfined(t *testing.T) {
	const readAll = "0000000000000004" // CAP_DAC_READ_SEARCH
	l := newLab(t)
	// somebody's folder that nobody else may enter
	home := filepath.Join(t.TempDir(), "home")
	image := filepath.Join(home, "image")
	if err := writeImage(image, formStargz, packing{}, tars(fixture())); err != nil {
		t.Fatal(err)
	}
	if err := filepath.Walk(home, func(name string, _ os.FileInfo, err error) error {
		if err == nil {
			err = os.Chown(name, 12345, 12345)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := l.mount("oci:" + image)
	if b, err := os.ReadFile(filepath.Join(dir, "etc/motd")); err != nil || string(b) != "hello\n" {
		t.Errorf("%q, %v", b, err)
	}
	l.seal(dir)
	st, kernel := l.daemonStatus()
	for k, want := range map[string]string{"NoNewPrivs": "1", "CapEff": readAll, "CapPrm": readAll, "CapInh": "0000000000000000", "CapBnd": "0000000000000000"} {
		if kernel[k] != want {
			t.Errorf("%s is %s, want %s", k, kernel[k], want)
		}
	}
	if c := st.Confined; c == nil || !c.NoNewPrivileges || c.Landlock > 0 && (len(c.Writes) != 1 || c.Writes[0] != l.cache) {
		t.Errorf("%+v", c)
	}
}

// TestViewConfined looks at what the kernel says of views, which need others to start a daemon and to unmount: the mount is read on after both
// view and daemon were killed, and the next daemon isn't confined as a view is.
func TestViewConfined(t *testing.T) {
	tree := filepath.Join(buildDir(t), "image/tree")
	for _, via := range []string{"fuse", "erofs"} {
		t.Run(via, func(t *testing.T) {
			l := newLab(t)
			bounded(t, l.cache)
			l.serve()
			dir := l.mount("--via", via, "--no-fill", l.addr+"/demo-estargz")
			for i, name := range []string{"bin/bash", "usr/bin/perl"} {
				if got, want := shaFile(t, filepath.Join(dir, name)), shaFile(t, filepath.Join(tree, name)); got != want {
					t.Errorf("%s is %s, want %s", name, got, want)
				}
				kernel := kernelStatus(t, viewOf(t, l.cache))
				for k, want := range map[string]string{"NoNewPrivs": "1", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000"} {
					if kernel[k] != want {
						t.Errorf("%s of view %d is %s, want %s", k, i, kernel[k], want)
					}
				}
				if st, kernel := l.daemonStatus(); kernel["CapEff"] == "0000000000000000" || st.Confined == nil || len(st.Confined.Writes) > 1 {
					t.Errorf("daemon %d: capabilities %s, %+v", i, kernel["CapEff"], st.Confined)
				}
				if i == 0 {
					l.killDaemon()
					kill(t, viewOf(t, l.cache))
				}
			}
			if err := syscall.Kill(viewOf(t, l.cache), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			gone(t, l.cache)
			if fstype, _ := mountedAs(t, dir); fstype != "" {
				t.Errorf("%s is still mounted as %s", dir, fstype)
			}
		})
	}
}

// TestViewRefuses has a view that is confined, with its mount made, refuse an image: nothing is left of the mount.
func TestViewRefuses(t *testing.T) {
	l := newLab(t)
	file, dir := filepath.Join(t.TempDir(), "file"), t.TempDir()
	if err := os.WriteFile(file, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	l.fails(1, []string{"file"}, "pexfs", "image", "mount", file, dir)
	gone(t, l.cache)
	if fstype, _ := mountedAs(t, dir); fstype != "" {
		t.Errorf("%s is still mounted as %s", dir, fstype)
	}
}

// TestBecoming has root's daemon become another user.
func TestBecoming(t *testing.T) {
	for name, args := range map[string][]string{"by name": {"--user", "nobody"}, "whose the folder is": nil} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			top, err := os.MkdirTemp("/tmp", "pex-becoming") // where all may enter
			if err == nil {
				t.Cleanup(func() { os.RemoveAll(top) })
				err = os.Chmod(top, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			l.cache = filepath.Join(top, "cache")
			if args == nil {
				if err := os.Mkdir(l.cache, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(l.cache, 65534, 65534); err != nil {
					t.Fatal(err)
				}
			}
			if args == nil { // what a command starts in a folder where nothing is leaves nothing of root's
				l.do("pexfs", "daemon", "restart")
				l.do("pexfs", "daemon", "stop")
				if out, err := exec.Command("find", l.cache, "!", "-user", "65534").CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("not the owner's: %s, %v", out, err)
				}
			}
			f := l.foreground(args...)
			f.logged("daemon serves")
			mine, theirs := filepath.Join(t.TempDir(), "image"), filepath.Join(top, "image")
			for _, dir := range []string{mine, theirs} {
				if err := writeImage(dir, formStargz, packing{}, tars(fixture())); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command("chmod", "-R", "a+rX", theirs).CombinedOutput(); err != nil {
				t.Fatalf("%s", out)
			}
			l.fails(1, []string{mine, "permission denied"}, "pexfs", "mount", "oci:"+mine, t.TempDir())
			dir := l.mount("oci:" + theirs)
			if b, err := os.ReadFile(filepath.Join(dir, "etc/motd")); err != nil || string(b) != "hello\n" {
				t.Errorf("%q, %v", b, err)
			}
			l.seal(dir)
			if _, kernel := l.daemonStatus(); kernel["Uid"] != "65534\t65534\t65534\t65534" || kernel["CapEff"] != "0000000000000000" {
				t.Errorf("user %s, capabilities %s", kernel["Uid"], kernel["CapEff"])
			}
			// its folder is the user's now, and the next one becomes that user, too
			l.do("pexfs", "daemon", "restart")
			if st, kernel := l.daemonStatus(); st.PID == f.cmd.Process.Pid || kernel["Uid"] != "65534\t65534\t65534\t65534" {
				t.Errorf("process %d becomes process %d of user %s", f.cmd.Process.Pid, st.PID, kernel["Uid"])
			}
		})
	}
}

// TestKeyring has a program know the credentials, and a daemon that can't run any ask for them: nobody hands them over after a restart.
func TestKeyring(t *testing.T) {
	l := newLab(t)
	l.serve()
	home := t.TempDir()
	asked := filepath.Join(home, "asked")
	if err := os.Mkdir(filepath.Join(home, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	helper := "#!/bin/sh\nread -r host\necho \"$1 $host\" >>" + asked + "\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"user\",\"Secret\":\"word\"}'\n"
	config, err := json.Marshal(map[string]any{"credHelpers": map[string]string{l.addr: "test"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{"bin/docker-credential-test": helper, "config.json": string(config)} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(b), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", filepath.Join(home, "bin")+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_CONFIG", home)
	dir := l.mount("--no-fill", "--no-profile", l.addr+"/demo-estargz")
	if _, err := os.ReadFile(dir + "/usr/bin/bash"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(asked); err != nil {
		t.Fatal(err)
	}
	l.do("pexfs", "daemon", "stop")
	if _, err := os.ReadFile(dir + "/usr/bin/perl"); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(asked); err != nil || !strings.Contains(string(b), "get "+l.addr) {
		t.Errorf("the program was asked %q: %v", b, err)
	}
}

// TestOthers has another user look at mounts: only at those to which others were let in.
func TestOthers(t *testing.T) {
	l := newLab(t)
	image := fixtureImage(t, formStargz)
	for name, c := range map[string]struct {
		args []string
		want error
	}{
		"by default": {nil, syscall.EACCES}, "when asked": {[]string{"--allow-other", "--via", "fuse"}, nil}, "by the kernel": {[]string{"--allow-other", "--via", "erofs"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("/tmp", "pex-others") // where all may enter
			if err == nil {
				t.Cleanup(func() { os.Remove(dir) })
				err = os.Chmod(dir, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			l.do("pexfs", append(append([]string{"mount"}, c.args...), image, dir)...)
			defer l.umount(dir)
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread, another user's from here on, ends
				if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
					done <- errno
					return
				}
				_, err := os.ReadDir(dir)
				done <- err
			}()
			if err := <-done; !errors.Is(err, c.want) {
				t.Errorf("another user gets %v", err)
			}
		})
	}
}
