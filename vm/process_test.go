package vm

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
)

// parentEnv turns the test's program into a parent that starts a process and
// says its id, for others to kill.
const parentEnv = "VM_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentEnv) != "" {
		p, err := StartProcess(context.Background(), []string{"/bin/sleep", "1000"}, nil, nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(p.cmd.Process.Pid)
		p.Wait()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestProcess(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	p, err := StartProcess(t.Context(), []string{"/bin/sh", "-c", "echo out; echo err >&2; echo file >&3; exit 3"}, []*os.File{w}, &out)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	file, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	if err := p.Wait(); err == nil || err.Error() != "exit status 3" {
		t.Errorf("Wait() = %v", err)
	}
	if got := [...]string{out.String(), p.Stderr(), string(file)}; got != [...]string{"out\n", "err\n", "file\n"} {
		t.Errorf("output %q", got)
	}
	if p.WasKilled() {
		t.Error("killed")
	}
}

func TestProcessEndsWithContext(t *testing.T) {
	for name, end := range map[string]func(cancel func(), p *Process){
		"context": func(cancel func(), _ *Process) { cancel() },
		"kill":    func(_ func(), p *Process) { p.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p, err := StartProcess(ctx, []string{"/bin/sleep", "1000"}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			end(cancel, p)
			if err := p.Wait(); err == nil || !p.WasKilled() {
				t.Errorf("Wait() = %v, killed %v", err, p.WasKilled())
			}
		})
	}
}

func TestProcessNotFound(t *testing.T) {
	if _, err := StartProcess(t.Context(), []string{"/nonexistent"}, nil, nil); err == nil {
		t.Error("no error")
	}
}

func TestProcessDiesWithParent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(exe)
	parent.Env = append(os.Environ(), parentEnv+"=1")
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(bufio.NewReader(out), &pid); err != nil {
		t.Fatal(err)
	}
	parent.Process.Kill()
	parent.Wait()
	waitGone(t, pid)
}
