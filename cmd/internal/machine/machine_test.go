package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm"
	"github.com/pexfs/pex/vm/guest"
)

// start starts a machine that behaves as mode says.
func start(t *testing.T, mode, verdicts string, warn func(string)) *Attachment {
	t.Helper()
	a, err := Start([]string{superviseArg}, Config{
		Image: json.RawMessage(strconv.Quote(mode)), Root: Auto, VCPUs: 1, Memory: 512 << 20,
		Kernel: "/k", Initrds: map[Root]Initrd{Pmem: {Path: "/i"}}, Cmdline: []string{mode}, Verdicts: verdicts,
	}, warn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// waitGone waits until the process pid is no more.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(time.Minute/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			t.Fatalf("process %d is still there: %v", pid, err)
		}
		return
	}
}

func guestPID(t *testing.T, s *guest.Session) int {
	t.Helper()
	hello, _, err := s.WaitReady(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(hello.Build)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestRun(t *testing.T) {
	a := start(t, "well", "", nil)
	s := guest.NewSession(a.Frames())
	pid := guestPID(t, s)
	started, err := a.Started(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if started.VMM != "fake" || started.Root != Pmem || started.Accel != vm.KVM {
		t.Errorf("started %+v", started)
	}
	var stdout, stderr bytes.Buffer
	p, err := s.Start(t.Context(), guest.Process{Args: []string{"a", "b"}, Stdin: true}, guest.Streams{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		w := p.Stdin()
		w.Write(in)
		w.Close()
	}()
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Code != 7 {
		t.Errorf("Wait() = %+v, %v", exit, err)
	}
	if !bytes.Equal(stdout.Bytes(), in) || stderr.String() != "[a b]" {
		t.Errorf("%d bytes of output, want %d; standard error %q", stdout.Len(), len(in), stderr.String())
	}
	a.Close()
	waitGone(t, pid)
}

func TestEnds(t *testing.T) {
	tests := []struct {
		mode string
		want []string // parts of the error
	}{
		{"unreadable", []string{"opening image"}},
		{"exits", []string{"the machine monitor ended: exit status 1: boom"}},
		{"garbage", []string{"guest protocol violated"}},
		{"disorder", []string{"guest protocol violated", "HELLO instead of READY"}},
		{"off", []string{"switched off"}},
		{"reboots", []string{"the machine was rebooted from inside"}},
		{"panics", []string{"kernel panicked: out of ideas"}},
		{"dies", []string{"the machine monitor ended: exit status 3"}},
		{"late-garbage", []string{"guest protocol violated"}},
	}
	for _, tt := range tests {
		t.Run(tt.mode, func(t *testing.T) {
			a := start(t, tt.mode, "", nil)
			s := guest.NewSession(a.Frames())
			if p, err := s.Start(t.Context(), guest.Process{Args: []string{"x"}}, guest.Streams{}); err == nil {
				if _, err := p.Wait(t.Context()); err == nil {
					t.Error("the program ended well")
				}
			}
			err := a.Wait(t.Context())
			var ended *EndedError
			if !errors.As(err, &ended) {
				t.Fatalf("Wait() = %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Wait() = %v, want %q", err, want)
				}
			}
			if tt.mode == "unreadable" {
				if ended.Hint() != "try another" {
					t.Errorf("hint %q", ended.Hint())
				}
			} else if n := len(ended.Console); n == 0 || ended.Console[n-1] != "console of "+tt.mode {
				t.Errorf("console %q", ended.Console)
			}
		})
	}
}

// A machine whose root is a disk boots while its image is being opened, and is told later which one.
func TestLateImage(t *testing.T) {
	late := func(t *testing.T, root Root) *Attachment {
		t.Helper()
		a, err := Start([]string{superviseArg}, Config{
			Root: root, VCPUs: 1, Memory: 512 << 20, Kernel: "/k", Initrds: map[Root]Initrd{root: {Path: "/i"}}, Cmdline: []string{"well"},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		return a
	}
	t.Run("opened", func(t *testing.T) {
		a := late(t, Block)
		s := guest.NewSession(a.Frames())
		if err := a.Open(json.RawMessage(`"later"`)); err != nil {
			t.Fatal(err)
		}
		guestPID(t, s)
		started, err := a.Started(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i, at := range []Instant{started.Times.Launched, started.Times.Init, started.Times.Ready} {
			if before := []Instant{started.Times.Start, started.Times.Launched, started.Times.Init}[i]; before == 0 || at < before {
				t.Errorf("times %+v", started.Times)
			}
		}
		if started.Root != Block {
			t.Errorf("started %+v", started)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		a := late(t, Block)
		if err := a.Open(json.RawMessage(`"unreadable"`)); err != nil {
			t.Fatal(err)
		}
		var ended *EndedError
		if err := a.Wait(t.Context()); !errors.As(err, &ended) || ended.Error() != "opening image" || ended.Hint() != "try another" {
			t.Errorf("Wait() = %v", err)
		}
	})
	t.Run("never", func(t *testing.T) {
		a := late(t, Block)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := a.Started(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Started() = %v", err)
		}
		a.Close()
	})
	t.Run("another root", func(t *testing.T) {
		a := late(t, Auto)
		if err := a.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "image must be known at its start") {
			t.Errorf("Wait() = %v", err)
		}
	})
}

// A guest that says FAIL is a machine that works: its words are for the session.
func TestGuestFails(t *testing.T) {
	a := start(t, "fails", "", nil)
	s := guest.NewSession(a.Frames())
	if _, _, err := s.WaitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "no root") {
		t.Errorf("WaitReady() = %v", err)
	}
}

func TestFallback(t *testing.T) {
	verdicts := filepath.Join(t.TempDir(), "kvm")
	var said []string
	for range 2 {
		a := start(t, "kvm-fails", verdicts, func(why string) { said = append(said, why) })
		started, err := a.Started(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if started.Accel != vm.TCG {
			t.Errorf("accelerator %s", started.Accel)
		}
		a.Close()
	}
	if diff := cmp.Diff([]string{"KVM does not work here (the machine monitor ended: exit status 1: boom): the processor is emulated, which is slower"}, said); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
}

// However an attachment ends, and at whatever moment, nothing stays.
func TestDetach(t *testing.T) {
	t.Run("before the guest speaks", func(t *testing.T) {
		a := start(t, "mute", "", nil)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := a.Started(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Started() = %v", err)
		}
		pid := a.cmd.Process.Pid
		a.Close()
		waitGone(t, pid)
	})
	for name, end := range map[string]func(a *Attachment){
		"frames closed":     func(a *Attachment) { a.frames.Close() },
		"control closed":    func(a *Attachment) { a.control.CloseWrite() },
		"supervisor killed": func(a *Attachment) { a.cmd.Process.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, "waits", "", nil)
			s := guest.NewSession(a.Frames())
			pid := guestPID(t, s)
			if _, err := s.Start(t.Context(), guest.Process{Args: []string{"x"}}, guest.Streams{}); err != nil {
				t.Fatal(err)
			}
			end(a)
			waitGone(t, pid)
			if err := a.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "supervisor ended") {
				t.Errorf("Wait() = %v", err)
			}
		})
	}
}

// What is typed while the machine runs neither blocks its end nor is lost on it.
func TestBlockedInput(t *testing.T) {
	a := start(t, "waits", "", nil)
	s := guest.NewSession(a.Frames())
	p, err := s.Start(t.Context(), guest.Process{Args: []string{"x"}, Stdin: true}, guest.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error)
	go func() {
		_, err := io.Copy(p.Stdin(), bytes.NewReader(make([]byte, 4<<20)))
		wrote <- err
	}()
	a.Close()
	if err := <-wrote; err == nil {
		t.Error("4 MiB were taken by a program that reads nothing")
	}
}

func TestChooseRoot(t *testing.T) {
	const mem = 1 << 30
	tests := []struct {
		name     string
		want     Root
		complete bool
		size     int64
		root     Root // empty: an error
	}{
		{"complete", Auto, true, 400 << 20, Pmem},
		{"incomplete", Auto, false, 400 << 20, Block},
		{"as large as may be", Auto, true, 8 << 30, Pmem},
		{"too large", Auto, true, 8<<30 + vm.PmemAlign, Block},
		{"odd size", Auto, true, 4096, Block},
		{"asked for virtiofs", VirtioFS, true, 2 << 20, VirtioFS},
		{"asked for blk", Block, true, 2 << 20, Block},
		{"asked for pmem", Pmem, true, 64 << 30, Pmem},
		{"asked for pmem too early", Pmem, false, 2 << 20, ""},
		{"unknown", "disk", true, 2 << 20, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root, err := chooseRoot(tt.want, tt.complete, tt.size, mem)
			if root != tt.root || (err != nil) != (tt.root == "") {
				t.Errorf("chooseRoot() = %q, %v, want %q", root, err, tt.root)
			}
		})
	}
}

func TestParseRoot(t *testing.T) {
	for _, s := range []string{"auto", "virtiofs", "pmem"} {
		if r, err := ParseRoot(s); err != nil || string(r) != s {
			t.Errorf("ParseRoot(%q) = %q, %v", s, r, err)
		}
	}
	if _, err := ParseRoot("disk"); err == nil {
		t.Error("ParseRoot took disk")
	}
}

func TestWarner(t *testing.T) {
	var said []string
	log := slog.New(newWarner(func(e Event) { said = append(said, e.Warning) }))
	log.Info("no warning")
	log.Warn("device broken", "queue", 1, "error", io.EOF)
	log.With("err", "x\x1b[m").WithGroup("g").Error("reading", "nid", 5)
	log.Warn("device broken", "queue", 2, "error", io.EOF)
	if diff := cmp.Diff([]string{"device broken: EOF", "reading: x?[m"}, said); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
	for i := range 2 * maxWarnings {
		log.Warn(strconv.Itoa(i))
	}
	if len(said) != maxWarnings {
		t.Errorf("%d warnings, want %d", len(said), maxWarnings)
	}
}
