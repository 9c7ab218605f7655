package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peers is a listener of which only connections come from processes of one user and of root. The socket's folder keeps others out already;
// this holds where somebody has changed that folder's mode, or handed a descriptor on.
type peers struct {
	net.Listener
	uid     int
	log     *slog.Logger
	refused func() // called for each other connection
}

// Accept gives the next connection of a process that may speak with the daemon, and closes others.
func (p *peers) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		cred, err := peerOf(c)
		if err == nil && trusted(cred, p.uid) {
			return c, nil
		}
		c.Close()
		p.refused()
		if err != nil {
			p.log.Warn("a connection is refused: who it is from can't be told", "err", err)
		} else {
			p.log.Warn("a connection is refused: it is from another user", "uid", cred.Uid, "pid", cred.Pid)
		}
	}
}

// trusted tells whether a process is of a user, or root's.
func trusted(c *unix.Ucred, uid int) bool { return c.Uid == 0 || int(c.Uid) == uid }

// peerOf tells whose process is at the other end of a unix socket's connection: who connected, or who called listen(2).
func peerOf(c net.Conn) (cred *unix.Ucred, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(cerr, err)
}

// checkServer refuses a daemon of another user than this process's and root: credentials are sent to it.
func checkServer(c net.Conn) error {
	cred, err := peerOf(c)
	if err != nil {
		return fmt.Errorf("asking whose the daemon is: %w", err)
	}
	if !trusted(cred, os.Geteuid()) {
		return fmt.Errorf("%w: the daemon at %s is of user %d, process %d", errForeign, c.RemoteAddr(), cred.Uid, cred.Pid)
	}
	return nil
}

// errForeign is wrapped where somebody else's process listens at the daemon's socket.
var errForeign = errors.New("not this user's daemon")
