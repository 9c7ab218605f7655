package fusefs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// laterData is testData whose blocked content comes when later is closed.
type laterData struct {
	*testData
	later, asked chan struct{}
	once         sync.Once
}

func (d *laterData) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off <= d.blocked && d.blocked < off+int64(len(p)) {
		d.once.Do(func() { close(d.asked) })
		select {
		case <-d.later:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		return d.f.ReadAt(p, off)
	}
	if off <= d.broken && d.broken < off+int64(len(p)) {
		return 0, errors.New("the disk says no")
	}
	return d.f.ReadAt(p, off)
}

// TestServeFile has the kernel mount an image that this process serves as a file.
func TestServeFile(t *testing.T) {
	_, td, im := testFS(t)
	d := &laterData{testData: td, later: make(chan struct{}), asked: make(chan struct{})}
	if _, err := td.f.WriteAt([]byte("it is here"), d.blocked); err != nil {
		t.Fatal(err)
	}
	f, s, err := ServeFile(im.Super().Size, d, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}

	if b, err := exec.Command("cat", filepath.Join(dir, "d/file")).Output(); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := exec.Command("cat", filepath.Join(dir, "broken")).Output(); err == nil || len(b) > 0 {
		t.Errorf("what can't be read is %q, %v", b, err)
	}
	if names, err := os.ReadDir(filepath.Join(dir, "many")); err != nil || len(names) != 20000 {
		t.Errorf("%d names, %v", len(names), err)
	}

	// one reader is killed while it waits, and another isn't disturbed by a signal
	blocked := filepath.Join(dir, "blocked")
	killed := exec.Command("cat", blocked)
	killed.Stdout = io.Discard
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	<-d.asked
	if err := killed.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = killed.Wait()
	if st, ok := killed.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v", err)
	}
	patient := exec.Command("sh", "-c", "trap 'echo signal' USR1; echo ready; read line <"+blocked+"; echo $line")
	out, err := patient.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := patient.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := patient.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	close(d.later)
	b, err := io.ReadAll(lines)
	if err := errors.Join(err, patient.Wait()); err != nil || !strings.Contains(string(b), "signal\n") || !strings.Contains(string(b), "it is here\n") {
		t.Errorf("%q, %v", b, err)
	}

	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil { // the service ends with the mount
		t.Error(err)
	}
}

// TestServeFileUnused ends a service that nobody used.
func TestServeFileUnused(t *testing.T) {
	_, td, im := testFS(t)
	f, s, err := ServeFile(im.Super().Size, td, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}
