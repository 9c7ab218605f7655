package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/lazy/store"
)

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func names(im daemon.ImageStatus) []string {
	if len(im.Refs) == 0 {
		return []string{"sha256:" + im.Manifest}
	}
	return im.Refs
}

// day is a time for people; "-" where it isn't known.
func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

func lsCommand(cacheDir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"images"}, Short: "List the images of the cache", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := getStatus(cmd, *cacheDir)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(st.Images)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tKEY\tSTATE\tPRESENT\tSIZE\tCREATED\tASKED")
			for _, im := range st.Images {
				for i, n := range names(im) {
					var asked time.Time
					if i < len(im.Tags) {
						asked = im.Tags[i].Asked
					}
					fmt.Fprintf(w, "%s\t%.12s\t%s\t%d%%\t%s\t%s\t%s\n", n, im.Key, im.State, percent(im), cli.Bytes(im.Size), day(im.Created), day(asked))
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func percent(im daemon.ImageStatus) int64 { return im.Present * 100 / max(im.Size, 1) }

func getStatus(cmd *cobra.Command, cacheDir string) (*daemon.Status, error) {
	c, err := daemon.Connect(cmd.Context(), cacheDir)
	if err != nil {
		return nil, err
	}
	return c.Status(cmd.Context())
}

func statusCommand(cacheDir *string) *cobra.Command {
	var asJSON, why bool
	cmd := &cobra.Command{
		Use: "status [IMAGE|DIR]", Short: "Show what is present of each image and layer, and who reads it", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if why {
				if len(args) != 1 {
					return errors.New("--why: of which image or folder?")
				}
				return printWhy(cmd.Context(), *cacheDir, args[0], asJSON)
			}
			st, err := getStatus(cmd, *cacheDir)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				im, err := cli.Find(st, args[0])
				if err != nil {
					return err
				}
				st.Images = []daemon.ImageStatus{*im}
			}
			if asJSON {
				return printJSON(st)
			}
			fmt.Printf("daemon %d, cache %s\n", st.PID, st.Cache)
			if st.Trouble != "" {
				fmt.Printf("filling rests, and what is read isn't kept: %s\n", st.Trouble)
			}
			for _, o := range st.Opening {
				fmt.Printf("opening %s: %s", o.Ref, o.Event.Stage)
				if o.Event.Total > 0 {
					fmt.Printf(", %s of %s", cli.Bytes(o.Event.Bytes), cli.Bytes(o.Event.Total))
				}
				fmt.Println()
			}
			for _, im := range st.Images {
				printImage(im)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&why, "why", false, "tell which files of an image were waited for and how long, and what was fetched for whom")
	return cmd
}

func printImage(im daemon.ImageStatus) {
	fmt.Println()
	for _, n := range names(im) {
		fmt.Println(cli.OneLine(n))
	}
	fmt.Printf("  key       %s\n", im.Key)
	state := string(im.State)
	if im.Filling {
		state += ", filling"
	}
	fmt.Printf("  state     %s: %s of %s (%d%%), %d of %d blocks, %d inodes\n", state, cli.Bytes(im.Present), cli.Bytes(im.Size), percent(im), im.Present/store.BlockSize, im.Size/store.BlockSize, im.Inodes)
	if im.Root != "" {
		fmt.Printf("  root      %s\n", im.Root)
	}
	if im.Error != "" {
		fmt.Printf("  error     %s\n", cli.OneLine(im.Error))
	}
	for _, l := range im.Layers {
		how := "streamed whole"
		if l.TOC {
			how = "by its table of contents"
			if im.State == store.Lazy {
				how += fmt.Sprintf(", %s of %s of visible content present", cli.Bytes(l.Present), cli.Bytes(l.Visible))
			}
		}
		fmt.Printf("  layer     %.19s %s, %s\n", l.Digest, cli.Bytes(l.Size), how)
	}
	for _, u := range im.Users {
		fmt.Printf("  used by   %s\n", cli.OneLine(u))
	}
}

func waitCommand(cacheDir *string) *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use: "wait IMAGE|DIR", Short: "Complete an image and wait until it is sealed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			im, err := cli.Lookup(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			p := cli.NewProgress("pexfs", os.Stderr, quiet)
			defer p.End()
			return c.Wait(cmd.Context(), im.Key, func(s daemon.ImageStatus) {
				if asJSON {
					json.NewEncoder(os.Stdout).Encode(s)
					return
				}
				p.Image(s)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a line of JSON for each step")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return cmd
}

func rmCommand(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE…", Short: "Remove images from the cache, unless they are in use or pinned", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			for _, a := range args {
				st, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				im, err := cli.Find(st, a)
				if err != nil {
					return err
				}
				if err := c.Remove(cmd.Context(), im.Key, im.Refs...); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
