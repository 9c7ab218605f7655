// Command bench measures what the project is for, against what else does it: cold starts over links of several speeds, the way from
// layers to a finished image, and warm reads. `make bench` builds it and its peers and runs it; it needs root.
//
// It runs in namespaces of its own for processes, mounts and networks, which go with everything in them when it ends, however it ends.
// The ways of a row are run alternately, so that a busy machine is busy for all; what counts are the ratios of runs of one round.
//
// What is measured starts with nothing cached. The registry's side of a link has its blobs in memory. Daemons that a machine runs always
// (containerd, the peer's snapshotter) are up before the clock starts; pexfs starts its own within the time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	build  string         // what `make` made: bin, image, bench/bin
	images string         // a folder of OCI layouts, or ""
	table  string         // the workloads
	only   *regexp.Regexp // rows by name
	leave  *regexp.Regexp // ways by name that are not measured, or nil
	add    bool           // to the rows that the JSON document has
	runs   int
	limit  time.Duration
	out    string // the JSON document
	tables string // the same for people, or ""
	list   bool
}

func main() { os.Exit(run()) }

func run() int {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		return 2
	}
	if os.Args[0] != insideName && !o.list {
		code, err := enter(os.Args[1:], o.limit+grace)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: error:", err)
		}
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		return 1
	}
	return 0
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.build, "build", os.Getenv("PEX_BUILD"), "the `folder` that make builds in")
	f.StringVar(&o.images, "images", "", "a `folder` of OCI layouts NAME-gzip and NAME-estargz to measure besides the demo image")
	f.StringVar(&o.table, "workloads", "", "a `file` of lines IMAGE NAME COMMAND, instead of the built-in ones")
	only := f.String("only", "", "measure the rows whose names match this regular `expression`")
	without := f.String("without", "", "leave out the ways whose names match this regular `expression`")
	f.BoolVar(&o.add, "add", false, "keep what the JSON document has of rows that are not measured now")
	f.IntVar(&o.runs, "runs", 5, "how often each way of a row is run; rows of warm reads 11 times at least")
	f.DurationVar(&o.limit, "time", 30*time.Minute, "end after this long, and say what was left out")
	f.StringVar(&o.out, "json", "", "where the results go as JSON (default BUILD/bench/result.json)")
	f.StringVar(&o.tables, "markdown", "", "write the results to this `file` as Markdown, too")
	f.BoolVar(&o.list, "list", false, "print the names of the rows and end")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.build == "" {
		return o, errors.New("-build is not given: run it by `make bench`")
	}
	if o.runs < 1 || o.limit <= 0 {
		return o, errors.New("-runs and -time must be more than 0")
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("reading -only: %w", err)
	}
	if *without != "" {
		if o.leave, err = regexp.Compile(*without); err != nil {
			return o, fmt.Errorf("reading -without: %w", err)
		}
	}
	for _, p := range []*string{&o.build, &o.images, &o.table, &o.tables} {
		if *p != "" {
			if *p, err = filepath.Abs(*p); err != nil {
				return o, err
			}
		}
	}
	if o.out == "" {
		o.out = filepath.Join(o.build, "bench", "result.json")
	}
	return o, nil
}

// measure runs the rows, in order, as far as time permits.
func measure(ctx context.Context, o options) (err error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	images, err := findImages(o)
	if err != nil {
		return err
	}
	b, err := newBench(o)
	if err != nil {
		return err
	}
	var rows []*row
	for _, r := range b.rows(images) {
		if !o.only.MatchString(r.name) {
			continue
		}
		rows = append(rows, r)
		r.ways = slices.DeleteFunc(r.ways, func(w way) bool { return o.leave != nil && o.leave.MatchString(w.name) })
	}
	if o.list {
		for _, r := range rows {
			fmt.Println(r.name)
		}
		return nil
	}
	if len(rows) == 0 {
		return errors.New("-only matches no row (see -list)")
	}
	images = slices.DeleteFunc(images, func(im *image) bool {
		return !slices.ContainsFunc(rows, func(r *row) bool { return strings.HasPrefix(r.name, im.name+"/") })
	})
	doc := newDocument()
	if o.add {
		if err := doc.read(o.out); err != nil {
			return err
		}
	}
	for _, im := range images {
		doc.Images[im.name] = im.String()
	}
	if err := b.open(ctx, images); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, r := range rows {
		doc.add(b.runRow(ctx, r))
		if err := doc.write(o.out, o.tables); err != nil {
			return err
		}
	}
	doc.printSummary(os.Stdout)
	fmt.Println("\nas JSON:", o.out)
	if errors.Is(ctx.Err(), context.Canceled) {
		return errInterrupted
	}
	return nil
}
