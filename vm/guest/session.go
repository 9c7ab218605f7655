package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// ErrOutput is wrapped by the error of Program.Wait that says a writer of Streams failed. The program's Exit is valid
// then, and its output was read to the end and dropped.
var ErrOutput = errors.New("writing the program's output")

// Session is the host's end. Its methods may be called concurrently. Those that send a frame block as long as the
// stream does, whatever their ctx; Close ends them.
type Session struct {
	conn   *Conn
	closer io.Closer
	wg     sync.WaitGroup // the reader, and two per program
	up     chan struct{}  // closed when hello and ready are set, or err
	done   chan struct{}  // closed when err is set

	mu       sync.Mutex // over what follows; never held while sending or waiting
	greeted  bool
	isUp     bool
	hello    Hello
	ready    Ready
	err      error
	lastID   uint32
	programs map[uint32]*Program
}

// NewSession starts reading rw, which it closes in the end. A Read of rw must end when rw is closed.
func NewSession(rw io.ReadWriteCloser) *Session {
	s := &Session{
		conn: NewConn(rw), closer: rw,
		up: make(chan struct{}), done: make(chan struct{}), programs: make(map[uint32]*Program),
	}
	s.wg.Go(func() {
		for {
			f, err := s.conn.ReadFrame()
			if err == nil {
				err = s.handle(f)
			}
			if err != nil {
				s.fail(fmt.Errorf("reading from guest: %w", err))
				return
			}
		}
	})
	return s
}

// Close closes the stream, ends every program of the session with an error if it hasn't ended, and waits until all
// output received has been written.
func (s *Session) Close() error {
	s.fail(os.ErrClosed)
	err := s.closer.Close()
	s.wg.Wait()
	return err
}

// Done is closed when the stream has ended, by itself or by Close, or the guest broke the protocol.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says, after Done, why the session ended. It wraps io.EOF, os.ErrClosed, ErrProtocol or what reading failed with.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// WaitReady waits until the guest can run programs. What the guest says kept it from that is an error too. Hello is
// what the guest has said of itself, even with an error; the zero value if nothing.
func (s *Session) WaitReady(ctx context.Context) (Hello, Ready, error) {
	var err error
	select {
	case <-s.up:
	case <-ctx.Done():
		err = fmt.Errorf("waiting for the guest: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && !s.isUp {
		err = fmt.Errorf("waiting for the guest: %w", s.err)
	}
	return s.hello, s.ready, err
}

// PowerOff asks the guest to end the machine.
func (s *Session) PowerOff() error { return s.conn.WriteFrame(Frame{Type: TypePowerOff}) }

// handle takes one frame from the guest.
func (s *Session) handle(f Frame) error {
	switch f.Type {
	case TypeHello, TypeReady, TypeFail:
		return s.handleMachine(f)
	case TypeStdout, TypeStderr, TypeWindow, TypeStdinEOF, TypeExit:
	default:
		return fmt.Errorf("%w: %s from a guest", ErrProtocol, f.Type)
	}
	s.mu.Lock()
	p := s.programs[f.ID]
	ended := p == nil && f.ID != 0 && f.ID <= s.lastID
	if p != nil && f.Type == TypeExit {
		delete(s.programs, f.ID)
	}
	s.mu.Unlock()
	switch {
	case p != nil:
		return p.handle(f)
	case ended && (f.Type == TypeWindow || f.Type == TypeStdinEOF):
		return nil // its standard input was still being consumed
	}
	return fmt.Errorf("%w: %s for process %d, which doesn't run", ErrProtocol, f.Type, f.ID)
}

func (s *Session) handleMachine(f Frame) error {
	if f.ID != 0 {
		return fmt.Errorf("%w: %s for process %d", ErrProtocol, f.Type, f.ID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch {
	case f.Type == TypeHello && !s.greeted:
		s.greeted = true
		if s.hello, err = decodeHello(f.Payload); err == nil && s.hello.Protocol != Version {
			err = fmt.Errorf("%w: guest has protocol %d, want %d", ErrProtocol, s.hello.Protocol, Version)
		}
	case f.Type == TypeReady && s.greeted && !s.isUp:
		if s.ready, err = decodeReady(f.Payload); err == nil {
			s.isUp = true
			close(s.up)
		}
	case f.Type == TypeFail && s.greeted && !s.isUp:
		err = fmt.Errorf("%w: %s", ErrFailed, printable(string(f.Payload)))
	default:
		err = fmt.Errorf("%w: %s out of order", ErrProtocol, f.Type)
	}
	return err
}

// fail ends the session. Only the first err counts.
func (s *Session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	close(s.done)
	if !s.isUp {
		close(s.up)
	}
	for id, p := range s.programs {
		delete(s.programs, id)
		p.end(nil, fmt.Errorf("process %d has not ended: %w", id, err))
	}
}
