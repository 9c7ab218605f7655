package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Messages between a holder and its view: a byte that says what it is, the state, and descriptors. A holder says begin once; a view says
// keep, as often as it changes, and serves. What a view asks its holder to do, unmount and daemon, is a byte and no more; the holder answers
// daemon, by the same byte, when it has done what it could.
const (
	kindBegin   = 'b'
	kindKeep    = 'k'
	kindServes  = 's'
	kindUnmount = 'u'
	kindDaemon  = 'd'
)

// Bounds of a message.
const (
	maxState = 16 << 10 // bytes
	maxFiles = 8
)

// Link is a view's way to its holder. The zero Link has none: all is well, and nothing is kept.
type Link struct {
	conn   *net.UnixConn
	gone   chan struct{} // closed when AwaitEnd returns
	daemon chan struct{} // has an entry when the holder has answered
}

// Join takes up the link that this process inherited, and what an earlier view has left: nothing if this is the first one.
func Join() (*Link, []byte, []*os.File, error) {
	conn, err := unixConn(os.NewFile(LinkFD, "holder"))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("joining the holder: %w", err)
	}
	kind, state, files, err := receive(conn)
	if err == nil && kind != kindBegin {
		err = fmt.Errorf("it says %q", kind)
	}
	if err != nil {
		conn.Close()
		return nil, nil, nil, fmt.Errorf("joining the holder: %w", err)
	}
	return &Link{conn: conn, gone: make(chan struct{}), daemon: make(chan struct{}, 1)}, state, files, nil
}

// Keep leaves state and files for the next view, in place of what was left before.
func (l *Link) Keep(state []byte, files ...*os.File) error {
	if l.conn == nil {
		return nil
	}
	if err := send(l.conn, kindKeep, state, files); err != nil {
		return fmt.Errorf("leaving the mount with the holder: %w", err)
	}
	return nil
}

// Serves says that the mount can be used: from here on, another view takes over when this one dies.
func (l *Link) Serves() error {
	if l.conn == nil {
		return nil
	}
	if err := send(l.conn, kindServes, nil, nil); err != nil {
		return fmt.Errorf("telling the holder: %w", err)
	}
	return nil
}

// Held tells whether there is a holder, or was one.
func (l *Link) Held() bool { return l.conn != nil }

// Unmount asks the holder to end the mount, which it does unless that is in use.
func (l *Link) Unmount() error { return l.ask(kindUnmount) }

// Daemon asks the holder to see to it that a daemon runs, and returns when it has tried. It works while AwaitEnd does, for one at a time.
func (l *Link) Daemon(ctx context.Context) error {
	if err := l.ask(kindDaemon); err != nil {
		return err
	}
	select {
	case <-l.daemon:
		return nil
	case <-l.gone:
		return errors.New("the holder is gone")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *Link) ask(kind byte) error {
	if err := send(l.conn, kind, nil, nil); err != nil {
		return fmt.Errorf("asking the holder: %w", err)
	}
	return nil
}

// AwaitEnd returns true when the holder has died, and false after Close. It is called once.
func (l *Link) AwaitEnd() bool {
	if l.conn == nil {
		return false
	}
	defer close(l.gone)
	for {
		kind, _, _, err := receive(l.conn)
		if err != nil {
			return !errors.Is(err, net.ErrClosed)
		}
		if kind == kindDaemon {
			select {
			case l.daemon <- struct{}{}:
			default: // nobody waited for the last one any more
			}
		}
	}
}

// Close ends the link.
func (l *Link) Close() error {
	if l.conn == nil {
		return nil
	}
	return l.conn.Close()
}

// pair makes a link: the holder's end, and the one that a view inherits.
func pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a link: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "holder")
	ours, err := unixConn(os.NewFile(uintptr(fds[0]), "view"))
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("making a link: %w", err)
	}
	return ours, theirs, nil
}

// unixConn makes a connection of a socket, which it closes.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a unix socket")
	}
	return u, nil
}

func send(c *net.UnixConn, kind byte, state []byte, files []*os.File) error {
	if len(state) > maxState || len(files) > maxFiles {
		return fmt.Errorf("a message of %d bytes and %d descriptors is too long", len(state), len(files))
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix(slices.Concat([]byte{kind}, state), rights, nil)
	return err
}

func receive(c *net.UnixConn) (kind byte, state []byte, files []*os.File, err error) {
	b, control := make([]byte, 1+maxState), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, k, flags, _, err := c.ReadMsgUnix(b, control)
	if err != nil {
		return 0, nil, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:k])
	if err != nil {
		return 0, nil, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return 0, nil, nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "held"))
		}
	}
	if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		for _, f := range files {
			f.Close()
		}
		return 0, nil, nil, io.ErrUnexpectedEOF
	}
	return b[0], slices.Clone(b[1:n]), files, nil
}
