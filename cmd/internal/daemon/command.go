package daemon

import (
	"errors"
	"fmt"
	"net"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"
)

// Command is `daemon`, which each program has: it starts itself as its own daemon.
func Command(cacheDir *string, version string) *cobra.Command {
	var idle time.Duration
	var logs logFlags
	var bound, metricsAddr, user string
	var confined bool
	var replace bool
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon of a cache folder in the foreground (other commands start it as they need it)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := setFromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			log, err := logs.logger()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
			sockets, err := inherited()
			if err != nil {
				return err
			}
			return Run(ctx, Config{CacheDir: *cacheDir, CacheSize: bound, Idle: idle, Log: log, LogFile: logs.file, User: user, Free: !confined, Metrics: metricsAddr, MetricsAsked: cmd.Flags().Changed(metricsFlag), Version: version, Replace: replace, Sockets: sockets})
		},
	}
	cmd.Flags().DurationVar(&idle, "idle", 5*time.Minute, "end after this long with nothing to do; 0: never")
	cmd.Flags().StringVar(&bound, "cache-size", "", "most that the cache takes on disk, kept for the daemons to come; auto leaves a tenth of the disk free (default $PEX_CACHE_SIZE, what was kept, or auto)")
	cmd.Flags().StringVar(&metricsAddr, metricsFlag, "", "answer /metrics and /healthz at this address, too: :PORT on loopback, or HOST:PORT; they are always on the daemon's socket (default $PEX_METRICS_LISTEN, if it is free)")
	cmd.Flags().StringVar(&user, "user", "", "as root: become this user, who gets the cache folder (default: whose it is)")
	cmd.Flags().BoolVar(&confined, "confine", true, "give up what a daemon doesn't need: capabilities, executing programs, writing outside of the cache folder, opening ports")
	logs.flags(cmd.Flags())
	cmd.Flags().BoolVar(&replace, "replace", false, "end the daemon that the folder has, and take its place")
	cmd.AddCommand(keyringCommand(), restartCommand(cacheDir), &cobra.Command{
		Use:   "stop",
		Short: "End the daemon; mounts and machines go on, and start another when they need one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := NewClient(*cacheDir)
			if err != nil {
				return err
			}
			if err := c.Stop(cmd.Context()); err != nil {
				return fmt.Errorf("stopping the daemon: %w", err)
			}
			return nil
		},
	})
	return cmd
}

func restartCommand(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "restart",
		Short: "Replace the daemon by this program's own; mounts and machines go on, and what is being fetched is fetched by the next one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := NewClient(*cacheDir)
			if err != nil {
				return err
			}
			old, now, err := c.Restart(cmd.Context())
			if err != nil {
				return fmt.Errorf("restarting the daemon: %w", err)
			}
			if old.PID == 0 && old.Version == "" {
				fmt.Printf("none ran; now process %d, version %s\n", now.PID, now.Version)
				return nil
			}
			fmt.Printf("was process %d, version %s; now process %d, version %s\n", old.PID, old.Version, now.PID, now.Version)
			return nil
		},
	}
}

// inherited are the listening unix sockets that systemd has passed on.
func inherited() ([]net.Listener, error) {
	all, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("taking systemd's sockets: %w", err)
	}
	for _, l := range all {
		if _, ok := l.(*net.UnixListener); !ok {
			return nil, errors.New("taking systemd's sockets: one is not a unix socket that listens")
		}
	}
	return all, nil
}
