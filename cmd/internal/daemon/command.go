package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Command is `daemon`, which each program has: it starts itself as its own daemon.
func Command(cacheDir *string) *cobra.Command {
	var idle time.Duration
	var verbose bool
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon of a cache folder in the foreground (other commands start it as they need it)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			return Run(ctx, Config{CacheDir: *cacheDir, Idle: idle, Log: log})
		},
	}
	cmd.Flags().DurationVar(&idle, "idle", 5*time.Minute, "end after this long with nothing to do; 0: never")
	cmd.Flags().BoolVar(&verbose, "debug", false, "log more")
	cmd.AddCommand(&cobra.Command{
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
