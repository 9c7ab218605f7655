package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/lazy/store"
)

const (
	startTime = 30 * time.Second // that a daemon may take to answer, while many start on a busy machine
	endTime   = 30 * time.Second // to end
	pingTime  = 10 * time.Second // to answer a ping; one that takes longer hangs
)

// apiVersion is that of the paths and messages in api.go. Programs of other builds get on with a daemon as long as they have the same; ping
// and stop are the same in all.
const apiVersion = 1

// Pong is what a daemon says of itself.
type Pong struct {
	PID       int    `json:"pid"`
	Version   string `json:"version"` // of the program
	API       int    `json:"api"`
	Activated bool   `json:"activated,omitempty"` // systemd started it, and starts the next one
}

func (s *server) ping(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(Pong{os.Getpid(), s.version, apiVersion, s.activated})
}

// hungError is the error where a daemon is there and doesn't answer.
type hungError struct{ pid string }

func (e hungError) Error() string {
	return fmt.Sprintf("the daemon (process %s) has not answered for %v", e.pid, pingTime)
}

// Hint is what to do about it.
func (e hungError) Hint() string {
	return fmt.Sprintf("if it doesn't go on by itself, `kill -9 %s` ends it; mounts and machines go on with another", e.pid)
}

// otherError is the error where a daemon speaks another version of the API.
type otherError struct{ Pong }

func (e otherError) Error() string {
	return fmt.Sprintf("the daemon (process %d, version %s) has version %d of the API, this program has %d", e.PID, e.Version, e.API, apiVersion)
}

func (e otherError) Hint() string { return "`pexfs daemon restart` replaces it by this program's own" }

// Ping asks the daemon what it is. It waits for pingTime at most.
func (c *Client) Ping(ctx context.Context) (p Pong, err error) {
	pctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	resp, err := c.ask(pctx, http.MethodGet, "/v1/ping", nil)
	if err == nil {
		defer resp.Body.Close()
		err = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&p)
		if errors.Is(err, io.EOF) { // it says nothing of itself: an old one
			p, err = Pong{Version: "unknown", API: apiVersion}, nil
		} else if err != nil {
			err = fmt.Errorf("%w: its answer broke off: %w", ErrGone, err)
		}
	}
	if err != nil && ctx.Err() == nil && pctx.Err() != nil {
		err = hungError{c.holder()}
	}
	return p, err
}

// answers is nil if a daemon is there with whom this program gets on.
func (c *Client) answers(ctx context.Context) error {
	p, err := c.Ping(ctx)
	if err == nil && p.API != apiVersion {
		err = otherError{p}
	}
	return err
}

// Connect makes a client and sees to it that a daemon runs: where none answers it starts this program's own `daemon`. Nor does it matter to
// the client's user when the daemon ends: what is asked for is asked of the next one.
func Connect(ctx context.Context, cacheDir string) (*Client, error) {
	c, err := NewClient(cacheDir)
	if err != nil {
		return nil, err
	}
	c.ensures = true
	return c, c.Ensure(ctx)
}

// persist calls f, and again with each of the next daemons while the one it asks ends. Several that end at once are a reason to give up.
func (c *Client) persist(ctx context.Context, f func() error) error {
	const times, maxPause, atOnce = 8, time.Second, 2 * time.Second
	pause := 10 * time.Millisecond
	for i := 1; ; i++ {
		begun := time.Now()
		err := f()
		if time.Since(begun) > atOnce {
			i = 1
		}
		if !c.ensures || i == times || !errors.Is(err, ErrGone) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause): // the one that ends may answer still
		}
		pause = min(2*pause, maxPause)
		if err := c.Ensure(ctx); err != nil {
			return err
		}
	}
}

// attend makes a context that ends when the daemon hangs.
func (c *Client) attend(ctx context.Context) (context.Context, context.CancelFunc) {
	actx, cancel := context.WithCancelCause(ctx)
	go func() {
		t := time.NewTicker(pingTime)
		defer t.Stop()
		for {
			select {
			case <-actx.Done():
				return
			case <-t.C:
			}
			var hung hungError
			if _, err := c.Ping(actx); errors.As(err, &hung) {
				cancel(hung)
				return
			}
		}
	}()
	return actx, func() { cancel(context.Canceled) }
}

