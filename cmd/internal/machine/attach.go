package machine

import (
	"context"
	"encoding/json"
	"fmt"

	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm"
)

// Attachment is the machine as the process sees it that started it. Its methods
// may be called concurrently.
type Attachment struct {
	cmd     *exec.Cmd
	control *net.UnixConn
	frames  *net.UnixConn
	stderr  *vm.Tail
	wg      sync.WaitGroup
	up      chan struct{} // closed when started is set, or with done
	done    chan struct{} // closed when the supervisor is gone

	mu      sync.Mutex // over what follows
	started *Started
	ended   *Ended
}

// Start executes this program once more, with arguments that make it call
// Supervisor.Run, and has it run a machine. warn, which may be nil, is told what
// the user should know, from one goroutine.
func Start(args []string, c Config, warn func(string)) (*Attachment, error) {
	a := &Attachment{stderr: vm.NewTail(16 << 10), up: make(chan struct{}), done: make(chan struct{})}
	control, theirControl, err := socketPair("control")
	if err != nil {
		return nil, err
	}
	defer theirControl.Close()
	frames, theirFrames, err := socketPair("frames")
	if err != nil {
		control.Close()
		return nil, err
	}
	defer theirFrames.Close()
	a.control, a.frames = control, frames
	// This program, even if its file has been replaced.
	a.cmd = exec.Command("/proc/self/exe", args...)
	a.cmd.Args[0] = os.Args[0]
	a.cmd.ExtraFiles = []*os.File{theirControl, theirFrames}
	a.cmd.Stderr = a.stderr
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := a.cmd.Start(); err != nil {
		control.Close()
		frames.Close()
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	// Should the supervisor have ended already, what it left behind tells why.
	_ = json.NewEncoder(control).Encode(c)
	a.wg.Go(func() { a.listen(warn) })
	go func() {
		a.wg.Wait() // events first: Ended tells more than the exit status
		err := a.cmd.Wait()
		a.mu.Lock()
		if a.ended == nil {
			a.ended = a.unexplained(err)
		}
		if a.started == nil {
			close(a.up)
		}
		a.mu.Unlock()
		close(a.done)
	}()
	return a, nil
}

// Open gives a machine its image that was started without one.
func (a *Attachment) Open(image json.RawMessage) error {
	if err := json.NewEncoder(a.control).Encode(Late{Image: image}); err != nil {
		// Should the supervisor have ended, what it left behind tells why.
		return a.Wait(context.Background())
	}
	return nil
}

// listen takes events until the supervisor hangs up.
func (a *Attachment) listen(warn func(string)) {
	dec := json.NewDecoder(a.control)
	for {
		var e Event
		if err := dec.Decode(&e); err != nil {
			return
		}
		switch {
		case e.Warning != "" && warn != nil:
			warn(e.Warning)
		case e.Started != nil && a.started == nil: // no one else sets it
			a.mu.Lock()
			a.started = e.Started
			close(a.up)
			a.mu.Unlock()
		case e.Ended != nil:
			a.mu.Lock()
			a.ended = e.Ended
			a.mu.Unlock()
		}
	}
}

// unexplained is the end of a supervisor that didn't say why.
func (a *Attachment) unexplained(err error) *Ended {
	e := &Ended{Error: "the machine's supervisor ended"}
	if err != nil {
		e.Error += ": " + err.Error()
	}
	if words := strings.TrimSpace(a.stderr.String()); words != "" {
		e.Error += "\n" + words
	}
	return e
}

// Frames is the stream to and from PID 1, for guest.NewSession. It ends with the
// machine; closing it ends the machine.
func (a *Attachment) Frames() net.Conn { return a.frames }

// Started waits until a machine has been started, and says what it is. Its error is
// as that of Wait.
func (a *Attachment) Started(ctx context.Context) (Started, error) {
	select {
	case <-a.up:
	case <-ctx.Done():
		return Started{}, context.Cause(ctx)
	}
	a.mu.Lock()
	started := a.started
	a.mu.Unlock()
	if started == nil {
		return Started{}, a.Wait(ctx)
	}
	return *started, nil
}

// closeGrace is how long a supervisor may take to end its machine before it is
// killed, and the kernel does it.
const closeGrace = 5 * time.Second

// Close ends the machine, if it hasn't ended, and waits until nothing is left of
// it.
func (a *Attachment) Close() {
	a.frames.Close()
	// The write side only: the supervisor's last words are still wanted.
	a.control.CloseWrite()
	impatient := time.AfterFunc(closeGrace, func() { a.cmd.Process.Kill() })
	<-a.done
	impatient.Stop()
	a.control.Close()
}

// Wait waits until the machine has ended by itself, and says why. The error is an
// *EndedError unless ctx ended.
func (a *Attachment) Wait(ctx context.Context) error {
	select {
	case <-a.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return &EndedError{*a.ended}
}

// socketPair gives our end and, for a process to inherit, theirs.
func socketPair(name string) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making %s socket: %w", name, err)
	}
	theirs := os.NewFile(uintptr(fds[1]), name)
	ours, err := fileConn(os.NewFile(uintptr(fds[0]), name))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// fileConn makes a connection of f, which it closes.
func fileConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close() // the connection works on a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("using %s socket: %w", f.Name(), err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("using %s socket: not a unix socket", f.Name())
	}
	return u, nil
}
