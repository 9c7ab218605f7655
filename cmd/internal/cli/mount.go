package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/lazy/store"
)

// leaseWait bounds how long a daemon that has just been started is given to hear of a mount: its view takes a lease again at once, or within
// 5 s where all of the image is there.
const leaseWait = 10 * time.Second

// Lookup finds an image of the daemon's cache as Find does. Where a folder is mounted on that the daemon hasn't heard of, it is given time to.
func Lookup(ctx context.Context, c *daemon.Client, name string) (*daemon.ImageStatus, error) {
	limit, cancel := context.WithTimeout(ctx, leaseWait)
	defer cancel()
	for {
		st, err := c.Status(ctx)
		if err != nil {
			return nil, err
		}
		im, err := Find(st, name)
		if err == nil || !errors.Is(err, store.ErrNotCached) || !mountPoint(name) {
			return im, err
		}
		select {
		case <-limit.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// mountPoint tells whether something is mounted on dir.
func mountPoint(dir string) bool {
	var at, above syscall.Stat_t
	fi, err := os.Lstat(dir)
	return err == nil && fi.IsDir() && syscall.Lstat(dir, &at) == nil && syscall.Lstat(filepath.Join(dir, ".."), &above) == nil && at.Dev != above.Dev
}

// MountUser is what status calls the view that is mounted on dir.
func MountUser(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(real, filepath.Base(abs))
	}
	return "mount " + abs
}
