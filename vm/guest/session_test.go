package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pair is a host's and a guest's end joined, the guest running fn for every program.
type pair struct {
	*Session
	served chan error
}

func newPair(t *testing.T, host io.ReadWriteCloser, guest io.ReadWriteCloser, fn func(*Task)) pair {
	t.Helper()
	p := pair{NewSession(host), make(chan error, 1)}
	srv := NewServer(guest)
	go func() {
		if err := errors.Join(srv.Hello("build"), srv.Ready(Ready{Root: "pmem", DAX: true})); err != nil {
			t.Error(err)
		}
		p.served <- srv.Serve(fn)
		guest.Close()
	}()
	t.Cleanup(func() { p.Close() })
	return p
}

func netPair(t *testing.T, fn func(*Task)) pair {
	a, b := net.Pipe()
	return newPair(t, a, b, fn)
}

// slow is a stream that gives and takes a few bytes at a time.
type slow struct {
	net.Conn
	n int
}

func (s slow) Read(p []byte) (int, error) { return s.Conn.Read(p[:min(s.n, len(p))]) }

func (s slow) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := s.Conn.Write(p[done:min(done+s.n, len(p))])
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

func slowPair(t *testing.T, fn func(*Task)) pair {
	a, b := net.Pipe()
	return newPair(t, slow{a, 61}, slow{b, 47}, fn)
}

