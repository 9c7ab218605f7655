package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// Exit statuses of fsck(8).
const (
	fsckCorrected   = 1
	fsckUncorrected = 4
	fsckFailed      = 8
)

// fsckResult is what fsck says of one image.
type fsckResult struct {
	Key  store.Key `json:"key"`
	Refs []string  `json:"refs"`
	lazy.FsckReport
	Error string `json:"error,omitempty"`
}

func fsckCommand(cacheDir *string) *cobra.Command {
	var noHeal, asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "fsck [IMAGE|DIR…]",
		Short: "Find damaged blocks of cached images and make them anew",
		Long: `Fsck reads all that is present of the images named, or of all, and compares it with their Merkle trees. Damaged metadata is made anew
from what is known of the layers; damaged contents are fetched again, those of layers without a table of contents by
reading the layer once more. Contents that the digests of their layer vouch for stay, whatever the tree says, and a wrong Merkle root is
computed anew. Images may be in use meanwhile. The exit status is fsck(8)'s: 0 nothing found, 1 damage that
was healed, 4 damage that is left, 8 fsck itself failed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return exitError{fsckFailed, err}
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return exitError{fsckFailed, err}
			}
			images := st.Images
			if len(args) > 0 {
				images = nil
			}
			for _, a := range args {
				im, err := cli.Lookup(cmd.Context(), c, a)
				if err != nil {
					return exitError{fsckFailed, err}
				}
				images = append(images, *im)
			}
			p := cli.NewProgress("pexfs", os.Stderr, quiet || asJSON)
			defer p.End()
			status := 0
			for _, im := range images {
				res := fsckResult{Key: im.Key, Refs: im.Refs}
				req := daemon.FsckRequest{Heal: !noHeal}
				if len(im.Refs) > 0 {
					if r, err := ref.Parse(im.Refs[0]); err == nil && r.Transport == ref.Registry {
						if a, err := cli.Credentials(cmd.Context(), r); err == nil {
							req.Ref, req.Auth = im.Refs[0], &a
						}
					}
				}
				res.FsckReport, err = c.Fsck(cmd.Context(), im.Key, req, p.Event)
				if err == nil && res.Healed && im.State == store.Sealed && res.Files == "" {
					err = c.Wait(cmd.Context(), im.Key, p.Image)
				}
				p.End()
				if cmd.Context().Err() != nil {
					return cmd.Context().Err()
				}
				switch {
				case err != nil && res.None():
					status |= fsckFailed
				case err != nil || !res.None() && !res.Healed:
					status |= fsckUncorrected
				case !res.None():
					status |= fsckCorrected
				}
				if err != nil {
					res.Error = err.Error()
				}
				if asJSON {
					if err := json.NewEncoder(os.Stdout).Encode(res); err != nil {
						return err
					}
					continue
				}
				printFsck(im, res, err)
			}
			if status != 0 {
				return exitError{status, nil}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&noHeal, "no-heal", "n", false, "only look")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a line of JSON for each image")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return cmd
}

func printFsck(im daemon.ImageStatus, r fsckResult, err error) {
	what := cli.Bytes(r.Checked) + " checked, all right"
	healed := "; healed"
	switch {
	case err != nil && r.None():
		what = "not checked"
	case r.Files != "":
		what, healed = r.Files, "; removed, to be made anew when it is next opened"
	case r.Bad == 1:
		what = fmt.Sprintf("the block at byte %d is damaged", r.Offsets[0])
	case r.Bad > 1:
		what = fmt.Sprintf("%d blocks are damaged, the first at byte %d", r.Bad, r.Offsets[0])
	case r.Tree:
		what = "the Merkle tree is damaged"
	case r.Map:
		what = "the map is damaged"
	case r.Root:
		what = "the Merkle root that is recorded is another than that of the data"
	case r.Layers:
		what = "what is kept of its layers for other images is damaged"
	}
	if r.Healed {
		what += healed
	}
	fmt.Printf("%.12s %s: %s\n", im.Key, names(im)[0], what)
	if err != nil {
		cli.PrintError("pexfs", err)
	}
}

// exitError is an exit status, and the error to print if there is one.
type exitError struct {
	status int
	err    error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// exitStatus tells how to end after an error, and which error is to be printed.
func exitStatus(err error) (status int, show error) {
	var e exitError
	if errors.As(err, &e) {
		return e.status, e.err
	}
	return 1, err
}
