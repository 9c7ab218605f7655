package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// daemonPID finds the lab's daemon.
func (l *lab) daemonPID(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("\x00daemon\x00")) && bytes.HasSuffix(b, []byte("\x00--cache-dir\x00"+l.cache+"\x00")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no daemon runs")
	return 0
}

// TestUnfinished runs programs of an image that isn't complete, whose daemon or registry goes away under them.
func TestUnfinished(t *testing.T) {
	l := newLab(t)
	l.lazily(t)
	folder := strings.TrimPrefix(l.image, "oci:")
	sums := fmt.Sprintf("/data/huge %x\n/data/two %x\n", sha256.Sum256(fileContent("/data/huge", hugeSize)), sha256.Sum256(fileContent("/data/two", smallSize)))
	const missing = `^pex: warning: .*\npex: error: reading oci:\S+: bytes \d+ to \d+ of the image are missing, and no data came for 2s: .*no such file.*\n` +
		`pex: hint: check the network and the registry; --io-timeout sets how long a machine waits, 0 for ever\n$`
	tests := []struct {
		name   string
		flags  []string
		before func(t *testing.T, l *lab, folder string) // the program reads
		during func(t *testing.T, l *lab, folder string) // when it waits
		status int
		stdout string // what follows "ready"
		stderr string // a regular expression
	}{
		{name: "all is well", flags: []string{"--timing", "json"}, stdout: sums, stderr: `^\{"image":.*\}\n$`},
		{name: "daemon killed", before: func(t *testing.T, l *lab, _ string) {
			if err := unix.Kill(l.daemonPID(t), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, stdout: sums, stderr: `^$`},
		{name: "daemon silent", flags: []string{"--io-timeout", "2s"}, before: func(t *testing.T, l *lab, _ string) {
			pid := l.daemonPID(t)
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Kill(pid, unix.SIGCONT) })
		}, status: 125, stderr: `^pex: error: reading oci:\S+: bytes \d+ to \d+ of the image are missing, and no data came for 2s\npex: hint: `},
		{name: "registry gone", flags: []string{"--io-timeout", "2s"}, before: hide, status: 125, stderr: missing},
		{name: "registry gone behind virtio-fs", flags: []string{"--io-timeout", "2s", "--root", "virtiofs"}, before: hide, status: 125, stderr: missing},
		{name: "registry gone for a while", before: hide, during: func(t *testing.T, _ *lab, folder string) {
			if err := os.Rename(folder+".hidden", folder); err != nil {
				t.Fatal(err)
			}
		}, stdout: sums, stderr: `^pex: warning: the machine waits for data of oci:.*no such file`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, own := l, folder
			if tt.before != nil {
				t.Parallel()
				c, own = l.unopened(t), filepath.Join(t.TempDir(), "image")
				if err := os.CopyFS(own, os.DirFS(folder)); err != nil {
					t.Fatal(err)
				}
			}
			args := append([]string{"run", "-i", "--no-fill", "--no-profile"}, tt.flags...)
			cmd := c.command(append(args, "oci:"+own, "line", "sum", "/data/huge", "/data/two")...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			stderr := &signalled{on: []byte("warning"), seen: make(chan struct{})}
			cmd.Stderr = stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ready := make([]byte, len("ready\n"))
			if _, err := io.ReadFull(out, ready); err != nil || string(ready) != "ready\n" {
				t.Errorf("output %q, %v", ready, err)
			}
			if tt.before != nil {
				tt.before(t, c, own)
			}
			io.WriteString(in, "go\n")
			if tt.during != nil {
				select {
				case <-stderr.seen:
				case <-time.After(patience):
					t.Error("no warning")
				}
				tt.during(t, c, own)
			}
			stdout, err := io.ReadAll(out)
			if err != nil {
				t.Error(err)
			}
			status := waitStatus(t, cmd)
			if status != tt.status || string(stdout) != tt.stdout {
				t.Errorf("status %d, want %d, output %q, want %q", status, tt.status, stdout, tt.stdout)
			}
			if said := stderr.b.String(); !regexp.MustCompile(tt.stderr).MatchString(said) {
				t.Errorf("standard error %q, want %q", said, tt.stderr)
			} else if tt.before == nil {
				checkTiming(t, said)
			}
		})
	}
}

// unopened is a lab with a cache of its own that has what machines boot, and no image.
func (l *lab) unopened(t *testing.T) *lab {
	t.Helper()
	c := *l
	c.cache = filepath.Join(t.TempDir(), "cache")
	for _, dir := range []string{"boot", "kernels"} {
		if err := os.CopyFS(filepath.Join(c.cache, dir), os.DirFS(filepath.Join(l.cache, dir))); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if out, err := c.command("daemon", "stop").CombinedOutput(); err != nil {
			t.Errorf("stopping the daemon: %v\n%s", err, out)
		}
	})
	return &c
}

// hide takes an image's folder away.
func hide(t *testing.T, _ *lab, folder string) {
	t.Helper()
	if err := os.Rename(folder, folder+".hidden"); err != nil {
		t.Fatal(err)
	}
}

// signalled is a buffer that tells when something is in it. It is written to by one goroutine, and read after that.
type signalled struct {
	b    bytes.Buffer
	on   []byte
	seen chan struct{} // closed when on has been written
}

func (s *signalled) Write(p []byte) (int, error) {
	n, err := s.b.Write(p)
	if bytes.Contains(s.b.Bytes(), s.on) {
		select {
		case <-s.seen:
		default:
			close(s.seen)
		}
	}
	return n, err
}

// checkTiming checks the report of a machine that came through all stages, on an image that wasn't complete.
func checkTiming(t *testing.T, text string) {
	t.Helper()
	var r struct {
		Root    string
		Digest  string
		Kernel  string
		Status  int
		Fetched int64   `json:"fetched_bytes"`
		Total   float64 `json:"total_ms"`
		Stages  []struct {
			Stage string
			At    float64 `json:"at_ms"`
			MS    float64
		}
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	const rounded = 0.2 // three times are
	var names []string
	for i, s := range r.Stages {
		names = append(names, s.Stage)
		if s.MS < 0 || s.At+s.MS > r.Total+rounded {
			t.Errorf("stage %+v in a run of %v ms", s, r.Total)
		}
		if p := r.Stages[max(i-1, 0)]; i > 1 && (s.At < p.At+p.MS-rounded || s.At > p.At+p.MS+rounded) {
			t.Errorf("stage %+v behind %+v", s, p)
		}
	}
	if diff := cmp.Diff([]string{"open", "launch", "init", "root", "start", "program", "exit"}, names); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
	if r.Root != "blk" || !strings.HasPrefix(r.Digest, "sha256:") || r.Kernel == "" || r.Status != 0 || r.Fetched < hugeSize {
		t.Errorf("report %s", text)
	}
}
