package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/fusefs"
)

func mountCommand(cacheDir *string) *cobra.Command {
	var o cli.OpenOptions
	var p profileFlags
	var noFill, foreground, allowOther, debug bool
	var via string
	var ioTimeout time.Duration
	cmd := &cobra.Command{
		Use:   "mount REF DIR",
		Short: "Show an image as a folder",
		Long: `Mount shows the image REF on the folder DIR, read-only, as soon as its layers' tables of contents are known;
what is read is fetched then, and the rest in the background. REF is a name as docker takes it
(python:3.12, host:port/name:tag, name@sha256:…), or oci:FOLDER[:TAG].`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[1]
			if err := checkDir(dir); err != nil {
				return err
			}
			if ioTimeout <= 0 {
				return fmt.Errorf("mounting: --io-timeout %v: want more than nothing", ioTimeout)
			}
			if err := checkVia(via, debug); err != nil {
				return err
			}
			o.CacheDir, o.Fill, o.Profile = *cacheDir, !noFill, p.open()
			c, opened, err := cli.Open(cmd.Context(), "pexfs", args[0], o)
			if err != nil {
				return err
			}
			s := viewSpec{Opened: *opened, Dir: strings.TrimPrefix(cli.MountUser(dir), "mount "), Source: opened.Ref, Fill: !noFill, AllowOther: allowOther, Debug: debug, Via: via, IOTimeout: ioTimeout}
			s.Record = p.replay(cmd.Context(), c, opened)
			if foreground {
				return serveHere(c, s)
			}
			return startView(cmd.Context(), *cacheDir, s)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Platform, "platform", "", "of an image for several: os/arch[/variant] (default this machine's)")
	f.BoolVar(&noFill, "no-fill", false, "fetch only what is read or a profile names, nothing else in the background")
	o.NetworkFlags(cmd)
	f.BoolVar(&foreground, "foreground", false, "serve the mount in this process, until it is unmounted or interrupted")
	f.BoolVar(&allowOther, "allow-other", false, "let other users enter, with the image's permissions enforced")
	f.StringVar(&via, "via", viaAuto, viaUsage)
	f.DurationVar(&ioTimeout, "io-timeout", time.Minute, "how long a read of what is missing waits before it fails with EIO")
	o.Flags(f)
	p.flags(f)
	cmd.MarkFlagsMutuallyExclusive("profile", "no-profile")
	f.BoolVarP(&o.Quiet, "quiet", "q", false, "no progress")
	f.BoolVar(&debug, "debug", false, "log every request (with --foreground)")
	return cmd
}

// checkDir makes sure that there is a folder to mount on, and not what is left of a mount that nobody serves.
func checkDir(dir string) error {
	st, err := os.Stat(dir)
	if err == nil { // the kernel remembers much of a dead mount, but asks this anew
		err = alive(dir)
	}
	if err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("mounting on %s: not a directory", dir)
	}
	return nil
}

// alive is an error that wraps ENOTCONN where dir is a mount that nobody serves.
func alive(dir string) error {
	var fs unix.Statfs_t
	for {
		err := unix.Statfs(dir, &fs)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &os.PathError{Op: "statfs", Path: dir, Err: err}
		}
	}
}

func umountCommand(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use: "umount DIR", Aliases: []string{"unmount"}, Short: "End a mount (umount(8) and fusermount3 -u do the same)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			user := cli.MountUser(args[0])
			if err := fusefs.Unmount(args[0]); err != nil {
				return err
			}
			return awaitEnd(cmd.Context(), *cacheDir, user)
		},
	}
}

// awaitEnd waits a while for a view whose mount has ended to give up its lease, so that the image can be removed then.
func awaitEnd(ctx context.Context, cacheDir, user string) error {
	c, err := daemon.NewClient(cacheDir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for wait := time.Millisecond; ; wait *= 2 {
		st, err := c.Status(ctx)
		if err != nil {
			return nil // there is no daemon to hold a lease
		}
		held := slices.ContainsFunc(st.Images, func(im daemon.ImageStatus) bool { return slices.Contains(im.Users, user) })
		if !held {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
