//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm/guest"
)

// stdio is a program's standard input and outputs: pipes, or a terminal for all three.
type stdio struct {
	child [3]*os.File
	in    *os.File // writes to the program's input; nil if it is empty
	out   *os.File
	err   *os.File // nil on a terminal
	tty   bool
}

// newStdio makes them, owned by u, so that the program can open them again by /dev/stdout and the like.
func newStdio(p guest.Process, u user) (_ *stdio, err error) {
	s := &stdio{tty: p.Terminal != nil}
	defer func() {
		if err != nil {
			s.close()
			err = fmt.Errorf("making standard streams: %w", err)
		}
	}()
	if s.tty {
		master, slave, err := openTerminal(*p.Terminal)
		if err != nil {
			return nil, err
		}
		s.out, s.child = master, [3]*os.File{slave, slave, slave}
		if p.Stdin {
			s.in = master
		}
		return s, slave.Chown(int(u.uid), -1)
	}
	if p.Stdin {
		s.child[0], s.in, err = os.Pipe()
	} else {
		s.child[0], err = os.Open(os.DevNull)
	}
	if err != nil {
		return nil, err
	}
	if s.out, s.child[1], err = os.Pipe(); err != nil {
		return nil, err
	}
	if s.err, s.child[2], err = os.Pipe(); err != nil {
		return nil, err
	}
	if p.Stdin {
		err = s.child[0].Chown(int(u.uid), -1)
	}
	return s, errors.Join(err, s.child[1].Chown(int(u.uid), -1), s.child[2].Chown(int(u.uid), -1))
}

// childFds are the descriptors the program gets as 0, 1 and 2.
func (s *stdio) childFds() []uintptr {
	return []uintptr{s.child[0].Fd(), s.child[1].Fd(), s.child[2].Fd()}
}

// master is the terminal's end that isn't the program's, or nil.
func (s *stdio) master() *os.File {
	if s.tty {
		return s.out
	}
	return nil
}

// closeChild closes the program's ends here, so that reading finds the end when the program has closed them.
func (s *stdio) closeChild() {
	for i, f := range s.child {
		if f != nil {
			f.Close() // a terminal's is closed three times, and that harms nothing
			s.child[i] = nil
		}
	}
}

func (s *stdio) close() {
	s.closeChild()
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			f.Close()
		}
	}
}

// copy starts copying between the streams and the host; the group it returns ends with the outputs.
func (s *stdio) copy(t *guest.Task) *sync.WaitGroup {
	if s.in != nil {
		go func() {
			if err := t.CopyStdin(s.in); err != nil {
				return // the program has ended, or the host
			}
			if s.tty {
				s.in.Write([]byte{4}) // the end of a terminal's input is ^D; nobody may be there to read it
			} else {
				s.in.Close()
			}
		}()
	}
	var wg sync.WaitGroup
	report := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "pex-init: error: copying output:", err)
		}
	}
	wg.Go(func() { report(copyOutput(t.Stdout(), s.out)) })
	if s.err != nil {
		wg.Go(func() { report(copyOutput(t.Stderr(), s.err)) })
	}
	return &wg
}

// stopInput ends what waits for the program to read, which has ended.
func (s *stdio) stopInput() {
	if s.in != nil && !s.tty {
		s.in.Close()
	} else if s.in != nil {
		s.in.SetWriteDeadline(time.Unix(1, 0))
	}
}

// limitOutput has copying end after d, if the outputs haven't ended before.
func (s *stdio) limitOutput(d time.Duration) {
	until := time.Now().Add(d)
	s.out.SetReadDeadline(until)
	if s.err != nil {
		s.err.SetReadDeadline(until)
	}
}

// openTerminal makes a pseudo-terminal (pty(7)).
func openTerminal(size guest.Size) (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	n, err := prepareTerminal(master, size)
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

// prepareTerminal sets the size, unlocks the other end, and returns its number. Descriptors are used in a way that
// leaves the file's deadlines working.
func prepareTerminal(master *os.File, size guest.Size) (n int, err error) {
	if err := setSize(master, size); err != nil {
		return 0, err
	}
	err = withFd(master, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	return n, err
}

func setSize(master *os.File, size guest.Size) error {
	return withFd(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

func withFd(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := conn.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(cerr, err)
}
