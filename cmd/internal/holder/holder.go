// Package holder keeps a mount alive while the process that serves it is another one.
//
// A view (the process that serves a mount) is started by a holder, which waits for its end. The view leaves with the holder what its
// successor needs: descriptors, the mount's own among them, and a few bytes. The holder looks into neither, and reads nothing else: so there
// is hardly anything that it could die of. A view gives up its rights before it looks at an image; what it needs some for, to unmount and to
// start a daemon, it asks its holder to do, who has them still, and is told nothing but that. A view that ends with status 0 says that its mount has ended, and its holder ends as well. When
// one ends in any other way, the holder starts a successor, which gets what was left. It gives up when views end too often: by closing what
// it holds, with which the kernel ends the mount, so that its users get errors rather than wait for ever.
//
// A view whose holder has died goes on, and ends with its mount; nobody would take over from it.
//
// Each view's standard input is the task, read from its beginning. LinkFD leads to the holder: see Link. ReadyFD is where a view tells
// whoever started the holder that the mount can be used; it is nothing to the holder. Each view does, since the one before may have died
// just before it did.
package holder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// The descriptors that a view inherits.
const (
	LinkFD  = 3
	ReadyFD = 4
)

// Views may end maxDeaths times within deathSpan, and maxStarts times in a row, of their own, before they serve. Between one's end and the next one's
// start the holder waits for longer and longer, up to maxPause, and only from the time on when they have ended freeDeaths times.
const (
	maxDeaths  = 32
	deathSpan  = time.Minute
	maxStarts  = 6
	freeDeaths = 3
	minPause   = 20 * time.Millisecond
	maxPause   = 250 * time.Millisecond
	maxRetry   = 2 * time.Second // when it ended before it served
)

// Holder keeps one mount.
type Holder struct {
	Task  *os.File // what a view is to do; a regular file
	Ready *os.File // of each view, or nil
	View  []string // the arguments by which this program is a view
	Env   []string // for it, beside what this process has
	Log   *slog.Logger

	Unmount func() error                // ends the mount, unless it is in use
	Daemon  func(context.Context) error // sees to it that a daemon runs

	held      held
	serves    bool // the view says so
	served    bool // one of them did
	terminate bool // a view got the signal when it didn't know it yet
}

// held is what a view has left for its successor.
type held struct {
	state []byte
	files []*os.File
}

func (h *held) close() {
	for _, f := range h.files {
		f.Close()
	}
	*h = held{}
}

// errGivenUp says why a mount ends that nobody has ended.
var errGivenUp = errors.New("its users get errors from here on, until it is unmounted")

// Run starts the first view and returns when the mount has ended. What terminate gets is handed on to the view.
func (h *Holder) Run(terminate <-chan os.Signal) error {
	defer func() { h.held.close() }()
	var deaths []time.Time
	starts := 0
	for {
		begun := time.Now()
		how, err := h.view(terminate)
		if err == nil && how.Success() {
			return nil
		}
		if !h.served { // then whoever waits for it is told, and what it began is undone by them
			return fmt.Errorf("the view ended before the mount could be used: %w", ended(how, err))
		}
		killed := false
		if how != nil {
			ws, ok := how.Sys().(syscall.WaitStatus)
			h.terminate = ok && ws.Signaled() && ws.Signal() == syscall.SIGTERM
			killed = ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
		}
		switch {
		case h.serves:
			starts = 0
		case !killed: // by somebody else, who may come to an end
			starts++
		}
		deaths = append(deaths, time.Now())
		for time.Since(deaths[0]) > deathSpan {
			deaths = deaths[1:]
		}
		h.Log.Warn("a view ended; another takes over", "how", ended(how, err), "served", h.serves, "for", time.Since(begun).Round(time.Millisecond), "within the last minute", len(deaths))
		if len(deaths) > maxDeaths || starts >= maxStarts {
			return fmt.Errorf("views end again and again, the mount with them: %w", errGivenUp)
		}
		time.Sleep(pause(len(deaths), starts))
	}
}

