//go:build linux

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm/guest"
)

func TestCopyOutput(t *testing.T) {
	t.Run("to the end", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("0123456789"), 50_000)
		go func() {
			w.Write(want)
			w.Close()
		}()
		var got bytes.Buffer
		if err := copyOutput(&got, r); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes, want %d; %v", got.Len(), len(want), err)
		}
	})
	t.Run("held open by somebody else", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		want := bytes.Repeat([]byte("x"), 60_000)
		w.Write(want)
		r.SetReadDeadline(time.Unix(1, 0)) // all of it must arrive even so
		var got bytes.Buffer
		if err := copyOutput(&got, r); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes, want %d; %v", got.Len(), len(want), err)
		}
	})
	t.Run("never idle", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		})
		r.SetReadDeadline(time.Unix(1, 0))
		var got bytes.Buffer
		if err := copyOutput(&got, r); err != nil || got.Len() > 1<<20 {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
		r.Close()
		wg.Wait()
		w.Close()
	})
	t.Run("host is gone", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte("x"))
		pr, pw := io.Pipe()
		pr.Close()
		if err := copyOutput(pw, r); !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
	})
}

func TestReaper(t *testing.T) {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGCHLD)
	defer func() {
		signal.Stop(sig)
		close(sig)
	}()
	r := newReaper(sig)
	sh := func(script string) func() (int, error) {
		return func() (int, error) {
			return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		}
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, done, err := r.start(sh("exit " + string(rune('0'+i%10))))
			if err != nil {
				t.Error(err)
				return
			}
			if e := <-done; e.status.ExitStatus() != i%10 {
				t.Errorf("child %d: status %#x", i, e.status)
			}
		})
	}
	wg.Wait()
	pid, done, err := r.start(sh("exec sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	c := &control{pid: pid}
	c.Signal(int(unix.SIGKILL))
	e := exitOf(<-done, time.Second, true)
	if e.Code != 137 || e.Signal != 9 || !e.OOM || e.Usage.Elapsed != time.Second {
		t.Errorf("%+v", e)
	}
	c.end()
	c.Signal(int(unix.SIGKILL))
	c.Resize(guest.Size{})
	if _, _, err := r.start(func() (int, error) { return 0, unix.EAGAIN }); err != unix.EAGAIN {
		t.Error(err)
	}
	if len(r.waiting) != 0 || len(r.early) != 0 {
		t.Errorf("left: %v, %v", r.waiting, r.early)
	}
}

func TestTerminal(t *testing.T) {
	master, slave, err := openTerminal(guest.Size{Rows: 7, Cols: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	size := func() unix.Winsize {
		ws, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			t.Fatal(err)
		}
		return *ws
	}
	if s := size(); s.Row != 7 || s.Col != 9 {
		t.Errorf("size %+v", s)
	}
	(&control{pid: -1, terminal: master}).Resize(guest.Size{Rows: 3, Cols: 4})
	if s := size(); s.Row != 3 || s.Col != 4 {
		t.Errorf("size %+v", s)
	}
	if _, err := slave.WriteString("out\n"); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var got bytes.Buffer
	if err := copyOutput(&got, master); err != nil || got.String() != "out\r\n" {
		t.Errorf("%q, %v", got.String(), err)
	}
}
