package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/pexfs/pex/lazy/store"
)

// askStop asks the daemon that there is to end.
func (c *Client) askStop(ctx context.Context) error {
	resp, err := c.ask(ctx, http.MethodPost, "/v1/stop", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Stop ends the daemon and waits until it has let go of the folder. Another one may have it then.
func (c *Client) Stop(ctx context.Context) error {
	st, err := OpenStore(c.dir)
	if err != nil {
		return err
	}
	pid := c.holder()
	ctx, stop := c.attend(ctx)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, endTime, fmt.Errorf("it has not ended for %v (process %s)", endTime, pid))
	defer cancel()
	if err := c.askStop(ctx); err != nil {
		return err
	}
	for {
		held, err := locked(st)
		if err != nil || !held || c.holder() != pid {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Restart replaces the daemon, or starts one, by this program's own; or has systemd start the next, if systemd has started it. It tells what
// they are; old.PID is 0 if there was none.
func (c *Client) Restart(ctx context.Context) (old, now Pong, err error) {
	old, err = c.Ping(ctx)
	if err != nil && !errors.Is(err, ErrGone) {
		return old, now, err
	}
	users := c.users(ctx)
	if old.Activated {
		if err := c.Stop(ctx); err != nil && !errors.Is(err, ErrGone) {
			return old, now, err
		}
		if now, err = c.Ping(ctx); err == nil {
			c.awaitUsers(ctx, users)
		}
		return old, now, err
	}
	st, err := OpenStore(c.dir)
	if err != nil {
		return old, now, err
	}
	d, err := start(st, "--replace")
	if err != nil {
		return old, now, err
	}
	defer d.log.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, startTime+endTime, errors.New("it does not answer"))
	defer cancel()
	err = c.await(ctx, d, func(p Pong) bool {
		now = p
		return p.PID == d.pid
	})
	if err == nil {
		c.awaitUsers(ctx, users)
	}
	return old, now, err
}

// returnTime is how long those who use images may take to come back to the next daemon. They do by themselves, whoever waits.
const returnTime = 3 * time.Second

// users are those who hold leases, as far as it can be known at once.
func (c *Client) users(ctx context.Context) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	st, err := c.Status(ctx)
	if err != nil {
		return nil
	}
	all := make(map[string]bool)
	for _, im := range st.Images {
		for _, u := range im.Users {
			all[u] = true
		}
	}
	return all
}

// awaitUsers waits until these have come back, so that they can be named to the next daemon.
func (c *Client) awaitUsers(ctx context.Context, want map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	for len(want) > 0 && ctx.Err() == nil {
		for u := range c.users(ctx) {
			delete(want, u)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// lock makes this process the folder's daemon; to replace another it asks that one to end, and whoever comes before this one. What it does
// in the folder it does through as, but it asks as who this process is: whose socket it is goes by that.
func (cf Config) lock(ctx context.Context, st *store.Store, as func(func() error) error) error {
	held := as(st.Lock)
	if !errors.Is(held, store.ErrLocked) {
		return held
	}
	c, err := NewClient(st.Dir())
	if err != nil {
		return err
	}
	if !cf.Replace {
		pctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if p, err := c.Ping(pctx); err == nil {
			held = fmt.Errorf("%w, version %s", held, p.Version)
		}
		return held
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	var asked time.Time
	for {
		if time.Since(asked) > time.Second/4 {
			actx, cancel := context.WithTimeout(ctx, time.Second)
			err := c.askStop(actx)
			cancel()
			cf.Log.Info("the daemon is asked to end", "pid", c.holder(), "err", err)
			asked = time.Now()
		}
		if err := as(st.Lock); !errors.Is(err, store.ErrLocked) || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond) // sooner than one who starts another
	}
}

// tell tells systemd, if it listens.
func tell(log *slog.Logger, state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		log.Warn("telling systemd", "state", state, "err", err)
	}
}
