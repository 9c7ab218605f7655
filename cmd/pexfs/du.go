package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
)

func pinCommand(cacheDir *string, pinned bool) *cobra.Command {
	cmd := &cobra.Command{
		Use: "pin IMAGE…", Short: "Keep images in the cache though nobody uses them", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			for _, a := range args {
				im, err := cli.Find(st, a)
				if err != nil {
					return err
				}
				if err := c.Pin(cmd.Context(), im.Key, pinned); err != nil {
					return err
				}
			}
			return nil
		},
	}
	if !pinned {
		cmd.Use, cmd.Short = "unpin IMAGE…", "Let images go from the cache when nobody uses them and there is no room"
	}
	return cmd
}

func duCommand(cacheDir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "du", Short: "Show what the cache takes on disk, and what it may take", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			u, err := c.Usage(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(u)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tKEY\tSTATE\tON DISK\tLAST USE\tUSED BY")
			for _, im := range u.Images {
				users := im.Users
				if im.Pinned {
					users = append([]string{"pinned"}, users...)
				}
				for i, n := range names(im.ImageStatus) {
					disk := cli.Bytes(im.Disk)
					if i > 0 {
						disk = "\"" // the same
					}
					fmt.Fprintf(w, "%s\t%.12s\t%s\t%s\t%s\t%s\n", n, im.Key, im.State, disk, im.Used.Local().Format(time.DateTime), strings.Join(users, ", "))
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
			fmt.Println()
			for _, row := range []struct {
				name string
				n    int64
			}{{"manifests", u.Blobs}, {"layers", u.Layers}, {"profiles", u.Profiles}, {"under way", u.Tmp}, {"kernels, logs", u.Other}, {"total", u.Total}, {"budget", u.Budget}} {
				fmt.Printf("%-14s %s\n", row.name, cli.Bytes(row.n))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, in bytes")
	return cmd
}

func gcCommand(cacheDir *string) *cobra.Command {
	var req daemon.GCRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove from the cache what nothing refers to", Args: cobra.NoArgs,
		Long: `Gc removes manifests, references and records of images that are gone, and what a sudden end has left of layers and files; the daemon
does so by itself, too. With --all it removes every image that is neither in use nor pinned.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			res, err := c.GC(cmd.Context(), req)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(res)
			}
			for _, g := range res.Removed {
				fmt.Printf("%s %.80s: %s\n", g.What, g.Name, cli.Bytes(g.Bytes))
			}
			what := "freed"
			if req.DryRun {
				what = "would free"
			}
			fmt.Printf("%s %s\n", what, cli.Bytes(res.Bytes))
			return nil
		},
	}
	cmd.Flags().BoolVarP(&req.DryRun, "dry-run", "n", false, "only tell")
	cmd.Flags().BoolVarP(&req.All, "all", "a", false, "remove images that nobody uses, too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
