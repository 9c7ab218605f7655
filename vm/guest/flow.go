package guest

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// credit is what a sender may still send of one stream.
type credit struct {
	mu   sync.Mutex
	cond sync.Cond // on mu: n or err changed
	n    int
	err  error
}

func newCredit() *credit {
	c := &credit{n: Window}
	c.cond.L = &c.mu
	return c
}

// take waits for credit and uses up to want bytes of it.
func (c *credit) take(want int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.n == 0 && c.err == nil {
		c.cond.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	n := min(want, c.n)
	c.n -= n
	return n, nil
}

// add grants n more bytes.
func (c *credit) add(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > Window-c.n {
		return fmt.Errorf("%w: more credit granted than there is", ErrProtocol)
	}
	c.n += n
	c.cond.Broadcast()
	return nil
}

// close makes every take from now on fail with err. The first err stays.
func (c *credit) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.cond.Broadcast()
}

// sendStream writes p as frames of type t, as credit allows.
func sendStream(conn *Conn, c *credit, t Type, id uint32, p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := c.take(min(len(p)-done, MaxPayload))
		if err != nil {
			return done, err
		}
		if err := conn.WriteFrame(Frame{t, id, p[done : done+n]}); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// inbox holds what was received of one stream and not consumed: at most Window bytes, what the consumer has taken and
// not yet acknowledged included.
type inbox struct {
	mu   sync.Mutex
	cond sync.Cond // on mu: buf or err changed
	buf  []byte
	held int   // bytes in buf or taken and not acknowledged
	owed int   // bytes acknowledged and not granted again
	err  error // what take returns when buf is empty
}

func newInbox() *inbox {
	b := &inbox{}
	b.cond.L = &b.mu
	return b
}

// errExited ends the streams of a process in the guest when it has exited.
var errExited = errors.New("process has exited")

// push appends p. It never blocks.
func (b *inbox) push(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err == errExited:
		return nil // they crossed EXIT
	case b.err != nil:
		return fmt.Errorf("%w: bytes after the end of their stream", ErrProtocol)
	case len(p) > Window-b.held-b.owed:
		return fmt.Errorf("%w: more bytes than credit", ErrProtocol)
	}
	b.buf = append(b.buf, p...)
	b.held += len(p)
	b.cond.Broadcast()
	return nil
}

// close ends the stream: once buf is empty take returns err. The first err stays.
func (b *inbox) close(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	b.cond.Broadcast()
}

// take waits for bytes and hands all of them over, keeping spare for those to come.
func (b *inbox) take(spare []byte) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.buf) == 0 && b.err == nil {
		b.cond.Wait()
	}
	if len(b.buf) == 0 {
		return nil, b.err
	}
	p := b.buf
	b.buf = spare[:0]
	return p, nil
}

// ack says that n taken bytes are consumed. It returns how many bytes to grant to the sender now: none, or at least
// half a window, so that few frames do it.
func (b *inbox) ack(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held -= n
	b.owed += n
	if b.owed < Window/2 || b.err != nil {
		return 0
	}
	n, b.owed = b.owed, 0
	return n
}

// deliver copies the inbox to w until its end and grants credit as w takes the bytes. When w fails, deliver returns the
// failure, at once unless drain is set: then it goes on and drops the bytes.
func (b *inbox) deliver(conn *Conn, s stream, id uint32, w io.Writer, drain bool) (failed, err error) {
	var p []byte
	for {
		if p, err = b.take(p); err != nil {
			if err == io.EOF {
				err = nil
			}
			return failed, err
		}
		for rest := p; len(rest) > 0; {
			piece := rest[:min(len(rest), MaxPayload)]
			rest = rest[len(piece):]
			if failed == nil {
				if _, failed = w.Write(piece); failed != nil && !drain {
					return failed, nil
				}
			}
			if n := b.ack(len(piece)); n > 0 {
				if err := conn.WriteFrame(Frame{TypeWindow, id, encodeWindow(s, n)}); err != nil {
					return failed, err
				}
			}
		}
	}
}