func mustStart(t *testing.T, s pair, p Process, out Streams) *Program {
	t.Helper()
	g, err := s.Start(t.Context(), p, out)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func mustWait(t *testing.T, g *Program) Exit {
	t.Helper()
	e, err := g.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestConformance(t *testing.T) {
	for name, mk := range map[string]func(*testing.T, func(*Task)) pair{"pipe": netPair, "slow": slowPair} {
		t.Run(name, func(t *testing.T) {
			t.Run("ready", func(t *testing.T) {
				s := mk(t, func(*Task) {})
				h, r, err := s.WaitReady(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(Hello{Version, "build"}, h); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(Ready{Root: "pmem", DAX: true}, r); diff != "" {
					t.Error(diff)
				}
			})
			t.Run("process arrives whole", func(t *testing.T) {
				want := Process{
					Args: []string{"sh", "-c", "", "\xff\xfe"}, Env: []string{"A=\n\x80", "B="}, Dir: "/x y", User: "a:b",
					Stdin: true, Terminal: &Size{24, 80},
				}
				got := make(chan Process, 1)
				s := mk(t, func(k *Task) { got <- k.Process; k.Exit(Exit{}) })
				mustWait(t, mustStart(t, s, want, Streams{}))
				if diff := cmp.Diff(want, <-got); diff != "" {
					t.Error(diff)
				}
			})
			t.Run("exit", func(t *testing.T) {
				want := Exit{Code: 137, Signal: 9, OOM: true, Usage: Usage{Elapsed: 5, User: 1, System: 2, MaxRSS: 3, MajorFaults: 4, MinorFaults: 6}}
				s := mk(t, func(k *Task) { k.Exit(want) })
				if diff := cmp.Diff(want, mustWait(t, mustStart(t, s, Process{Args: []string{"x"}}, Streams{}))); diff != "" {
					t.Error(diff)
				}
			})
			t.Run("echo", func(t *testing.T) {
				s := mk(t, func(k *Task) {
					if err := k.CopyStdin(k.Stdout()); err != nil {
						t.Error(err)
					}
					k.Exit(Exit{})
				})
				var out bytes.Buffer
				g := mustStart(t, s, Process{Args: []string{"cat"}, Stdin: true}, Streams{Stdout: &out})
				in := bytes.Repeat([]byte("0123456789"), 100_000)
				if n, err := g.Stdin().Write(in); n != len(in) || err != nil {
					t.Fatal(n, err)
				}
				if err := g.Stdin().Close(); err != nil {
					t.Fatal(err)
				}
				mustWait(t, g)
				if !bytes.Equal(in, out.Bytes()) {
					t.Errorf("got %d bytes, want %d, or other ones", out.Len(), len(in))
				}
			})
			t.Run("a megabyte on both outputs at once", func(t *testing.T) {
				want := [2][]byte{bytes.Repeat([]byte("out\n"), 1<<18), bytes.Repeat([]byte("err!\n"), 1<<18)}
				s := mk(t, func(k *Task) {
					var wg sync.WaitGroup
					wg.Go(func() { k.Stdout().Write(want[0]) })
					wg.Go(func() { k.Stderr().Write(want[1]) })
					wg.Wait()
					k.Exit(Exit{Code: 3})
				})
				var got [2]bytes.Buffer
				g := mustStart(t, s, Process{Args: []string{"x"}}, Streams{Stdout: &got[0], Stderr: &got[1]})
				if e := mustWait(t, g); e.Code != 3 {
					t.Errorf("exit %+v", e)
				}
				for i := range got {
					if sha256.Sum256(got[i].Bytes()) != sha256.Sum256(want[i]) {
						t.Errorf("stream %d: got %d bytes, want %d", i, got[i].Len(), len(want[i]))
					}
				}
			})
			t.Run("several programs", func(t *testing.T) {
				s := mk(t, func(k *Task) {
					fmt.Fprint(k.Stdout(), k.Process.Args[0])
					k.Exit(Exit{Code: len(k.Process.Args)})
				})
				var wg sync.WaitGroup
				for i := range 20 {
					wg.Go(func() {
						var out strings.Builder
						name := fmt.Sprint("p", i)
						g, err := s.Start(t.Context(), Process{Args: append([]string{name}, make([]string, i)...)}, Streams{Stdout: &out})
						if err != nil {
							t.Error(err)
							return
						}
						if e, err := g.Wait(t.Context()); err != nil || e.Code != i+1 || out.String() != name {
							t.Error(e, err, out.String())
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// gate is a writer that blocks until it is opened.
type gate struct {
	open chan struct{}
	n    atomic.Int64
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.n.Add(int64(len(p)))
	return len(p), nil
}

// controls records what a program was told.
type controls chan string

func (c controls) Signal(n int)  { c <- fmt.Sprint("signal ", n) }
func (c controls) Resize(s Size) { c <- fmt.Sprint("resize ", s.Rows, "x", s.Cols) }

func TestControlPassesSlowConsumers(t *testing.T) {
	const total = 3 * Window
	told := make(controls, 10)
	var sent atomic.Int64
	stuck := make(chan struct{})
	s := netPair(t, func(k *Task) {
		k.Control(told)
		for range total / 1024 {
			if sent.Load() == Window {
				close(stuck)
			}
			n, _ := k.Stdout().Write(make([]byte, 1024))
			sent.Add(int64(n))
		}
		k.Exit(Exit{Code: 1})
	})
	out := &gate{open: make(chan struct{})}
	g := mustStart(t, s, Process{Args: []string{"yes"}, Stdin: true}, Streams{Stdout: out})
	<-stuck
	// The guest has used up its credit. Now fill the other way, too: nothing consumes the program's input.
	if _, err := g.Stdin().Write(make([]byte, Window)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.Signal(syscall.SIGTERM), g.Resize(Size{3, 4})); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"signal 15", "resize 3x4"} {
		if got := <-told; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if n := sent.Load(); n != Window {
		t.Errorf("guest sent %d bytes with a blocked consumer, want %d", n, Window)
	}
	close(out.open)
	if e := mustWait(t, g); e.Code != 1 {
		t.Errorf("exit %+v", e)
	}
	if n := out.n.Load(); n != total {
		t.Errorf("%d bytes of output, want %d", n, total)
	}
}

func TestControlBeforeTheProgramRuns(t *testing.T) {
	told := make(controls, 10)
	run := make(chan struct{})
	s := netPair(t, func(k *Task) {
		<-run
		k.Control(told)
		k.Exit(Exit{})
	})
	g := mustStart(t, s, Process{Args: []string{"x"}}, Streams{})
	if err := errors.Join(g.Signal(1), g.Resize(Size{5, 6}), g.Signal(2)); err != nil {
		t.Fatal(err)
	}
	close(run)
	mustWait(t, g)
	close(told)
	var got []string
	for c := range told {
		got = append(got, c)
	}
	// The first signal may be the only one that was there in time, but their order is kept.
	want := []string{"signal 1", "resize 5x6", "signal 2"}
	if diff := cmp.Diff(want[:len(got)], got); diff != "" {
		t.Error(diff)
	}
	if err := g.Signal(1); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestStdin(t *testing.T) {
	t.Run("program fails to read", func(t *testing.T) {
		end := make(chan struct{})
		s := netPair(t, func(k *Task) {
			r, w := io.Pipe()
			r.Close()
			if err := k.CopyStdin(w); err != nil {
				t.Error(err)
			}
			<-end
			k.Exit(Exit{})
		})
		g := mustStart(t, s, Process{Args: []string{"x"}, Stdin: true}, Streams{})
		var err error
		for err == nil {
			_, err = g.Stdin().Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.EPIPE) {
			t.Errorf("writing: %v", err)
		}
		close(end)
		mustWait(t, g)
	})
	t.Run("program ends", func(t *testing.T) {
		s := netPair(t, func(k *Task) { k.Exit(Exit{}) })
		g := mustStart(t, s, Process{Args: []string{"x"}, Stdin: true}, Streams{})
		var err error
		for err == nil {
			_, err = g.Stdin().Write(make([]byte, 100))
		}
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("writing: %v", err)
		}
		mustWait(t, g)
	})
	t.Run("none", func(t *testing.T) {
		s := netPair(t, func(k *Task) { k.CopyStdin(io.Discard); k.Exit(Exit{}) })
		g := mustStart(t, s, Process{Args: []string{"x"}}, Streams{})
		if _, err := g.Stdin().Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("writing: %v", err)
		}
		mustWait(t, g)
	})
}

func TestOutputWriterFails(t *testing.T) {
	s := netPair(t, func(k *Task) {
		k.Stdout().Write(make([]byte, 4*Window))
		k.Exit(Exit{Code: 9})
	})
	r, w := io.Pipe()
	r.Close()
	e, err := mustStart(t, s, Process{Args: []string{"x"}}, Streams{Stdout: w}).Wait(t.Context())
	if !errors.Is(err, ErrOutput) || !errors.Is(err, io.ErrClosedPipe) || e.Code != 9 {
		t.Errorf("exit %+v, %v", e, err)
	}
}

func TestLongProcess(t *testing.T) {
	got := make(chan Process, 1)
	s := netPair(t, func(k *Task) { got <- k.Process; k.Exit(Exit{}) })
	want := Process{Args: []string{"x"}}
	for i := range 10_000 {
		want.Env = append(want.Env, fmt.Sprintf("V%d=%s", i, strings.Repeat("v", 100)))
	}
	mustWait(t, mustStart(t, s, want, Streams{}))
	if diff := cmp.Diff(want, <-got); diff != "" {
		t.Error(diff)
	}
	for name, p := range map[string]Process{
		"none": {}, "NUL": {Args: []string{"a\x00"}}, "too long": {Args: []string{strings.Repeat("x", MaxStart)}},
	} {
		if _, err := s.Start(t.Context(), p, Streams{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestLongProcessLengths has encodings around multiples of MaxPayload.
func TestLongProcessLengths(t *testing.T) {
	got := make(chan int, 1)
	s := netPair(t, func(k *Task) { got <- len(k.Process.Args[0]); k.Exit(Exit{}) })
	for n := MaxPayload/4*3 - 60; n < MaxPayload/4*3; n++ {
		mustWait(t, mustStart(t, s, Process{Args: []string{strings.Repeat("x", n)}}, Streams{}))
		if g := <-got; g != n {
			t.Fatalf("got %d bytes, want %d", g, n)
		}
	}
}

func TestEnds(t *testing.T) {
	t.Run("power off", func(t *testing.T) {
		s := netPair(t, func(*Task) {})
		if _, _, err := s.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.PowerOff(); err != nil {
			t.Fatal(err)
		}
		if err := <-s.served; err != nil {
			t.Error(err)
		}
		<-s.Done()
		if err := s.Err(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	t.Run("host closes", func(t *testing.T) {
		wrote := make(chan error, 1)
		s := netPair(t, func(k *Task) {
			_, err := k.Stdout().Write(make([]byte, 2*Window))
			wrote <- err
		})
		out := &gate{open: make(chan struct{})}
		g := mustStart(t, s, Process{Args: []string{"x"}}, Streams{Stdout: out})
		close(out.open)
		s.Close()
		if _, err := g.Wait(t.Context()); !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		if err := <-s.served; err == nil {
			t.Error("served without an error")
		}
		<-wrote
		if _, err := s.Start(t.Context(), Process{Args: []string{"x"}}, Streams{}); err == nil {
			t.Error("started on a closed session")
		}
	})
	t.Run("guest ends, its last words arrive", func(t *testing.T) {
		a, b := net.Pipe()
		s := newPair(t, a, b, func(k *Task) { fmt.Fprint(k.Stderr(), "oh"); b.Close() })
		var out strings.Builder
		g := mustStart(t, s, Process{Args: []string{"x"}}, Streams{Stderr: &out})
		if _, err := g.Wait(t.Context()); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if out.String() != "oh" {
			t.Errorf("output %q", out.String())
		}
	})
	t.Run("guest fails", func(t *testing.T) {
		a, b := net.Pipe()
		s := NewSession(a)
		defer s.Close()
		go func() {
			srv := NewServer(b)
			srv.Hello("b")
			srv.Fail(errors.New("no \x1b[31mroot"))
		}()
		h, _, err := s.WaitReady(t.Context())
		if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "guest failed: no ?[31mroot") || h.Build != "b" {
			t.Error(h, err)
		}
	})
	t.Run("context", func(t *testing.T) {
		a, _ := net.Pipe()
		s := NewSession(a)
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Start(ctx, Process{Args: []string{"x"}}, Streams{}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
