package vm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// drainTime bounds how long a dead process's output is still read, in case
// something inherited its descriptors.
const drainTime = 2 * time.Second

// Process is a VMM's process. The kernel kills it when this process ends,
// however it ends. Its methods are safe for concurrent use.
type Process struct {
	cmd    *exec.Cmd
	stderr *Tail
	cancel context.CancelFunc
	killed atomic.Bool
	done   chan struct{}
	err    error
}

// StartProcess starts argv[0], a path, with files[i] as descriptor 3+i, no
// standard input and an empty environment but for PATH. Its standard output goes to
// stdout, unless that is nil. The end of ctx kills it.
func StartProcess(ctx context.Context, argv []string, files []*os.File, stdout io.Writer) (*Process, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &Process{stderr: NewTail(4 << 10), cancel: cancel, done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	p.cmd.ExtraFiles = files
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	p.cmd.Stdout = stdout
	p.cmd.Stderr = p.stderr
	p.cmd.WaitDelay = drainTime
	p.cmd.Cancel = func() error {
		p.killed.Store(true)
		return p.cmd.Process.Kill()
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	started := make(chan error)
	go func() {
		// The death signal comes when the thread that started the process
		// ends, so that thread is kept until the process is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer cancel()
		if err := p.cmd.Start(); err != nil {
			started <- fmt.Errorf("starting %s: %w", argv[0], err)
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// Kill ends the process at once. It doesn't wait.
func (p *Process) Kill() { p.cancel() }

// Done is closed when the process is gone and its output read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for Done and returns what the process ended with.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// WasKilled reports, after Done, that the process ended by Kill or with its context.
func (p *Process) WasKilled() bool { return p.killed.Load() }

// Stderr is the end of what the process wrote to its standard error.
func (p *Process) Stderr() string { return p.stderr.String() }

// CPU is, after Done, the processor time that the process used.
func (p *Process) CPU() time.Duration {
	if s := p.cmd.ProcessState; s != nil {
		return s.UserTime() + s.SystemTime()
	}
	return 0
}
