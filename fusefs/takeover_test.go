package fusefs

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
)

// serveEnv makes the test's program a server of the device that is its descriptor 3: "first" or "next", the mount's INIT, an image's
// name, and an offset at which reads never end.
const serveEnv = "PEX_TEST_SERVE"

func TestMain(m *testing.M) {
	if s := os.Getenv(serveEnv); s != "" {
		if err := serveChild(s); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// stuckData is an image, of which reads at an offset say so and never end.
type stuckData struct {
	*os.File
	at int64
}

func (d stuckData) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off == d.at {
		fmt.Println("stuck")
		select {}
	}
	return d.File.ReadAt(p, off)
}

func serveChild(task string) error {
	var order, init, name string
	var stuck int64
	if _, err := fmt.Sscanf(task, "%s %s %s %d", &order, &init, &name, &stuck); err != nil {
		return err
	}
	b, err := hex.DecodeString(init)
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	im, err := erofs.Open(f, st.Size())
	if err != nil {
		return err
	}
	d := &Device{os.NewFile(3, "/dev/fuse"), b}
	unix.CloseOnExec(3)
	s, err := serve(New(im, stuckData{f, stuck}, Options{}), d, order == "first", MountOptions{}.options(nil))
	if err != nil {
		return err
	}
	fmt.Println("serves")
	s.Wait()
	if !d.Ended() {
		return errStopped
	}
	return nil
}

// child is a server in a process of its own.
type child struct {
	*exec.Cmd
	lines *bufio.Reader
}

func (c *child) expect(t *testing.T, want string) {
	t.Helper()
	if line, err := c.lines.ReadString('\n'); line != want+"\n" {
		t.Fatalf("the server says %q, not %q: %v", line, want, err)
	}
}

func startChild(t *testing.T, d *Device, order, image string, stuck int64) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %x %s %d", serveEnv, order, d.Init, image, stuck))
	cmd.ExtraFiles = []*os.File{d.File}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd, bufio.NewReader(out)}
	c.expect(t, "serves")
	return c
}

func (c *child) kill(t *testing.T) {
	t.Helper()
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed
}

// TestTakeOver kills the server of a mount in the middle of a request, and uses the mount as if nothing had been.
func TestTakeOver(t *testing.T) {
	for _, c := range []struct {
		name    string
		resends bool
	}{
		{"requests come again", true},
		{"as on a kernel that brings no request again", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, td, _ := testFS(t)
			if _, err := td.f.WriteAt([]byte("it is here"), td.blocked); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			d, err := mountDevice(dir, MountOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close() // ends the mount, and whoever waits for it, whatever failed
			defer unix.Unmount(dir, unix.MNT_DETACH)
			if !d.resends() {
				t.Fatal("this kernel brings no request again")
			}
			if !c.resends {
				(*fuse.InitIn)(unsafe.Pointer(&d.Init[0])).Flags2 &^= fuse.CAP_HAS_RESEND >> 32
			}
			first := startChild(t, d, "first", td.f.Name(), td.blocked)

			names, err := os.Open(filepath.Join(dir, "many"))
			if err != nil {
				t.Fatal(err)
			}
			defer names.Close()
			some, err := names.Readdirnames(100)
			if err != nil {
				t.Fatal(err)
			}
			open, err := os.Open(filepath.Join(dir, "d/file"))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			mapped, err := unix.Mmap(int(open.Fd()), 0, 5, unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Munmap(mapped)

			// the first is read by the server that is killed, the second by none
			var outs []func() error
			read := func(name string) {
				cmd := exec.Command("cat", filepath.Join(dir, name))
				out, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Fatal(err)
				}
				outs = append(outs, func() error {
					b, err := io.ReadAll(out)
					if err := errors.Join(err, cmd.Wait()); err != nil || string(b) != "it is here" {
						return fmt.Errorf("%s is %q: %w", name, b, err)
					}
					return nil
				})
			}
			read("blocked")
			first.expect(t, "stuck")
			first.kill(t)
			read("blocked")
			next := startChild(t, d, "next", td.f.Name(), 0)
			for _, out := range outs {
				if err := out(); err != nil {
					t.Error(err)
				}
			}
			if string(mapped) != "hello" {
				t.Errorf("the mapping is %q", mapped)
			}
			rest, err := names.Readdirnames(0)
			if err != nil || len(some)+len(rest) != 20000 || rest[0] != fmt.Sprintf("%05d", len(some)) {
				t.Errorf("%d names, then %d: %v", len(some), len(rest), err)
			}

			// a server that finds the mount ended
			next.kill(t)
			unix.Munmap(mapped)
			names.Close()
			open.Close()
			if err := Unmount(dir); err != nil {
				t.Fatal(err)
			}
			if !d.Ended() {
				t.Error("the mount has not ended")
			}
			if last := startChild(t, d, "next", td.f.Name(), 0); last.Wait() != nil {
				t.Error("the last server", last.ProcessState)
			}
		})
	}
}

// TestLeft ends a mount with the last descriptor of it: nobody waits for ever.
func TestLeft(t *testing.T) {
	_, td, _ := testFS(t)
	dir := t.TempDir()
	d, err := mountDevice(dir, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	c := startChild(t, d, "first", td.f.Name(), td.blocked)
	cmd := exec.Command("cat", filepath.Join(dir, "blocked"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.expect(t, "stuck")
	c.kill(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if cmd.Wait() == nil {
		t.Error("read without a server")
	}
	if _, err := os.Stat(filepath.Join(dir, strconv.Itoa(1))); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("what nobody serves: %v", err)
	}
}
