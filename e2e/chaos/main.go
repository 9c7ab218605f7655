// Command chaos kills, loads and soaks pexfs, and compares all that is read meanwhile with what is true. `make chaos` builds and runs it;
// it needs root, /dev/fuse and, for machines, what `pex run` needs. Its parts run one after another, each in a world of its own: a
// registry, a cache folder, a daemon, mounts. What is asserted is bytes, roots and counts, never times.
//
// What it does at random follows -seed, as far as that goes: when things happen depends on the machine, too.
package main

import (
	"context"
	"encoding/json"
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
	"text/tabwriter"
	"time"
)

// options are what the command line says.
type options struct {
	bin      string // pexfs
	kernel   string // of machines
	seed     uint64
	only     *regexp.Regexp
	kills    int
	scale    int64 // MiB of a small layer
	mounts   int
	readers  int
	layers   int
	machines int
	soak     time.Duration
	silence  time.Duration
	limit    time.Duration
	json     string
	victims  []string
}

// result is what a part has seen.
type result struct {
	Part   string         `json:"part"`
	Seed   uint64         `json:"seed"`
	Took   float64        `json:"seconds"`
	Counts map[string]any `json:"counts"`
	Wrong  []string       `json:"wrong"` // what must not be
}

// part is one of the things to do.
type part struct {
	name, what string
	run        func(context.Context, options, *result) error
}

func parts() []part {
	return []part{
		{"kills", "kill -9 at random moments", kills},
		{"mounts", "many mounts at once", mounts},
		{"readers", "many readers at once", manyReaders},
		{"layers", "images of many layers", manyLayers},
		{"machines", "many machines at once, of a sealed image and of one that is filling", machines},
		{"fair", "a busy image, a lone reader, and a silent registry", fair},
		{"silence", "a registry that says nothing for a minute", silence},
		{"soak", "all of this for a while, and the counts it began with in the end", soak},
	}
}

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) == 3 && os.Args[1] == guestFlag {
		if err := guest(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: error:", err)
			return 1
		}
		return 0
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "chaos: error:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("it takes longer than %v", o.limit))
	defer cancel()
	var all []result
	for _, p := range parts() {
		if o.only != nil && !o.only.MatchString(p.name) {
			continue
		}
		fmt.Printf("%s: %s, seed %d\n", p.name, p.what, o.seed)
		r := do(ctx, p, o)
		all = append(all, r)
		if ctx.Err() != nil {
			break
		}
	}
	table(all)
	if o.json != "" {
		b, err := json.MarshalIndent(all, "", "  ")
		if err == nil {
			err = os.WriteFile(o.json, append(b, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos: error:", err)
			return 2
		}
	}
	if slices.ContainsFunc(all, func(r result) bool { return len(r.Wrong) > 0 }) {
		fmt.Fprintf(os.Stderr, "chaos: error: something is wrong; -seed %d tries it again\n", o.seed)
		return 1
	}
	return 0
}

// do runs a part.
func do(ctx context.Context, p part, o options) result {
	r := result{Part: p.name, Seed: o.seed, Counts: make(map[string]any), Wrong: []string{}}
	start := time.Now()
	if err := p.run(ctx, o, &r); err != nil {
		r.Wrong = append(r.Wrong, err.Error())
	}
	r.Took = time.Since(start).Seconds()
	return r
}

func table(all []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\npart\tseconds\tcount\t\t")
	for _, r := range all {
		fmt.Fprintf(w, "%s\t%.0f\twrong\t%d\n", r.Part, r.Took, len(r.Wrong))
		names := make([]string, 0, len(r.Counts))
		for n := range r.Counts {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			fmt.Fprintf(w, "\t\t%s\t%v\n", n, r.Counts[n])
		}
	}
	_ = w.Flush() // to standard output
	for _, r := range all {
		for _, s := range r.Wrong {
			fmt.Printf("%s: WRONG: %s\n", r.Part, s)
		}
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	build := f.String("build", os.Getenv("PEX_BUILD"), "the `folder` that make builds in")
	f.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano())%1_000_000, "of what is done at random")
	only := f.String("only", "", "the parts whose names match this regular `expression`")
	f.IntVar(&o.kills, "kills", 200, "how often something is killed")
	f.Int64Var(&o.scale, "scale", 3, "about how many `MiB` a small layer unpacks to")
	f.IntVar(&o.mounts, "mounts", 64, "how many mounts at once")
	f.IntVar(&o.readers, "readers", 1000, "how many readers at once")
	f.IntVar(&o.layers, "layers", 300, "how many layers an image has that has many")
	f.IntVar(&o.machines, "machines", 20, "how many machines at once")
	f.DurationVar(&o.soak, "soak", 3*time.Minute, "how long to soak")
	f.DurationVar(&o.silence, "silence", time.Minute, "how long a registry is silent")
	f.DurationVar(&o.limit, "time", 15*time.Minute, "end after this long")
	f.StringVar(&o.json, "json", "", "write the counts to this `file`, too")
	victims := f.String("victims", "daemon,view", "what is killed, by commas: daemon, view; or none, to see what is fetched twice anyway")
	list := f.Bool("list", false, "print the parts and end")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if *list {
		for _, p := range parts() {
			fmt.Printf("%-8s %s\n", p.name, p.what)
		}
		return o, flag.ErrHelp
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q: chaos takes flags only", f.Args())
	}
	if *build == "" {
		return o, errors.New("-build or PEX_BUILD must name the folder that make builds in")
	}
	abs, err := filepath.Abs(*build)
	if err != nil {
		return o, err
	}
	o.bin, o.kernel = filepath.Join(abs, "bin", "pexfs"), filepath.Join(abs, "cache", "kernels", "default")
	for v := range strings.SplitSeq(*victims, ",") {
		if v != "daemon" && v != "view" && v != "none" {
			return o, fmt.Errorf("-victims %q: not daemon, view or none", v)
		}
		o.victims = append(o.victims, v)
	}
	if *only != "" {
		if o.only, err = regexp.Compile(*only); err != nil {
			return o, err
		}
	}
	return o, nil
}
