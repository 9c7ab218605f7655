package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/vm"
	"github.com/pexfs/pex/vm/guest"
)

// The test's program is also a supervisor, and the VMM with the guest that it runs.
const (
	superviseArg = "supervise"
	guestArg     = "guest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case superviseArg:
			s := Supervisor{Name: "fake", Open: openFake}
			s.Find = func(console io.Writer) (VMM, error) { return fakeVMM{console}, nil }
			if err := s.Run(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case guestArg:
			os.Exit(beGuest(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

// fakeImage is an image for those who don't look at it.
type fakeImage struct {
	file     *os.File
	unsealed bool
}

func openFake(_ context.Context, image json.RawMessage, _ func(string)) (Image, error) {
	if string(image) == `"unreadable"` {
		return nil, &EndedError{Ended{Error: "opening image", Hint: "try another"}}
	}
	f, err := os.Open(os.DevNull)
	return fakeImage{file: f}, err
}

func (fakeImage) Size() int64                                              { return vm.PmemAlign }
func (fakeImage) ReadAt(_ context.Context, p []byte, _ int64) (int, error) { return len(p), nil }
func (f fakeImage) ReadFd(off int64, _ int) (uintptr, int64, bool)         { return f.file.Fd(), off, true }
func (fakeImage) Meta() *erofs.Image                                       { return nil }
func (f fakeImage) File() *os.File                                         { return f.file }
func (fakeImage) Complete() bool                                           { return true }
func (f fakeImage) Proof() (*os.File, int64, string, error) {
	if f.unsealed {
		return nil, 0, "", errors.New("image is not sealed")
	}
	tree, err := os.Open(os.DevNull)
	return tree, vm.PmemAlign / 4096, "00ff", err
}
func (f fakeImage) Close() error { return f.file.Close() }

// fakeVMM runs the test's program as a machine. Its first kernel parameter says how the
// machine behaves.
type fakeVMM struct{ console io.Writer }

func (fakeVMM) Identity() string                              { return "fake" }
func (fakeVMM) Probe(context.Context) (vm.Caps, error)        { return vm.Caps{}, nil }
func (fakeVMM) Command(vm.Spec) ([]string, []*os.File, error) { return nil, nil, nil }

func (v fakeVMM) Start(ctx context.Context, s vm.Spec) (*vm.Machine, error) {
	port, theirs, err := socketPair("port")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	mode := s.Cmdline[0]
	if mode == "kvm-fails" {
		mode = "well"
		if s.Accel == vm.KVM {
			mode = "exits"
		}
	}
	p, err := vm.StartProcess(ctx, []string{"/proc/self/exe", guestArg, mode}, []*os.File{theirs}, v.console)
	if err != nil {
		return nil, err
	}
	return vm.NewMachine(p, port, func() vm.Cause {
		switch mode {
		case "off":
			return vm.PowerOff
		case "panics", "reboots":
			return vm.Reset
		}
		return vm.Crashed
	}), nil
}

// beGuest is a machine, from the VMM to PID 1. It says its process id as its build.
func beGuest(mode string) (status int) {
	fmt.Println("console of", mode)
	if mode == "exits" {
		fmt.Fprintln(os.Stderr, "boom")
		return 1
	}
	f := os.NewFile(3, "port")
	port, err := net.FileConn(f)
	if err != nil {
		return 100
	}
	srv := guest.NewServer(port)
	switch mode {
	case "mute":
		time.Sleep(time.Hour)
	case "garbage":
		io.WriteString(port, "this is no frame at all")
		time.Sleep(time.Hour)
	}
	if srv.Hello(strconv.Itoa(os.Getpid())) != nil {
		return 101
	}
	switch mode {
	case "disorder":
		srv.Hello("again")
		time.Sleep(time.Hour)
	case "fails":
		srv.Fail(errors.New("no root"))
		time.Sleep(time.Hour)
	}
	if srv.Ready(guest.Ready{Root: "pmem"}) != nil {
		return 102
	}
	srv.Serve(func(t *guest.Task) {
		switch mode {
		case "panics":
			fmt.Println("[    1.5] Kernel panic - not syncing: out of ideas\nconsole of panics")
			os.Exit(0)
		case "off", "reboots":
			os.Exit(0)
		case "dies":
			os.Exit(3)
		case "waits":
			time.Sleep(time.Hour)
		case "late-garbage":
			io.WriteString(port, "this is no frame at all")
			time.Sleep(time.Hour)
		}
		if t.Process.Stdin {
			t.CopyStdin(t.Stdout())
		}
		fmt.Fprint(t.Stderr(), t.Process.Args)
		t.Exit(guest.Exit{Code: 7})
	})
	return 0
}
