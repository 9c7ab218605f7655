package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	// Version is the protocol's version, in every frame and in HELLO.
	Version = 1
	// MaxPayload is the largest payload of a frame, in bytes.
	MaxPayload = 64 << 10
	// Window is the credit each stream starts with, and the most that can be outstanding, in bytes.
	Window = 256 << 10

	headerSize = 12
)

// ErrProtocol is wrapped by every error that says the other end broke the protocol.
var ErrProtocol = errors.New("guest protocol violated")

// ErrFailed is wrapped by the error of a guest that says that it can't become ready.
var ErrFailed = errors.New("guest failed")

// Type is what a frame means.
type Type uint8

// The types of frames; the package comment says who sends them and what they carry.
const (
	TypeHello Type = iota + 1
	TypeReady
	TypeFail
	TypeStart
	TypeStdin
	TypeStdinEOF
	TypeStdout
	TypeStderr
	TypeWindow
	TypeResize
	TypeSignal
	TypeExit
	TypePowerOff
)

var typeNames = [...]string{
	TypeHello: "HELLO", TypeReady: "READY", TypeFail: "FAIL", TypeStart: "START", TypeStdin: "STDIN",
	TypeStdinEOF: "STDIN_EOF", TypeStdout: "STDOUT", TypeStderr: "STDERR", TypeWindow: "WINDOW",
	TypeResize: "RESIZE", TypeSignal: "SIGNAL", TypeExit: "EXIT", TypePowerOff: "POWEROFF",
}

// String is the type's name as the package comment has it.
func (t Type) String() string {
	if t.known() {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

func (t Type) known() bool { return t != 0 && int(t) < len(typeNames) }

// Frame is one message. ID is the process it is about, 0 the machine.
type Frame struct {
	Type    Type
	ID      uint32
	Payload []byte
}

// Conn reads and writes frames. One goroutine may read while any number write.
type Conn struct {
	r  io.Reader
	in []byte // the payload of the frame read last

	mu  sync.Mutex // over w and out; held while writing
	w   io.Writer
	out []byte
}

// NewConn returns a Conn over rw. It starts nothing and closes nothing.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{r: rw, w: rw} }

// ReadFrame reads the next frame. Its payload is valid until the next call. At the end of the stream between two
// frames the error is io.EOF, inside one io.ErrUnexpectedEOF; a malformed frame's error wraps ErrProtocol, and the
// stream can't be read any further.
func (c *Conn) ReadFrame() (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Type: Type(h[1]), ID: binary.LittleEndian.Uint32(h[4:])}
	n := binary.LittleEndian.Uint32(h[8:])
	switch {
	case h[0] != Version:
		return Frame{}, fmt.Errorf("%w: version %d, want %d", ErrProtocol, h[0], Version)
	case !f.Type.known():
		return Frame{}, fmt.Errorf("%w: unknown frame %s", ErrProtocol, f.Type)
	case h[2] != 0 || h[3] != 0:
		return Frame{}, fmt.Errorf("%w: reserved bytes of %s not zero", ErrProtocol, f.Type)
	case n > MaxPayload:
		return Frame{}, fmt.Errorf("%w: payload of %s has %d bytes, at most %d", ErrProtocol, f.Type, n, MaxPayload)
	}
	if c.in == nil && n > 0 {
		c.in = make([]byte, MaxPayload)
	}
	f.Payload = c.in[:n]
	if _, err := io.ReadFull(c.r, f.Payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}

// WriteFrame writes f in one call of Write. It blocks as long as the stream does, and doesn't keep the payload.
func (c *Conn) WriteFrame(f Frame) error {
	if len(f.Payload) > MaxPayload {
		return fmt.Errorf("writing %s of %d bytes: more than %d", f.Type, len(f.Payload), MaxPayload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b := append(c.out[:0], Version, byte(f.Type), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, f.ID)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Payload)))
	b = append(b, f.Payload...)
	c.out = b[:0]
	if _, err := c.w.Write(b); err != nil {
		return fmt.Errorf("writing %s: %w", f.Type, err)
	}
	return nil
}
