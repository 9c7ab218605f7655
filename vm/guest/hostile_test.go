package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
)

// wire is frames as they travel.
func wire(frames ...Frame) []byte {
	var b bytes.Buffer
	c := NewConn(rw{nil, &b})
	for _, f := range frames {
		if err := c.WriteFrame(f); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func asJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

var (
	helloFrame = Frame{TypeHello, 0, []byte(`{"protocol":1,"build":"b"}`)}
	readyFrame = Frame{TypeReady, 0, []byte(`{"root":"pmem"}`)}
	exitFrame  = Frame{TypeExit, 1, []byte(`{"code":3}`)}
)

// TestHostileGuest has guests that break the protocol while program 1 runs.
func TestHostileGuest(t *testing.T) {
	full := Frame{TypeStdout, 1, make([]byte, MaxPayload)}
	for _, tt := range []struct {
		name   string
		before []Frame // instead of HELLO and READY
		frames []Frame
	}{
		{"hello twice", nil, []Frame{helloFrame}},
		{"ready twice", nil, []Frame{readyFrame}},
		{"fail after ready", nil, []Frame{{TypeFail, 0, nil}}},
		{"ready first", []Frame{readyFrame}, nil},
		{"other protocol", []Frame{{TypeHello, 0, []byte(`{"protocol":2}`)}}, nil},
		{"hello of a process", []Frame{{TypeHello, 1, helloFrame.Payload}}, nil},
		{"program before ready", []Frame{helloFrame, exitFrame}, nil},
		{"a host's frame", nil, []Frame{{TypeStdin, 1, []byte("x")}}},
		{"unknown process", nil, []Frame{{TypeStdout, 2, []byte("x")}}},
		{"output of the machine", nil, []Frame{{TypeStdout, 0, []byte("x")}}},
		{"more than credit", nil, []Frame{full, full, full, full, {TypeStdout, 1, []byte("x")}}},
		{"credit for nothing", nil, []Frame{{TypeWindow, 1, encodeWindow(stdin, 1)}}},
		{"credit for output", nil, []Frame{{TypeWindow, 1, encodeWindow(stdout, 1)}}},
		{"malformed exit", nil, []Frame{{TypeExit, 1, []byte(`{"code":1000}`)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := net.Pipe()
			s := NewSession(a)
			defer s.Close()
			go io.Copy(io.Discard, b)
			before := tt.before
			if before == nil {
				before = []Frame{helloFrame, readyFrame}
			}
			b.Write(wire(before...))
			blocked := &gate{open: make(chan struct{})}
			g, err := s.Start(t.Context(), Process{Args: []string{"x"}, Stdin: true}, Streams{Stdout: blocked})
			if tt.before == nil {
				if err != nil {
					t.Fatal(err)
				}
				b.Write(wire(tt.frames...))
			}
			<-s.Done()
			close(blocked.open)
			if tt.before == nil {
				_, err = g.Wait(t.Context())
			}
			if !errors.Is(err, ErrProtocol) || !errors.Is(s.Err(), ErrProtocol) {
				t.Errorf("error %v, session's %v", err, s.Err())
			}
		})
	}
}

// TestLateFrames has what may cross EXIT in either direction.
func TestLateFrames(t *testing.T) {
	a, b := net.Pipe()
	s := NewSession(a)
	defer s.Close()
	go io.Copy(io.Discard, b)
	b.Write(wire(helloFrame, readyFrame))
	g, err := s.Start(t.Context(), Process{Args: []string{"x"}, Stdin: true}, Streams{})
	if err != nil {
		t.Fatal(err)
	}
	b.Write(wire(exitFrame, Frame{TypeWindow, 1, encodeWindow(stdin, 1)}, Frame{TypeStdinEOF, 1, nil}))
	if e, err := g.Wait(t.Context()); e.Code != 3 || err != nil {
		t.Error(e, err)
	}
	b.Write(wire(Frame{TypeStdout, 1, []byte("x")}))
	<-s.Done()
	if err := s.Err(); !errors.Is(err, ErrProtocol) {
		t.Errorf("output after EXIT: %v", err)
	}

	var out bytes.Buffer
	srv := NewServer(rw{bytes.NewReader(wire(
		Frame{TypeSignal, 5, []byte{15}}, Frame{TypeStdin, 5, []byte("x")}, Frame{TypeWindow, 5, encodeWindow(stdout, 1)},
		Frame{TypePowerOff, 0, nil},
	)), &out})
	if err := srv.Serve(nil); err != nil {
		t.Errorf("guest: %v", err)
	}
}

func TestServerRefuses(t *testing.T) {
	start := Frame{TypeStart, 1, asJSON(wireProcess{Args: [][]byte{[]byte("x")}, Stdin: true})}
	for _, tt := range []struct {
		name   string
		frames []Frame
	}{
		{"process 0", []Frame{{TypeStart, 0, start.Payload}}},
		{"process twice", []Frame{start, start}},
		{"input after its end", []Frame{start, {TypeStdinEOF, 1, nil}, {TypeStdin, 1, []byte("x")}}},
		{"a guest's frame", []Frame{start, {TypeExit, 1, nil}}},
		{"credit for input", []Frame{start, {TypeWindow, 1, encodeWindow(stdin, 1)}}},
		{"endless START", []Frame{
			{TypeStart, 1, make([]byte, MaxPayload)}, {TypeStart, 1, make([]byte, MaxPayload)}, {TypeStart, 1, []byte("x")},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := NewServer(rw{bytes.NewReader(wire(tt.frames...)), io.Discard})
			hold := make(chan struct{})
			defer close(hold)
			if err := srv.Serve(func(*Task) { <-hold }); !errors.Is(err, ErrProtocol) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// FuzzSession gives a host whatever a guest may send while a program runs.
func FuzzSession(f *testing.F) {
	f.Add(wire(helloFrame, readyFrame, Frame{TypeStdout, 1, []byte("hi")}, exitFrame))
	f.Add(wire(helloFrame, readyFrame, Frame{TypeStderr, 1, []byte("no")}, Frame{TypeStdinEOF, 1, nil}, Frame{TypeWindow, 1, encodeWindow(stdin, 9)}))
	f.Add(wire(helloFrame, Frame{TypeFail, 0, []byte("no root")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := net.Pipe()
		s := NewSession(a)
		go func() {
			c.Write(b)
			c.Close()
		}()
		go io.Copy(io.Discard, c)
		var out bytes.Buffer
		if g, err := s.Start(t.Context(), Process{Args: []string{"x"}}, Streams{Stdout: &out}); err == nil {
			if e, err := g.Wait(t.Context()); err == nil && (e.Code < 0 || e.Code > 255) {
				t.Errorf("exit %+v", e)
			}
		}
		s.Close()
		if out.Len() > len(b) {
			t.Errorf("%d bytes of output from %d", out.Len(), len(b))
		}
	})
}

// FuzzServer gives a guest whatever a host may send.
func FuzzServer(f *testing.F) {
	start := Frame{TypeStart, 1, asJSON(wireProcess{Args: [][]byte{[]byte("x")}, Stdin: true, Terminal: &Size{1, 2}})}
	f.Add(wire(start, Frame{TypeStdin, 1, []byte("in")}, Frame{TypeSignal, 1, []byte{9}}, Frame{TypeResize, 1, encodeSize(Size{2, 3})}, Frame{TypeStdinEOF, 1, nil}))
	f.Add(wire(start, Frame{TypeWindow, 1, encodeWindow(stderr, 9)}, Frame{TypePowerOff, 0, nil}))
	f.Fuzz(func(t *testing.T, b []byte) {
		srv := NewServer(rw{bytes.NewReader(b), io.Discard})
		srv.Serve(func(k *Task) {
			k.Control(ignore{})
			k.CopyStdin(k.Stdout())
			k.Exit(Exit{})
		})
	})
}

type ignore struct{}

func (ignore) Signal(int)  {}
func (ignore) Resize(Size) {}
