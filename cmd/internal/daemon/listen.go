package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// door is the daemon's listener: the socket of the cache folder, made by this process or inherited from systemd.
type door struct {
	path string
	log  *slog.Logger

	conns chan net.Conn
	over  chan struct{}
	end   sync.Once
	work  sync.WaitGroup
	all   []net.Listener
}

// listen opens the door. The folder's lock is held, so that whoever made a socket that is there is gone, unless it's inherited.
func listen(path string, inherited []net.Listener, log *slog.Logger) (*door, error) {
	d := &door{path: path, log: log, conns: make(chan net.Conn), over: make(chan struct{})}
	here := false
	for _, l := range inherited {
		here = here || l.Addr().String() == path
		d.take(l)
	}
	if !here {
		if err := d.make(); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

// make makes the socket.
func (d *door) make() error {
	if err := os.Remove(d.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listening: %w", err)
	}
	l, err := net.Listen("unix", d.path)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	if err := os.Chmod(d.path, 0o600); err != nil {
		return fmt.Errorf("listening: %w", errors.Join(err, l.Close()))
	}
	d.take(l)
	return nil
}

// take has connections to l come in.
func (d *door) take(l net.Listener) {
	d.all = append(d.all, l)
	d.work.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // too many descriptors: some will be closed
				d.log.Warn("taking a connection", "err", err)
				select {
				case <-d.over:
					return
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			select {
			case d.conns <- c:
			case <-d.over:
				c.Close()
				return
			}
		}
	})
}

// look calls gone once the socket has been taken away, as clean-up jobs do with old ones: nobody can reach this daemon then, nor start
// another while it holds the folder.
func (d *door) look(ctx context.Context, gone func()) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if _, err := os.Lstat(d.path); errors.Is(err, os.ErrNotExist) {
			d.log.Warn("the socket is gone", "socket", d.path)
			gone()
			return
		}
	}
}

// Accept, Close and Addr make it a net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.over:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error {
	var err error
	d.end.Do(func() {
		close(d.over)
		for _, l := range d.all {
			err = errors.Join(err, l.Close())
		}
		d.work.Wait()
	})
	return err
}

func (d *door) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: d.path} }