// Ensure starts the daemon unless one answers.
func (c *Client) Ensure(ctx context.Context) error {
	if err := c.answers(ctx); !errors.Is(err, ErrGone) {
		return err
	}
	// this also finds what is wrong with the folder, and says it to the user rather than to a log
	st, err := OpenStore(c.dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("it does not answer"))
	defer cancel()
	done, err := c.turn(ctx, st)
	if err != nil || done == nil {
		return err
	}
	defer done()
	for i := 1; ; i++ {
		err := c.startOne(ctx, st)
		if !errors.Is(err, errNotThere) || i == startTries {
			return err
		}
		// another one may hold the folder: it is just starting without us, or just ending
		if done, e := c.settled(ctx, st); done || e != nil {
			return e
		}
	}
}

// startTries is how often a daemon is started that ends at once.
const startTries = 3

// errNotThere is wrapped where a daemon ended before it answered.
var errNotThere = errors.New("it ended")

func (c *Client) startOne(ctx context.Context, st *store.Store) error {
	d, err := start(st)
	if err != nil {
		return err
	}
	defer d.log.Close()
	return c.await(ctx, d, func(Pong) bool { return true })
}

// settled waits until a daemon answers, or nobody holds the folder.
func (c *Client) settled(ctx context.Context, st *store.Store) (answers bool, err error) {
	for {
		if err := c.answers(ctx); !errors.Is(err, ErrGone) {
			return true, err
		}
		if held, err := locked(st); err != nil || !held {
			return false, err
		}
		select {
		case <-ctx.Done():
			by, err := st.Holder()
			if err != nil {
				return false, err
			}
			return false, fmt.Errorf("starting the daemon: the folder is held by %s: %w", by, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// turn waits until it is this process's turn to start a daemon: of many that want to, one does. done ends it, and is nil where another has
// started one.
func (c *Client) turn(ctx context.Context, st *store.Store) (done func(), err error) {
	f, err := openOwn(filepath.Join(st.Dir(), "start"), os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("starting the daemon: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil && err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("starting the daemon: locking: %w", err)
		}
		if answer := c.answers(ctx); !errors.Is(answer, ErrGone) {
			f.Close()
			return nil, answer
		}
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("starting the daemon: %w", context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// starting is a daemon that is being started.
type starting struct {
	pid   int
	log   *os.File
	ended chan error
}

func start(st *store.Store, args ...string) (*starting, error) {
	if _, _, err := envSize(); err != nil {
		return nil, fmt.Errorf("starting the daemon: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting the daemon: %w", err)
	}
	log, err := OpenLog(st.Dir(), daemonLog)
	if err != nil {
		return nil, fmt.Errorf("starting the daemon: %w", err)
	}
	cmd := exec.Command(exe, append([]string{"daemon", "--log-file", log.Name(), "--cache-dir", st.Dir()}, args...)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		log.Close()
		return nil, fmt.Errorf("starting the daemon: %w", err)
	}
	d := &starting{cmd.Process.Pid, log, make(chan error, 1)}
	go func() { d.ended <- cmd.Wait() }()
	return d, nil
}

// await waits until a daemon answers that is right.
func (c *Client) await(ctx context.Context, d *starting, right func(Pong) bool) error {
	for wait := 2 * time.Millisecond; ; wait = min(wait*5/4, 200*time.Millisecond) { // it takes some 20 ms
		p, err := c.Ping(ctx)
		if err == nil && right(p) {
			if p.API != apiVersion {
				return otherError{p}
			}
			return nil
		}
		var hung hungError
		if errors.As(err, &hung) {
			return err
		}
		select {
		case err := <-d.ended:
			return fmt.Errorf("starting the daemon: %w (%v): see %s", errNotThere, err, d.log.Name())
		case <-ctx.Done():
			return fmt.Errorf("starting the daemon: %w: see %s", context.Cause(ctx), d.log.Name())
		case <-time.After(wait):
		}
	}
}
