package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Streams is where a program's output goes; a nil writer drops it. Each is written to by one goroutine at a time, and
// may be the other too if it is safe for concurrent use.
type Streams struct {
	Stdout, Stderr io.Writer
}

// Program is a program in the guest, seen from the host.
type Program struct {
	s        *Session
	id       uint32
	hasStdin bool
	stdin    *credit
	stdout   *inbox
	stderr   *inbox
	ended    chan struct{} // closed when exit or err is set
	exit     Exit
	err      error
	done     chan struct{} // closed when the output is written too
	outErr   error
}

var errStdinClosed = fmt.Errorf("writing to the program's standard input: %w", os.ErrClosed)

// Start waits until the guest is ready and starts a program in it. Whether it could be run is for Wait to say.
func (s *Session) Start(ctx context.Context, p Process, out Streams) (*Program, error) {
	b, err := p.encode()
	if err != nil {
		return nil, err
	}
	if _, _, err := s.WaitReady(ctx); err != nil {
		return nil, err
	}
	g := &Program{
		s: s, hasStdin: p.Stdin, stdin: newCredit(), stdout: newInbox(), stderr: newInbox(),
		ended: make(chan struct{}), done: make(chan struct{}),
	}
	if !p.Stdin {
		g.stdin.close(errStdinClosed)
	}
	s.mu.Lock()
	if s.err != nil {
		err = fmt.Errorf("starting program: %w", s.err)
		s.mu.Unlock()
		return nil, err
	}
	s.lastID++
	g.id = s.lastID
	s.programs[g.id] = g
	// Close waits for these, so they are counted while it can't have begun.
	outErrs := make(chan error, 2)
	for _, o := range []struct {
		s  stream
		in *inbox
		w  io.Writer
	}{{stdout, g.stdout, out.Stdout}, {stderr, g.stderr, out.Stderr}} {
		if o.w == nil {
			o.w = io.Discard
		}
		s.wg.Go(func() {
			// What ended the stream early, if anything did, is the program's err.
			failed, _ := o.in.deliver(s.conn, o.s, g.id, o.w, true)
			outErrs <- failed
		})
	}
	s.wg.Go(func() {
		g.outErr = errors.Join(<-outErrs, <-outErrs)
		<-g.ended
		close(g.done)
	})
	s.mu.Unlock()

	for {
		n := min(len(b), MaxPayload)
		if err := s.conn.WriteFrame(Frame{TypeStart, g.id, b[:n]}); err != nil {
			s.fail(err)
			return nil, err
		}
		if b = b[n:]; n < MaxPayload {
			return g, nil
		}
	}
}

// handle takes a frame for g.
func (g *Program) handle(f Frame) error {
	switch f.Type {
	case TypeStdout:
		return g.stdout.push(f.Payload)
	case TypeStderr:
		return g.stderr.push(f.Payload)
	case TypeStdinEOF:
		g.stdin.close(fmt.Errorf("writing to the program's standard input: %w", syscall.EPIPE))
	case TypeWindow:
		st, n, err := decodeWindow(f.Payload)
		if err == nil && st != stdin {
			err = fmt.Errorf("%w: WINDOW for output from a guest", ErrProtocol)
		}
		if err != nil {
			return err
		}
		return g.stdin.add(n)
	case TypeExit:
		e, err := decodeExit(f.Payload)
		if err != nil {
			g.end(nil, err)
			return err
		}
		g.end(&e, nil)
	}
	return nil
}

// end is called once, with what Wait is to return.
func (g *Program) end(e *Exit, err error) {
	if e != nil {
		g.exit = *e
		err, g.err = io.EOF, nil
	} else {
		g.err = err
	}
	g.stdout.close(err)
	g.stderr.close(err)
	g.stdin.close(errStdinClosed)
	close(g.ended)
}

// Stdin writes to the program's standard input; Close ends that. Write waits until the program has room for all bytes,
// until it ends (os.ErrClosed), or until it has closed its end (EPIPE). One goroutine at a time may use it.
func (g *Program) Stdin() io.WriteCloser { return programStdin{g} }

type programStdin struct{ g *Program }

func (w programStdin) Write(p []byte) (int, error) {
	return sendStream(w.g.s.conn, w.g.stdin, TypeStdin, w.g.id, p)
}

func (w programStdin) Close() error {
	w.g.stdin.close(errStdinClosed)
	if !w.g.hasStdin {
		return nil
	}
	return w.g.send(Frame{Type: TypeStdinEOF})
}

// Signal sends the program a signal, 1 to 64. It is os.ErrProcessDone if the program has ended, and nothing is said
// if it ends before the signal gets there.
func (g *Program) Signal(n syscall.Signal) error {
	if n < 1 || n > 64 {
		return fmt.Errorf("sending signal %d: no such signal", int(n))
	}
	return g.send(Frame{Type: TypeSignal, Payload: []byte{byte(n)}})
}

// Resize tells the program's terminal its size.
func (g *Program) Resize(to Size) error {
	return g.send(Frame{Type: TypeResize, Payload: encodeSize(to)})
}

func (g *Program) send(f Frame) error {
	select {
	case <-g.ended:
		return os.ErrProcessDone
	default:
	}
	f.ID = g.id
	return g.s.conn.WriteFrame(f)
}

// Done is closed when the program has ended and its output is written, or the session has ended.
func (g *Program) Done() <-chan struct{} { return g.done }

// Wait waits for Done and says how the program ended. An error that wraps ErrOutput comes with a valid Exit; any other
// means that nobody knows how the program ended.
func (g *Program) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-g.done:
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("waiting for process %d: %w", g.id, context.Cause(ctx))
	}
	if g.err != nil {
		return Exit{}, g.err
	}
	if g.outErr != nil {
		return g.exit, fmt.Errorf("%w: %w", ErrOutput, g.outErr)
	}
	return g.exit, nil
}
