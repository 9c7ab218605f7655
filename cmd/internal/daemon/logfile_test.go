package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLogFile writes much more than a log file may have, and looks whether lines are whole and the latest ones there.
func TestLogFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(name, []byte("of an earlier process\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := unix.Dup(int(os.Stdin.Fd())) // what stands for standard error here
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	const most = 1000
	l, err := openLog(name, most, own)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				if _, err := fmt.Fprintf(l, "writer %d line %d\n", w, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := l.Write([]byte("the last\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(own, []byte("a crash\n")); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(name + ".old")
	if err != nil {
		t.Fatal(err)
	}
	if len(now) > most+len("a crash\n") || len(before) > most || !bytes.HasSuffix(now, []byte("the last\na crash\n")) {
		t.Errorf("%d and %d bytes, ending in %q", len(now), len(before), now[max(0, len(now)-20):])
	}
	for _, b := range [][]byte{now, before} {
		for line := range bytes.Lines(b) {
			var w, i int
			if n, _ := fmt.Sscanf(string(line), "writer %d line %d\n", &w, &i); n != 2 && string(line) != "the last\n" && string(line) != "a crash\n" {
				t.Errorf("a line is %q", line)
			}
		}
	}
}
