package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideName is the program's name inside its namespaces.
const insideName = "bench-inside"

// grace is how long the program may take to clean up after its time is over.
const grace = time.Minute

// enter runs this program again in new namespaces, for at most limit, and returns its exit code. The kernel ends and unmounts all that is in
// the namespaces when their first process ends.
func enter(args []string, limit time.Duration) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("only root may run this: it makes namespaces, network devices and mounts")
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = insideName
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Unshareflags: unix.CLONE_NEWNS, // and no mount goes out of it
		Pdeathsig:    syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("making namespaces: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	late := time.After(limit)
	for {
		select {
		case <-signals:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			late = time.After(grace)
		case <-late:
			_ = cmd.Process.Kill()
			<-ended
			return 1, errors.New("the measurements did not end in time, and were killed")
		case err := <-ended:
			var e *exec.ExitError
			if err == nil || errors.As(err, &e) {
				return cmd.ProcessState.ExitCode(), nil
			}
			return 1, err
		}
	}
}

// settle makes the namespaces what programs expect: their own /proc, an empty /run, a loopback device.
func settle() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.Mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	return configure([][]string{{"ip", "link", "set", "lo", "up"}})
}

// configure runs commands that print nothing unless they fail.
func configure(commands [][]string) error {
	for _, c := range commands {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("running %q: %w: %s", c, err, out)
		}
	}
	return nil
}
