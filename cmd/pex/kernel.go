package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/vm/kernel"
	"github.com/pexfs/pex/vm/qemu"
)

func kernelCommand(cacheDir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "kernel", Short: "Look after the kernels that machines boot", Args: cobra.NoArgs}
	cmd.AddCommand(
		&cobra.Command{
			Use: "fetch", Short: "Get Debian's newest kernel for virtual machines and make it the default", Args: cobra.NoArgs,
			Long: `Fetch downloads Debian's newest kernel for virtual machines with this host's apt, which checks its signature, and
unpacks it into the cache folder. Nothing is installed, and no privileges are needed.`,
			RunE: func(cmd *cobra.Command, _ []string) error {
				dir := kernelDir(*cacheDir)
				return interruptible(cmd.Context(), func(ctx context.Context) error {
					_, err := kernel.Fetch(ctx, dir, func(s string) { fmt.Fprintf(os.Stderr, "%s: %s\n", program, s) })
					if errors.Is(err, kernel.ErrCantFetch) {
						err = hinted{err, "name a kernel of your own with --kernel or $" + kernelEnv}
					}
					return err
				})
			},
		},
		&cobra.Command{
			Use: "ls", Aliases: []string{"list"}, Short: "List the kernels of the cache folder and say which one machines boot", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return listKernels(*cacheDir) },
		},
	)
	return cmd
}

func listKernels(cacheDir string) error {
	list, def, err := kernel.List(kernelDir(cacheDir))
	if err != nil {
		return err
	}
	for i, k := range list {
		mark := " "
		if i == def {
			mark = "*"
		}
		if _, err := fmt.Fprintf(os.Stdout, "%s %s\t%s\n", mark, k.Version, k.Path); err != nil {
			return fmt.Errorf("listing kernels: %w", err)
		}
	}
	k, err := findKernel(cacheDir, "")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(os.Stdout, "machines boot %s\n", k.Path); err != nil {
		return fmt.Errorf("listing kernels: %w", err)
	}
	return nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions of pex and of the machine monitor", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			monitor := "none found"
			if q, err := qemu.Find(qemu.Options{}); err == nil {
				caps, err := q.Probe(cmd.Context())
				if err != nil {
					return err
				}
				monitor = fmt.Sprintf("QEMU %s (%s)", caps.Version, q.Path())
			}
			_, err := fmt.Fprintf(os.Stdout, "%s %s\nmachine monitor: %s\n", program, cli.Version(), monitor)
			return err
		},
	}
}
