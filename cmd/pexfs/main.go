// Command pexfs shows container images as folders before they are downloaded, and looks after the cache they fill.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "pexfs: interrupted")
		return 130
	}
	status, err := exitStatus(err)
	if err != nil {
		cli.PrintError("pexfs", err)
	}
	return status
}

func root() *cobra.Command {
	var cacheDir string
	cmd := &cobra.Command{
		Use:           "pexfs",
		Short:         "Container images as folders, before they are downloaded",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			if cacheDir == "" {
				cacheDir, err = daemon.DefaultCacheDir()
			}
			return err
		},
	}
	cmd.PersistentFlags().StringVar(&cacheDir, "cache-dir", "", "cache folder (default $PEX_CACHE_DIR, or pex in the user's cache folder)")
	cmd.AddCommand(mountCommand(&cacheDir), holdCommand(&cacheDir), viewCommand(&cacheDir), ensureCommand(&cacheDir), umountCommand(&cacheDir), lsCommand(&cacheDir), statusCommand(&cacheDir),
		waitCommand(&cacheDir), rmCommand(&cacheDir), pinCommand(&cacheDir, true), pinCommand(&cacheDir, false), duCommand(&cacheDir), gcCommand(&cacheDir), fsckCommand(&cacheDir), imageCommand(&cacheDir), profileCommand(&cacheDir), daemon.Command(&cacheDir, cli.Version()), registryCommand(), convertCommand(),
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			Run: func(*cobra.Command, []string) { fmt.Println("pexfs", cli.Version()) },
		})
	return cmd
}
