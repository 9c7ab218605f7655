package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/fusefs"
)

// A view that has a holder gives up its rights before it looks at the image: it has mounted then, or another view has. Only where the kernel
// is to mount the image does that come first, since what the kernel may mount is known when the image was looked at.

// prepare does what needs rights that the view hasn't got afterwards, if it can be done without a look at the image.
func (m *mounter) prepare() error {
	if !m.link.Held() || m.left == nil && m.mayKernel() {
		return nil
	}
	if m.left == nil {
		var err error
		if m.dev, err = fusefs.NewDevice(m.Dir, m.mountOptions()); err != nil {
			return err // as for all that fails from here on: whoever started the holder unmounts what nobody serves
		}
	}
	return m.confine()
}

// confine leaves this process the image to read, and the daemon's socket. As root's it can open the image's files as before, which may be
// another user's, until settle is called.
func (m *mounter) confine() error {
	if m.confined {
		return nil
	}
	what := m.Opened.Dir
	if m.File != "" {
		what = m.File
	}
	m.confined = true
	_, err := confine.Self(confine.Needs{
		Read:         []string{what},
		Devices:      []string{"/dev/fuse", os.DevNull}, // early kernels want the first opened for each server; go-fuse opens the other later
		Capabilities: []int{unix.CAP_DAC_READ_SEARCH},
	})
	return err
}

// settle gives up what is left, after the image was opened and shown.
func (m *mounter) settle() error {
	if !m.link.Held() {
		return nil
	}
	if err := m.confine(); err != nil {
		return err
	}
	return confine.DropCapabilities()
}

// unmount ends the mount, unless it is in use; where this process is confined, its holder does.
func (m *mounter) unmount(srv shown) error {
	if m.link.Held() {
		return m.link.Unmount()
	}
	return srv.Unmount()
}

// ensure gives the way in which a daemon is started: for a confined process its holder does, since the daemon would be confined as well.
func (m *mounter) ensure(c *daemon.Client) func(context.Context) error {
	if !m.link.Held() {
		return c.Ensure
	}
	return func(ctx context.Context) error {
		if _, err := c.Ping(ctx); !errors.Is(err, daemon.ErrGone) {
			return err
		}
		return m.link.Daemon(ctx)
	}
}

// ensureUse is what a holder runs to have a daemon started.
const ensureUse = "ensure-daemon"

// startDaemon has a daemon started by another process, which may read what daemons say.
func startDaemon(ctx context.Context, cacheDir string) error {
	c := exec.CommandContext(ctx, "/proc/self/exe", ensureUse, "--cache-dir", cacheDir)
	c.Args[0], c.Dir = os.Args[0], "/"
	_, err := c.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

func ensureCommand(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use: ensureUse, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := daemon.NewClient(*cacheDir)
			if err != nil {
				return err
			}
			return c.Ensure(cmd.Context())
		},
	}
}
