package guest

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// rw joins a reader and a writer.
type rw struct {
	io.Reader
	io.Writer
}

func TestFrames(t *testing.T) {
	want := []Frame{
		{TypeHello, 0, []byte("{}")},
		{TypeStdout, 7, bytes.Repeat([]byte("x"), MaxPayload)},
		{TypeStdinEOF, math.MaxUint32, []byte{}},
		{TypeSignal, 1, []byte{9}},
	}
	var b bytes.Buffer
	c := NewConn(rw{&b, &b})
	for _, f := range want {
		if err := c.WriteFrame(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range want {
		got, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(f, got); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := c.ReadFrame(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := c.WriteFrame(Frame{TypeStdin, 1, make([]byte, MaxPayload+1)}); err == nil {
		t.Error("wrote a payload that is too long")
	}
	c = NewConn(rw{nil, &b})
	b.Reset()
	if err := c.WriteFrame(Frame{TypeWindow, 0x01020304, []byte("abc")}); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "\x01\x09\x00\x00\x04\x03\x02\x01\x03\x00\x00\x00abc"; got != want {
		t.Errorf("on the wire: %q, want %q", got, want)
	}
}

func TestMalformedFrames(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     error
	}{
		{"version", "\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ErrProtocol},
		{"type 0", "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ErrProtocol},
		{"type", "\x01\x0e\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ErrProtocol},
		{"reserved", "\x01\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", ErrProtocol},
		{"length", "\x01\x01\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00", ErrProtocol},
		{"header ends", "\x01\x01\x00", io.ErrUnexpectedEOF},
		{"payload missing", "\x01\x01\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00", io.ErrUnexpectedEOF},
		{"payload ends", "\x01\x01\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00x", io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewConn(rw{strings.NewReader(tt.in), nil}).ReadFrame()
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestMessages(t *testing.T) {
	bad := func(name string, err error) {
		t.Helper()
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	for _, s := range []string{"", "\x00", "\x03\x01\x00\x00\x00", "\x01\x00\x00\x00\x00", "\x01\x01\x00\x04\x00", "\x00\xff\xff\xff\xff"} {
		_, _, err := decodeWindow([]byte(s))
		bad("WINDOW", err)
	}
	for _, s := range []string{"", "\x00", "\x41", "\x01\x01"} {
		_, err := decodeSignal([]byte(s))
		bad("SIGNAL", err)
	}
	for _, s := range []string{"", "\x00", "\x41\x00\x00\x00\x00"} {
		_, err := decodeSize([]byte(s))
		bad("RESIZE", err)
	}
	for _, s := range []string{"", "{}", `{"args":[]}`, `{"args":["!"]}`} {
		_, err := decodeProcess([]byte(s))
		bad("START", err)
	}
	for _, s := range []string{"", `{"code":256}`, `{"code":-1}`, `{"signal":65}`, `{"signal":-1}`, `{"kind":"x"}`} {
		_, err := decodeExit([]byte(s))
		bad("EXIT", err)
	}
	_, err := decodeHello([]byte("["))
	bad("HELLO", err)
	_, err = decodeReady([]byte("["))
	bad("READY", err)
	for in, want := range map[string]string{
		"plain é": "plain é", "\x1b[31m\x07\x9b": "?[31m??", "a\nb\tc": "a b c", "\xff": "?", "\u202e": "?",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
	if got := printable(strings.Repeat("x", maxText+1)); len(got) != maxText {
		t.Errorf("%d bytes of text", len(got))
	}
}

func TestTypeString(t *testing.T) {
	for typ, want := range map[Type]string{0: "type 0", TypeHello: "HELLO", TypePowerOff: "POWEROFF", 14: "type 14"} {
		if got := typ.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