// pause is how long to wait after so many deaths, and so many starts in a row that came to nothing.
func pause(deaths, starts int) time.Duration {
	if starts > 1 {
		return min(maxPause<<(starts-2), maxRetry)
	}
	if deaths <= freeDeaths {
		return 0
	}
	return min(minPause<<min(deaths-freeDeaths-1, 10), maxPause)
}

// ended says how a view ended.
func ended(how *os.ProcessState, err error) error {
	if err != nil {
		return err
	}
	return errors.New(how.String())
}

// view runs a view to its end.
func (h *Holder) view(terminate <-chan os.Signal) (*os.ProcessState, error) {
	h.serves = false
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	cmd, err := h.start(theirs)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	if err := send(ours, kindBegin, h.held.state, h.held.files); err != nil {
		h.Log.Error("telling a view what to serve", "err", err) // it sees that it isn't told, and ends
	}
	over := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case s := <-terminate:
				_ = cmd.Process.Signal(s) // it may just have ended
			case <-over:
				return
			}
		}
	}()
	h.serve(ours, cmd.Process)
	err = cmd.Wait()
	close(over)
	<-passed
	if cmd.ProcessState == nil {
		return nil, err
	}
	return cmd.ProcessState, nil
}

func (h *Holder) start(link *os.File) (*exec.Cmd, error) {
	// this very program, even if another has its name by now: what one view leaves the next one understands
	cmd := exec.Command("/proc/self/exe", h.View...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), h.Env...)
	cmd.Stdin, cmd.Stderr = h.Task, os.Stderr
	ready := h.Ready
	if ready == nil {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		defer null.Close()
		ready = null
	}
	cmd.ExtraFiles = []*os.File{link, ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // who ends a group of processes doesn't end both
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the view: %w", err)
	}
	return cmd, nil
}

// serve does what the view asks for until it has ended.
func (h *Holder) serve(conn *net.UnixConn, view *os.Process) {
	ctx, cancel := context.WithCancel(context.Background())
	var errands sync.WaitGroup
	// what is asked for more than once while it is being done is done once more
	unmount, daemon := make(chan struct{}, 1), make(chan struct{}, 1)
	errands.Go(func() {
		for range unmount {
			if err := h.Unmount(); err != nil {
				h.Log.Warn("unmounting", "err", err)
			}
		}
	})
	errands.Go(func() {
		failed := false
		for range daemon {
			err := h.Daemon(ctx)
			if err != nil && ctx.Err() == nil && !failed { // it's asked for again and again
				h.Log.Warn("starting a daemon", "err", err)
			}
			failed = err != nil
			_ = send(conn, kindDaemon, nil, nil) // a view that has ended doesn't hear it
		}
	})
	h.listen(conn, view, unmount, daemon)
	cancel()
	close(unmount)
	close(daemon)
	errands.Wait()
}

// enter makes an entry in c unless there is one.
func enter(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// listen takes what the view says until it has ended.
func (h *Holder) listen(conn *net.UnixConn, view *os.Process, unmount, daemon chan<- struct{}) {
	for {
		kind, state, files, err := receive(conn)
		if err != nil {
			return // the view has ended; what it left before is in the socket, and was read
		}
		switch kind {
		case kindKeep:
			h.held.close()
			h.held = held{state, files}
		case kindServes:
			h.serves, h.served = true, true
			if h.terminate {
				_ = view.Signal(syscall.SIGTERM)
				h.terminate = false
			}
		case kindUnmount:
			enter(unmount)
		case kindDaemon:
			enter(daemon)
		}
	}
}

// Terminate gives the signal that ends a mount, for Run, also if it came before and ended ctx; and has those ignored that a session sends.
func Terminate(ctx context.Context) <-chan os.Signal {
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGINT)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	if ctx.Err() != nil {
		select {
		case c <- syscall.SIGTERM:
		default:
		}
	}
	return c
}
