package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/metrics"
	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/store"
)

// whyReport is what `status --why` tells of an image.
type whyReport struct {
	Key  store.Key `json:"key"`
	Refs []string  `json:"refs"`
	metrics.Why
	Places []waited `json:"places"`
}

// waited is a place that was waited for, and the files that it is the content of.
type waited struct {
	metrics.Place
	Path  string `json:"path"`            // of one of them; empty where nobody knows
	Names int    `json:"names,omitempty"` // how many there are
}

// explain tells why readers of an image waited.
func explain(ctx context.Context, c *daemon.Client, cache string, im *daemon.ImageStatus) (*whyReport, error) {
	w, err := c.Why(ctx, im.Key)
	if err != nil {
		return nil, err
	}
	r := &whyReport{Key: im.Key, Refs: names(*im), Why: *w, Places: make([]waited, len(w.Places))}
	for i, p := range w.Places {
		r.Places[i].Place = p
	}
	return r, r.nameFiles(filepath.Join(cache, "images", string(im.Key)))
}

// nameFiles finds the files whose contents were waited for, in the metadata of the image in dir.
func (r *whyReport) nameFiles(dir string) error {
	at := make(map[int64]*waited, len(r.Places))
	for i := range r.Places {
		at[r.Places[i].Off] = &r.Places[i]
	}
	if len(at) == 0 {
		return nil
	}
	v, err := store.OpenView(dir)
	if err != nil {
		return err
	}
	defer v.Close()
	im, err := erofs.Open(v.File(), v.Info.Size)
	if err != nil {
		return fmt.Errorf("naming what was waited for: %w", err)
	}
	err = fs.WalkDir(im.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // a name that io/fs hasn't got
		}
		in, ok := info.Sys().(*erofs.Inode)
		if !ok {
			return nil
		}
		off, err := im.DataOff(*in)
		if w := at[off]; w != nil && err == nil && off != 0 {
			if w.Names++; w.Path == "" {
				w.Path = "/" + name
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("naming what was waited for: %w", err)
	}
	return nil
}

// print shows the report to people. What comes from an image or a registry has no control characters.
func (r *whyReport) print(out io.Writer) error {
	var failed error
	say := func(format string, args ...any) {
		if _, err := fmt.Fprintf(out, format, args...); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	for _, n := range r.Refs {
		say("%s\n", cli.OneLine(n))
	}
	if r.Since.IsZero() {
		say("  nothing was waited for or fetched since the daemon began\n")
		return failed
	}
	say("  since     %s\n", r.Since.Local().Format(time.DateTime))
	say("  waited    %d reads, %s in all, %s at most; %d wait still, %d failed\n", r.Reads, seconds(r.Waited), seconds(r.Longest), r.Waiting, r.Failed)
	var all int64
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(r.Fetched)) {
		all += r.Fetched[why]
		parts = append(parts, fmt.Sprintf("%s %s", why, cli.Bytes(r.Fetched[why])))
	}
	say("  fetched   %s", cli.Bytes(all))
	if len(parts) > 0 {
		say(" (%s)", strings.Join(parts, ", "))
	}
	say("; readers waited for %s\n", cli.Bytes(r.Wanted))
	say("  requests  %d, %d of them retries\n", r.Requests, r.Retries)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if len(r.Hosts) > 0 {
		fmt.Fprintln(w, "\nHOST\tREQUESTS\tRECEIVED\tMEAN\tLONGEST")
		for _, h := range r.Hosts {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", cli.OneLine(h.Name), h.Requests, cli.Bytes(h.Bytes), seconds(h.Mean), seconds(h.Longest))
		}
	}
	if len(r.Places) > 0 {
		fmt.Fprintln(w, "\nWAITED\tLONGEST\tREADS\tFAILED\tSIZE\tFILE")
		for _, p := range r.Places {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", seconds(p.Waited), seconds(p.Longest), p.Reads, p.Failed, cli.Bytes(p.Size), p.file())
		}
		if r.Dropped > 0 {
			fmt.Fprintf(w, "%s\t\t\t\t\tother files\n", seconds(r.Dropped))
		}
	}
	return errors.Join(failed, w.Flush())
}

// file names the file for people.
func (w waited) file() string {
	if w.Path == "" {
		return fmt.Sprintf("at %d of the image", w.Off)
	}
	s := cli.OneLine(w.Path)
	if w.Names > 1 {
		s += fmt.Sprintf(" (and %d more)", w.Names-1)
	}
	if w.Waiting > 0 {
		s += ", still waited for"
	}
	return s
}

func seconds(s float64) string { return fmt.Sprintf("%.3f s", s) }

// printWhy is `status --why`.
func printWhy(ctx context.Context, cacheDir, name string, asJSON bool) error {
	c, err := daemon.Connect(ctx, cacheDir)
	if err != nil {
		return err
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	im, err := cli.Find(st, name)
	if err != nil {
		return err
	}
	r, err := explain(ctx, c, st.Cache, im)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(r)
	}
	return r.print(os.Stdout)
}
