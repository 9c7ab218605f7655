package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/view"
	"github.com/pexfs/pex/fusefs"
)

// viewSpec is what a view is told: everything it needs, so that it never asks for more.
type viewSpec struct {
	Opened     daemon.Opened `json:"opened"`
	File       string        `json:"file"` // instead of Opened: an image file
	Dir        string        `json:"dir"`
	Source     string        `json:"source"`
	Fill       bool          `json:"fill"`
	AllowOther bool          `json:"allowOther"`
	Debug      bool          `json:"debug"`
	Via        string        `json:"via"`
	IOTimeout  time.Duration `json:"ioTimeout"` // in ns
	Record     *view.Record  `json:"record"`    // nil: what is read makes no profile
}

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
			if st, err := os.Stat(dir); err != nil {
				return fmt.Errorf("mounting: %w", err)
			} else if !st.IsDir() {
				return fmt.Errorf("mounting on %s: not a directory", dir)
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
				return serveView(cmd.Context(), c, s, func() {})
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

// startView starts a view in a process of its own and waits until it serves or fails.
func startView(ctx context.Context, cacheDir string, s viewSpec) error {
	spec, err := json.Marshal(s)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, "view", "--cache-dir", cacheDir)
	cmd.Stdin = strings.NewReader(string(spec))
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the view: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if string(b) == viewServes {
		return nil
	}
	e := new(daemon.Error)
	if json.Unmarshal(b, e) == nil && e.Text != "" {
		return e
	}
	return fmt.Errorf("the view ended: %v", cmd.Wait())
}

// viewServes is what a view says when its mount can be used. Else it says a daemon.Error.
const viewServes = "serves\n"

func viewCommand(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use: "view", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ready := os.NewFile(3, "ready")
			syscall.CloseOnExec(3)
			var s viewSpec
			if err := json.NewDecoder(os.Stdin).Decode(&s); err != nil {
				return fmt.Errorf("reading the view's task: %w", err)
			}
			c, err := daemon.NewClient(*cacheDir)
			if err == nil {
				signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGINT)
				err = serveView(cmd.Context(), c, s, func() {
					io.WriteString(ready, viewServes)
					ready.Close()
				})
			}
			if err != nil {
				e := &daemon.Error{Text: err.Error()}
				if errors.Is(err, fusefs.ErrNoFUSE) {
					e.Hint = fusefs.Hint
				}
				json.NewEncoder(ready).Encode(e)
			}
			return err
		},
	}
}

// serveView mounts and serves until the mount ends. The end of ctx unmounts, if nobody uses the mount.
func serveView(ctx context.Context, c *daemon.Client, s viewSpec, ready func()) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var srv shown
	var end func() error
	if s.File != "" {
		i, err := openImageFile(s.File)
		if err != nil {
			return err
		}
		end = i.f.Close
		srv, err = showFUSE(i.im, i, s, log)
		if err != nil {
			return errors.Join(err, end())
		}
	} else {
		im, err := view.Attach(context.WithoutCancel(ctx), c, &s.Opened, view.Options{Who: "mount " + s.Dir, Fill: s.Fill, Record: s.Record, IOTimeout: s.IOTimeout})
		if err != nil {
			return err
		}
		end = im.Close
		srv, err = show(im, s, log)
		if err != nil {
			return errors.Join(err, end())
		}
	}
	ready()
	stop := context.AfterFunc(ctx, func() {
		if err := srv.Unmount(); err != nil {
			log.Warn("unmounting", "dir", s.Dir, "err", err)
		}
	})
	defer stop()
	srv.Wait()
	return end()
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
