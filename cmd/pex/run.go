package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/machine"
	"github.com/pexfs/pex/vm/guest"
)

// runFlags are the choices of `pex run`.
type runFlags struct {
	processFlags
	image   cli.OpenOptions
	root    machine.Root
	memory  int64 // bytes
	vcpus   int
	kernel  string
	verbose bool

	ioTimeout time.Duration // 0: for ever
	timing    string
}

func runCommand(cacheDir *string) *cobra.Command {
	var f runFlags
	var root, entrypoint string
	memory := cli.Size(1 << 30)
	var noFill, noProfile, verity bool
	cmd := &cobra.Command{
		Use:   "run [flags] REF [COMMAND [ARG…]]",
		Short: "Run a program of an image in a virtual machine",
		Long: `Run starts a virtual machine whose root is the image REF, runs a program in it and ends with the program's
status. The image need not be complete: what the program reads is fetched then, and the rest in the background. What it
writes is gone with the machine. REF is a name as docker takes it (python:3.12, host:port/name:tag, name@sha256:…), or
oci:FOLDER[:TAG]. COMMAND replaces the image's own; all that follows REF belongs to it.

Signals go to the program. Three times Ctrl-C within two seconds end the machine at once.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return hinted{errors.New("running a program: no image named"), "pex run --help shows how"}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if f.root, err = machine.ParseRoot(root); err != nil {
				return err
			}
			if f.ioTimeout < 0 {
				return fmt.Errorf("--io-timeout %v: want a time, or 0", f.ioTimeout)
			}
			if verity {
				if f.root != machine.Auto {
					return hinted{
						fmt.Errorf("running with --verity: --root %s is another way to the root", f.root),
						"leave --root out: the machine gets the image and its Merkle tree as disks",
					}
				}
				f.root = machine.Verity
			}
			if f.memory, err = machineMemory(memory); err != nil {
				return err
			}
			if cmd.Flags().Changed("entrypoint") {
				f.entrypoint = &entrypoint
			}
			f.args = args[1:]
			f.image.Fill, f.image.CacheDir = !noFill, *cacheDir
			if !noProfile {
				f.image.Profile = new(string) // the command is known when the image is
			}
			return run(cmd.Context(), args[0], f)
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.BoolVarP(&f.stdin, "interactive", "i", false, "give the program this standard input; else it has an empty one")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set an environment variable: NAME=VALUE, or NAME to pass it on")
	fl.StringVarP(&f.dir, "workdir", "w", "", "working directory (default the image's)")
	fl.StringVarP(&f.user, "user", "u", "", "user as NAME|UID[:GROUP|GID] (default the image's)")
	fl.StringVar(&entrypoint, "entrypoint", "", "program to run instead of the image's entrypoint and command")
	fl.VarP(&memory, "memory", "m", "memory of the machine")
	fl.IntVarP(&f.vcpus, "cpus", "c", 1, "processors of the machine")
	fl.StringVar(&root, "root", string(machine.Auto), "how the machine gets its root: auto, virtiofs, blk or pmem")
	fl.DurationVar(&f.ioTimeout, "io-timeout", 2*time.Minute, "how long reads of what is missing wait without any data before the machine ends; 0: for ever")
	fl.BoolVar(&verity, "verity", false, "have the machine check every block that it reads of the image (dm-verity, no DAX); completes the image first")
	fl.StringVar(&f.image.Platform, "platform", "", "of an image for several: os/arch[/variant] (default this machine's)")
	fl.StringVar(&f.kernel, "kernel", "", "kernel to boot (default $"+kernelEnv+", the cache's, or one in /boot)")
	fl.BoolVar(&noFill, "no-fill", false, "fetch only what is read or a profile names, nothing else in the background")
	fl.BoolVar(&noProfile, "no-profile", false, "use and record no profile of what the command reads")
	f.image.NetworkFlags(cmd)
	f.image.Flags(fl)
	fl.BoolVarP(&f.image.Quiet, "quiet", "q", false, "no progress")
	fl.StringVar(&f.timing, "timing", "", "say in the end what each stage took: json, a line on standard error, or json=FILE")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "say what the machine is made of and how long each step takes")
	return cmd
}

// run runs a program and ends with its status.
func run(ctx context.Context, name string, f runFlags) error {
	out, err := openTiming(f.timing)
	if err != nil {
		return err
	}
	var watcher sync.WaitGroup
	defer watcher.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in := make(chan os.Signal, 16)
	signal.Notify(in, forwarded...)
	defer signal.Stop(in)
	started := make(chan func(syscall.Signal))
	watcher.Go(func() { watchSignals(ctx, in, started, func(i *interruption) { cancel(i) }) })

	r := &oneRun{flags: f, name: name, report: timingReport{Image: name}}
	err = endOf(ctx, r.run(ctx, started))
	r.report.Status = statusOf(err)
	r.report.Stages, r.report.Total = r.times.stages(), millis(machine.Now().Since(r.times.begin))
	out.write(r.report)
	return err
}

// oneRun is one `pex run`.
type oneRun struct {
	flags  runFlags
	name   string // as it was given
	times  timeline
	report timingReport
}

// run runs the program to its end, and the machine.
func (r *oneRun) run(ctx context.Context, started chan<- func(syscall.Signal)) error {
	f := r.flags
	r.times.begin = machine.Now()
	image, set, m, given, err := r.prepare(ctx)
	defer func() {
		if m != nil {
			m.Close()
			r.times.gone = machine.Now()
		}
	}()
	if err != nil {
		return err
	}
	r.times.opened = machine.Now()
	r.report.Image, r.report.Digest, r.report.Kernel = image.ref, "sha256:"+image.spec.Opened.Manifest, set.version
	if f.timing != "" {
		before := image.fetched(ctx)
		defer func() { r.report.Fetched = max(0, image.fetched(ctx)-before) }()
	}
	process, err := newProcess(image.config, f.processFlags, os.LookupEnv)
	if err != nil {
		return err
	}
	if f.image.Profile != nil {
		image.replay(ctx, process.Args)
	}
	spec, err := image.spec.text()
	if err != nil {
		return err
	}
	f.say("opened %s in %s: %s", image.ref, round(r.times.opened.Since(r.times.begin)), image.state)

	switch {
	case m == nil:
		m, err = r.start(set, f.root, image.ref, spec)
	case !given:
		err = m.Open(spec)
	}
	if err != nil {
		return err
	}
	exit, err := r.program(ctx, m, set, process, started)
	if errors.Is(err, guest.ErrFailed) && f.root == machine.Verity {
		err = hinted{err, "`pexfs fsck " + image.ref + "` tells whether the image is damaged, and mends it"}
	}
	if err != nil {
		return err
	}
	switch exit.Kind {
	case guest.NotFound, guest.NotExecutable, guest.Refused:
		fmt.Fprintf(os.Stderr, "%s: error: running %q: %s\n", program, process.Args[0], exit.Message)
	}
	if exit.OOM {
		warn("the machine ran out of memory: give it more with --memory")
	}
	if exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return nil
}

// program runs a program in a machine that has been started.
func (r *oneRun) program(ctx context.Context, m *machine.Attachment, set *bootSet, p guest.Process, started chan<- func(syscall.Signal)) (guest.Exit, error) {
	f := r.flags
	s := guest.NewSession(m.Frames())
	hello, ready, err := s.WaitReady(ctx)
	if err != nil {
		return guest.Exit{}, ending(ctx, m, s, err)
	}
	about, err := m.Started(ctx)
	if err != nil {
		return guest.Exit{}, err
	}
	t := about.Times
	r.times.machine = t
	r.report.Root, r.report.VMM, r.report.Accel = about.Root, about.VMM, string(about.Accel)
	if want := set.initrds[about.Root].Build; hello.Build != want {
		return guest.Exit{}, fmt.Errorf("starting machine: its PID 1 is %.12q, not %.12q", hello.Build, want)
	}
	f.say("machine ready in %s (launch %s, kernel %s, root %s): %s with %s, kernel %s, root %s", round(t.Ready.Since(r.times.start)),
		round(t.Launched.Since(r.times.start)), round(t.Init.Since(t.Launched)), round(t.Ready.Since(t.Init)),
		about.VMM, about.Accel, set.version, about.Root)
	for _, w := range ready.Warnings {
		warn("machine: " + w)
	}

	r.times.begun = machine.Now()
	proc, err := s.Start(ctx, p, guest.Streams{Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return guest.Exit{}, ending(ctx, m, s, err)
	}
	select {
	case started <- func(sig syscall.Signal) { _ = proc.Signal(sig) }: // it may have ended
	case <-ctx.Done():
	}
	if p.Stdin {
		// Nobody can wait for this: a read of standard input may never end.
		go func() {
			w := proc.Stdin()
			_, _ = io.Copy(w, os.Stdin)
			_ = w.Close()
		}()
	}
	exit, err := proc.Wait(ctx)
	r.times.ended = machine.Now()
	if err != nil && !errors.Is(err, guest.ErrOutput) {
		return guest.Exit{}, ending(ctx, m, s, err)
	}
	f.say("program ran for %s, by the machine's account %s and %s of processor time", round(r.times.ended.Since(r.times.begun)),
		round(exit.Usage.Elapsed), round(exit.Usage.User+exit.Usage.System))
	return exit, err
}

// ending is why a machine couldn't do what it was to do. When the stream to it has
// ended, its supervisor knows better.
func ending(ctx context.Context, m *machine.Attachment, s *guest.Session, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e := s.Err(); !errors.Is(e, io.EOF) && !errors.Is(e, io.ErrUnexpectedEOF) && !errors.Is(e, syscall.ECONNRESET) {
		return err // the machine may be well
	}
	return m.Wait(ctx)
}

// say says something that only -v wants to know.
func (f runFlags) say(format string, args ...any) {
	if f.verbose {
		fmt.Fprintf(os.Stderr, program+": "+format+"\n", args...)
	}
}

// warn tells the user something that doesn't end the run.
func warn(text string) { fmt.Fprintf(os.Stderr, "%s: warning: %s\n", program, text) }

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
