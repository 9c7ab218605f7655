package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

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
	fl.StringVar(&root, "root", string(machine.Auto), "how the machine gets its root: auto, virtiofs or pmem")
	fl.BoolVar(&verity, "verity", false, "have the machine check every block that it reads of the image (dm-verity, no DAX); completes the image first")
	fl.StringVar(&f.image.Platform, "platform", "", "of an image for several: os/arch[/variant] (default this machine's)")
	fl.StringVar(&f.kernel, "kernel", "", "kernel to boot (default $"+kernelEnv+", the cache's, or one in /boot)")
	fl.BoolVar(&noFill, "no-fill", false, "fetch only what is read or a profile names, nothing else in the background")
	fl.BoolVar(&noProfile, "no-profile", false, "use and record no profile of what the command reads")
	fl.BoolVar(&f.image.Offline, "offline", false, "ask no registry: a tag is what it was last, and the image must be complete in the cache")
	fl.BoolVar(&f.image.Insecure, "insecure", false, "permit plain HTTP to a registry that is not on this machine")
	f.image.Flags(fl)
	fl.BoolVarP(&f.image.Quiet, "quiet", "q", false, "no progress")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "say what the machine is made of and how long each step takes")
	return cmd
}

// run runs a program and ends with its status.
func run(ctx context.Context, name string, f runFlags) error {
	var watcher sync.WaitGroup
	defer watcher.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in := make(chan os.Signal, 16)
	signal.Notify(in, forwarded...)
	defer signal.Stop(in)
	started := make(chan func(syscall.Signal))
	watcher.Go(func() { watchSignals(ctx, in, started, func(i *interruption) { cancel(i) }) })

	begin := time.Now()
	image, set, err := prepare(ctx, name, f)
	if err != nil {
		return endOf(ctx, err)
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
	f.say("opened %s in %s: %s", image.ref, since(begin), image.state)

	m, err := machine.Start([]string{superviseName}, machine.Config{
		Image: spec, Ref: image.ref, Root: f.root, VCPUs: f.vcpus, Memory: f.memory,
		Kernel: set.kernel, Initrds: set.initrds,
		Verdicts: filepath.Join(f.image.CacheDir, "kvm-failures"),
	}, warn)
	if err != nil {
		return err
	}
	defer m.Close()
	exit, err := runIn(ctx, m, set, process, f, started)
	if errors.Is(err, guest.ErrFailed) && f.root == machine.Verity {
		err = hinted{err, "`pexfs fsck " + image.ref + "` tells whether the image is damaged, and mends it"}
	}
	if err != nil {
		return endOf(ctx, err)
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

// prepare opens the image and makes the boot set, side by side; it completes an image
// that is to be proven.
func prepare(ctx context.Context, name string, f runFlags) (image *openedImage, set *bootSet, err error) {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		image, err = openImage(gctx, name, f.image, f.root == machine.Verity)
		return err
	})
	g.Go(func() (err error) {
		set, err = makeBootSet(f.image.CacheDir, f.kernel, f.root)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	if image.platform != machinePlatform {
		return nil, nil, hinted{
			fmt.Errorf("running %s: it is for %s, and machines are %s", image.ref, image.platform, machinePlatform),
			"choose another one of the image's platforms with --platform " + machinePlatform,
		}
	}
	if f.root == machine.Verity {
		err = image.seal(ctx, f.image)
	}
	return image, set, err
}

// machinePlatform is what the programs of machines are built for.
const machinePlatform = "linux/amd64"

// runIn runs a program in a machine that has been started.
func runIn(ctx context.Context, m *machine.Attachment, set *bootSet, p guest.Process, f runFlags, started chan<- func(syscall.Signal)) (guest.Exit, error) {
	s := guest.NewSession(m.Frames())
	hello, ready, err := s.WaitReady(ctx)
	if err != nil {
		return guest.Exit{}, ending(ctx, m, s, err)
	}
	about, err := m.Started(ctx)
	if err != nil {
		return guest.Exit{}, err
	}
	if want := set.initrds[about.Root].Build; hello.Build != want {
		return guest.Exit{}, fmt.Errorf("starting machine: its PID 1 is %.12q, not %.12q", hello.Build, want)
	}
	f.say("machine ready in %s (image %s, boot %s): %s with %s, kernel %s, root %s", round(about.Open+about.Boot),
		round(about.Open), round(about.Boot), about.VMM, about.Accel, set.version, about.Root)
	for _, w := range ready.Warnings {
		warn("machine: " + w)
	}

	begin := time.Now()
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
	if err != nil && !errors.Is(err, guest.ErrOutput) {
		return guest.Exit{}, ending(ctx, m, s, err)
	}
	f.say("program ran for %s, by the machine's account %s and %s of processor time", since(begin),
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

func since(t time.Time) time.Duration { return round(time.Since(t)) }

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
