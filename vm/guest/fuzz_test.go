package guest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// FuzzFrames reads frames, and the messages in them. What is read would be written as it was, and what a guest says can be shown.
func FuzzFrames(f *testing.F) {
	f.Add(wire(helloFrame, readyFrame, exitFrame))
	f.Add(wire(Frame{TypeReady, 0, []byte(`{"root":"pmem","dax":true,"uptime_ns":5,"warnings":["a\u001bb",""]}`)}, Frame{TypeFail, 0, []byte("no\nroot")}))
	f.Add(wire(Frame{TypeExit, 7, []byte(`{"code":137,"signal":9,"oom":true,"usage":{"max_rss":-1}}`)}, Frame{TypeExit, 7, []byte(`{"kind":"not-found","message":"\u0000"}`)}))
	f.Add(wire(Frame{TypeStart, 1, asJSON(wireProcess{Args: [][]byte{[]byte("a"), nil}, Env: [][]byte{[]byte("b=\xff")}, Dir: []byte("/"), User: []byte("u"), Terminal: &Size{3, 4}})}))
	f.Add(wire(Frame{TypeWindow, 1, encodeWindow(stdout, Window)}, Frame{TypeResize, 1, encodeSize(Size{65535, 1})}, Frame{TypeSignal, 1, []byte{64}}, Frame{TypePowerOff, 0, nil}))
	f.Add([]byte{Version, byte(TypeStdout), 0, 0, 1, 0, 0, 0, 0, 0, 1, 0})
	f.Add([]byte{Version, byte(TypeStdout), 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		in := NewConn(rw{bytes.NewReader(b), nil})
		var again bytes.Buffer
		out := NewConn(rw{nil, &again})
		for {
			frame, err := in.ReadFrame()
			if err != nil {
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, ErrProtocol) {
					t.Errorf("error %v", err)
				}
				break
			}
			if err := out.WriteFrame(frame); err != nil {
				t.Fatal(err)
			}
			checkMessage(t, frame)
		}
		if !bytes.HasPrefix(b, again.Bytes()) {
			t.Errorf("%x was read, and is written as %x", b, again.Bytes())
		}
	})
}

// checkMessage decodes what a frame of its type holds.
func checkMessage(t *testing.T, f Frame) {
	t.Helper()
	var err error
	var texts []string
	switch f.Type {
	case TypeHello:
		var h Hello
		h, err = decodeHello(f.Payload)
		texts = []string{h.Build}
	case TypeReady:
		var r Ready
		r, err = decodeReady(f.Payload)
		texts = append(r.Warnings, r.Root)
	case TypeExit:
		var e Exit
		e, err = decodeExit(f.Payload)
		texts = []string{e.Message, string(e.Kind)}
		if e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > 64 {
			t.Errorf("exit %+v", e)
		}
	case TypeStart:
		var p Process
		if p, err = decodeProcess(f.Payload); err == nil {
			checkProcess(t, p)
		}
	case TypeWindow:
		var s stream
		var n int
		if s, n, err = decodeWindow(f.Payload); err == nil && (s > stderr || !bytes.Equal(encodeWindow(s, n), f.Payload)) {
			t.Errorf("window of %d for stream %d is %x", n, s, f.Payload)
		}
	case TypeResize:
		var s Size
		if s, err = decodeSize(f.Payload); err == nil && !bytes.Equal(encodeSize(s), f.Payload) {
			t.Errorf("size %+v is %x", s, f.Payload)
		}
	case TypeSignal:
		var n int
		if n, err = decodeSignal(f.Payload); err == nil && (n < 1 || n > 64) {
			t.Errorf("signal %d", n)
		}
	}
	if err != nil && !errors.Is(err, ErrProtocol) {
		t.Errorf("%s: error %v", f.Type, err)
	}
	for _, s := range texts {
		if len(s) > maxText || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%s: text %q", f.Type, s)
		}
	}
}

// checkProcess checks that a process arrives as it was sent, if it can be sent.
func checkProcess(t *testing.T, p Process) {
	t.Helper()
	b, err := p.encode()
	nul := slices.ContainsFunc(slices.Concat(p.Args, p.Env, []string{p.Dir, p.User}), func(s string) bool { return strings.Contains(s, "\x00") })
	if (err != nil) != nul {
		t.Fatalf("process %+v: error %v", p, err)
	}
	if err != nil {
		return
	}
	again, err := decodeProcess(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, again); diff != "" {
		t.Errorf("process (-sent +arrived):\n%s", diff)
	}
}
