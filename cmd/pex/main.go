// Command pex runs programs of container images, each in a small virtual machine
// of its own, before their images are downloaded.
//
// Its exit status is that of the program it ran; 128 and a signal's number if that
// ended the program or pex; 125 if pex failed; 126 and 127 if the program could not
// be run or found.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/machine"
)

// program is the name in front of messages.
const program = "pex"

// exitFailed is pex's own failure; the statuses of a program are below it.
const exitFailed = 125

func main() { os.Exit(execute(os.Args[1:])) }

// exitStatus is the error of a command whose exit status has been settled and
// needs no more words.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// execute runs a command line and returns the exit status.
func execute(args []string) int {
	cmd := rootCommand()
	cmd.SetArgs(args)
	err := cmd.Execute()
	var settled exitStatus
	if err == nil || errors.As(err, &settled) {
		return statusOf(err)
	}
	cli.PrintError(program, err)
	var ended *machine.EndedError
	if errors.As(err, &ended) && len(ended.Console) > 0 {
		fmt.Fprintf(os.Stderr, "%s: the last lines of the machine's console:\n", program)
		for _, line := range ended.Console {
			fmt.Fprintf(os.Stderr, "  %s\n", line)
		}
	}
	return exitFailed
}

// statusOf is the exit status that an error of a command comes to.
func statusOf(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	return exitFailed
}

func rootCommand() *cobra.Command {
	var cacheDir string
	cmd := &cobra.Command{
		Use:           program,
		Short:         "Run programs of container images in virtual machines, before they are downloaded",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			if cacheDir == "" {
				cacheDir, err = daemon.DefaultCacheDir()
			}
			if err == nil {
				cacheDir, err = filepath.Abs(cacheDir)
			}
			return err
		},
	}
	cmd.PersistentFlags().StringVar(&cacheDir, "cache-dir", "", "cache folder (default $PEX_CACHE_DIR, or pex in the user's cache folder)")
	cmd.AddCommand(runCommand(&cacheDir), superviseCommand(), kernelCommand(&cacheDir), versionCommand(), daemon.Command(&cacheDir, cli.Version()))
	return cmd
}

// interruptible runs f with a context that SIGINT and SIGTERM end; the command
// then ends as one that the signal killed.
func interruptible(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in := make(chan os.Signal, 1)
	signal.Notify(in, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(in)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case s := <-in:
			cancel(&interruption{s.(syscall.Signal)})
		case <-done:
		}
	}()
	return endOf(ctx, f(ctx))
}

// interruption is the cause of a context that a signal ended.
type interruption struct{ sig syscall.Signal }

func (e *interruption) Error() string { return fmt.Sprintf("interrupted by signal %d", int(e.sig)) }

// endOf is err, or the exit status of an interruption if that is what ended ctx.
func endOf(ctx context.Context, err error) error {
	var i *interruption
	if err != nil && errors.As(context.Cause(ctx), &i) {
		return exitStatus(128 + int(i.sig))
	}
	return err
}

// hinted is an error with advice.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// Hint is the advice.
func (e hinted) Hint() string { return e.hint }
