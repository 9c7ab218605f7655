package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// Server is the guest's end.
type Server struct {
	conn *Conn

	mu    sync.Mutex // over tasks and every Task's later fields; never held while sending
	tasks map[uint32]*Task
	parts map[uint32][]byte // the beginnings of STARTs that are continued
}

// Controller acts on a running program. Its methods must not block: they are called between reading two frames.
type Controller interface {
	Signal(number int)
	Resize(Size)
}

// NewServer returns the guest's end of the stream rw. It closes nothing.
func NewServer(rw io.ReadWriter) *Server {
	return &Server{conn: NewConn(rw), tasks: make(map[uint32]*Task), parts: make(map[uint32][]byte)}
}

// Hello sends the first frame.
func (s *Server) Hello(build string) error {
	return s.sendJSON(TypeHello, 0, Hello{Protocol: Version, Build: build})
}

// Ready says that programs can be started, Fail that they never can.
func (s *Server) Ready(r Ready) error { return s.sendJSON(TypeReady, 0, r) }

// Fail says why the machine is of no use.
func (s *Server) Fail(reason error) error {
	text := reason.Error()
	return s.conn.WriteFrame(Frame{Type: TypeFail, Payload: []byte(text[:min(len(text), maxText)])})
}

func (s *Server) sendJSON(t Type, id uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", t, err)
	}
	return s.conn.WriteFrame(Frame{t, id, b})
}

// Serve reads frames until POWEROFF (nil), the end of the stream (io.EOF) or another error. It calls run in a
// goroutine of its own for every START; run must call Task.Exit. When Serve returns, the tasks' streams fail; it
// doesn't wait for run.
func (s *Server) Serve(run func(*Task)) error {
	err := s.serve(run)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		t.stdin.close(os.ErrClosed)
		t.stdout.close(os.ErrClosed)
		t.stderr.close(os.ErrClosed)
	}
	return err
}

func (s *Server) serve(run func(*Task)) error {
	for {
		f, err := s.conn.ReadFrame()
		if err != nil {
			return err
		}
		switch f.Type {
		case TypePowerOff:
			return nil
		case TypeStart:
			t, err := s.start(f)
			if err != nil {
				return err
			}
			if t != nil {
				go run(t)
			}
			continue
		}
		s.mu.Lock()
		t := s.tasks[f.ID]
		s.mu.Unlock()
		if t == nil {
			continue // it has ended, and the frame crossed its EXIT
		}
		if err := t.handle(f); err != nil {
			return err
		}
	}
}

// start takes a START and returns the task when the last part of it is there.
func (s *Server) start(f Frame) (*Task, error) {
	b := append(s.parts[f.ID], f.Payload...)
	switch {
	case f.ID == 0:
		return nil, fmt.Errorf("%w: START of process 0", ErrProtocol)
	case len(b) > MaxStart:
		return nil, fmt.Errorf("%w: START longer than %d bytes", ErrProtocol, MaxStart)
	case len(f.Payload) == MaxPayload:
		s.parts[f.ID] = b
		return nil, nil
	}
	delete(s.parts, f.ID)
	p, err := decodeProcess(b)
	if err != nil {
		return nil, err
	}
	t := &Task{Process: p, s: s, id: f.ID, stdin: newInbox(), stdout: newCredit(), stderr: newCredit()}
	if !p.Stdin {
		t.stdin.close(io.EOF)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tasks[f.ID] != nil {
		return nil, fmt.Errorf("%w: START of process %d, which runs", ErrProtocol, f.ID)
	}
	s.tasks[f.ID] = t
	return t, nil
}

// Task is a program to run, seen from the guest. Its methods may be called concurrently.
type Task struct {
	Process Process

	s      *Server
	id     uint32
	stdin  *inbox
	stdout *credit
	stderr *credit

	ctl     Controller         // under s.mu
	pending []func(Controller) // under s.mu; what came before there was a ctl
}

// maxPending is how many signals and resizes wait for a program that isn't running yet; more are dropped.
const maxPending = 64

// handle takes a frame for t.
func (t *Task) handle(f Frame) error {
	switch f.Type {
	case TypeStdin:
		return t.stdin.push(f.Payload)
	case TypeStdinEOF:
		t.stdin.close(io.EOF)
		return nil
	case TypeWindow:
		st, n, err := decodeWindow(f.Payload)
		switch {
		case err != nil:
			return err
		case st == stdout:
			return t.stdout.add(n)
		case st == stderr:
			return t.stderr.add(n)
		}
		return fmt.Errorf("%w: WINDOW for input from a host", ErrProtocol)
	case TypeSignal:
		n, err := decodeSignal(f.Payload)
		if err != nil {
			return err
		}
		t.control(func(c Controller) { c.Signal(n) })
		return nil
	case TypeResize:
		to, err := decodeSize(f.Payload)
		if err != nil {
			return err
		}
		t.control(func(c Controller) { c.Resize(to) })
		return nil
	}
	return fmt.Errorf("%w: %s from a host", ErrProtocol, f.Type)
}

func (t *Task) control(do func(Controller)) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.ctl != nil {
		do(t.ctl)
	} else if len(t.pending) < maxPending {
		t.pending = append(t.pending, do)
	}
}

// Control has c act on the program from now on, beginning with what has come for it before.
func (t *Task) Control(c Controller) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.ctl = c
	for _, do := range t.pending {
		do(c)
	}
	t.pending = nil
}

// CopyStdin writes what comes for the program's standard input to w until the host ends it. When w fails the host is
// told that nobody reads any more, and that is no error.
func (t *Task) CopyStdin(w io.Writer) error {
	failed, err := t.stdin.deliver(t.s.conn, stdin, t.id, w, false)
	if failed != nil {
		return t.s.conn.WriteFrame(Frame{Type: TypeStdinEOF, ID: t.id})
	}
	return err
}

// Stdout and Stderr send the program's output; Write waits until the host has room for all of it.
func (t *Task) Stdout() io.Writer { return taskOutput{t, TypeStdout, t.stdout} }

// Stderr is described with Stdout.
func (t *Task) Stderr() io.Writer { return taskOutput{t, TypeStderr, t.stderr} }

type taskOutput struct {
	t    *Task
	kind Type
	c    *credit
}

func (w taskOutput) Write(p []byte) (int, error) {
	return sendStream(w.t.s.conn, w.c, w.kind, w.t.id, p)
}

// Exit says how the program ended. It must be called once, after all output is written; CopyStdin ends by it.
func (t *Task) Exit(e Exit) error {
	t.stdin.close(errExited)
	t.stdout.close(errExited)
	t.stderr.close(errExited)
	t.s.mu.Lock()
	delete(t.s.tasks, t.id)
	t.s.mu.Unlock()
	return t.s.sendJSON(TypeExit, t.id, e)
}
