package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// server is one front end's device.
type server struct {
	dev  Device
	info Info
	opts Options

	ctx  context.Context // ends with the device; its cause is what Serve returns
	fail context.CancelCauseFunc

	// gate is held for writing while a message is carried out, and for reading while a ring or guest memory is
	// touched; never while a device handles a request. It guards what follows and what ring says it does.
	gate     sync.RWMutex
	features uint64
	protocol uint64
	mem      memory
	rings    []*ring

	requests sync.Pool
	wg       sync.WaitGroup // goroutines of rings and requests
}

// errFrontEndGone is the cause of an orderly end.
var errFrontEndGone = errors.New("front end closed the connection")

// Serve is the back end of one front end, on a connected Unix stream socket (for QEMU one end of a socketpair, the
// other given to it by -chardev socket,fd=N). It returns nil when the front end closes the connection, the cause of ctx
// when that ends, and an error if the front end breaks the protocol (ErrProtocol) or the device panics (*PanicError).
// By then conn and all descriptors received are closed, the guest's memory is unmapped and no goroutine is left: it
// waits for requests in flight, whose contexts end, so it returns only as fast as the device heeds them.
func Serve(ctx context.Context, conn *net.UnixConn, dev Device, o Options) error {
	defer conn.Close()
	s, err := newServer(ctx, dev, o)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(s.ctx, func() {
		// The only error is that conn is closed, and then nothing reads or writes.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	defer stop()

	s.fail(s.serveMessages(conn))
	if err := s.close(); err != nil {
		return err
	}
	if err := context.Cause(s.ctx); !errors.Is(err, errFrontEndGone) {
		return err
	}
	return nil
}

func newServer(ctx context.Context, dev Device, o Options) (*server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	info := dev.Info()
	if err := info.validate(); err != nil {
		return nil, err
	}
	s := &server{dev: dev, info: info, opts: o}
	s.ctx, s.fail = context.WithCancelCause(ctx)
	for i := range info.Queues {
		s.rings = append(s.rings, newRing(s, i))
	}
	return s, nil
}

// serveMessages carries out the front end's messages until there are no more.
func (s *server) serveMessages(conn *net.UnixConn) error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer s.recover(-1)
	buf := new([headerSize + maxPayload]byte)
	for {
		m, err := receive(conn, buf)
		if err == nil {
			err = s.serveMessage(conn, m)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
			return errFrontEndGone
		default:
			return fmt.Errorf("serving front end: %w", err)
		}
	}
}

// serveMessage carries out one message and writes the reply, if there is to be one, to conn.
func (s *server) serveMessage(conn io.Writer, m *message) error {
	defer m.close()
	reply, err := s.carryOut(m)
	s.poke()
	switch {
	case reply != nil:
		return m.reply(conn, reply)
	case m.flags&flagNeedReply != 0 && s.protocol&protoReplyAck != 0 && !m.hasReply():
		var refused uint64
		if err != nil {
			s.opts.Logger.Warn("message refused", "message", m.request, "error", err)
			refused = 1
		}
		return m.reply(conn, le64(refused))
	default:
		return err
	}
}

// carryOut does what a message asks, all of it or nothing.
func (s *server) carryOut(m *message) (reply []byte, err error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	return s.dispatch(m)
}

// poke has every ring look at what a message may have changed.
func (s *server) poke() {
	for _, r := range s.rings {
		if r.wait != nil {
			r.notify()
			r.wait.wake()
		}
	}
}

// close ends and joins everything. s.ctx has ended.
func (s *server) close() error {
	s.gate.Lock()
	for _, r := range s.rings {
		r.reset()
	}
	s.gate.Unlock()
	s.poke()
	s.wg.Wait()
	for _, r := range s.rings {
		replace(&r.call, -1)
		replace(&r.errs, -1)
		if r.wait != nil {
			r.wait.close()
		}
	}
	return s.mem.unmap()
}
