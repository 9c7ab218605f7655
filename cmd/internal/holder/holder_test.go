package holder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// viewEnv makes the test's program a view that does as it says.
const viewEnv = "PEX_TEST_VIEW"

func TestMain(m *testing.M) {
	if what := os.Getenv(viewEnv); what != "" {
		os.Exit(view(what))
	}
	os.Exit(m.Run())
}

// view writes to the file that is passed on how often it was started, and ends as the task says for that time: one letter each.
func view(what string) int {
	terminate := Terminate(context.Background())
	l, state, files, err := Join()
	if err != nil {
		return 3
	}
	task, err := io.ReadAll(io.NewSectionReader(os.Stdin, 0, 100))
	if err != nil || len(files) > 1 {
		return 4
	}
	if len(files) == 0 {
		f, err := os.OpenFile(what, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return 5
		}
		files = append(files, f)
	}
	if _, err := files[0].WriteString("*"); err != nil {
		return 6
	}
	if err := l.Keep(append(state, '*'), files...); err != nil {
		return 7
	}
	n := len(state)
	if n >= len(task) {
		n = len(task) - 1
	}
	if task[n] != 'f' { // fails before it serves
		if l.Serves() != nil {
			return 8
		}
	}
	switch task[n] {
	case 'k':
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case 's': // is told to end before it knows how to
		signal.Reset(syscall.SIGTERM)
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
		time.Sleep(time.Minute)
	case 'p':
		panic("as the task says")
	case 'd': // has a daemon started three times, and the mount ended at last
		go l.AwaitEnd()
		for range 3 {
			if l.Daemon(context.Background()) != nil {
				return 10
			}
		}
		if l.Unmount() != nil {
			return 11
		}
		return 0
	case 'w': // waits for a daemon that doesn't start
		go l.AwaitEnd()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if !errors.Is(l.Daemon(ctx), context.DeadlineExceeded) {
			return 12
		}
		return 0
	case 'e': // its mount has ended
		if _, err := os.NewFile(ReadyFD, "ready").WriteString("e"); err != nil {
			return 13
		}
		return 0
	case 't':
		if (<-terminate) != syscall.SIGTERM {
			return 9
		}
		return 0
	}
	return 1
}

func TestHolder(t *testing.T) {
	for _, c := range []struct {
		name, task string
		started    int
		err        error
		logged     string
	}{
		{"ends with its mount", "e", 1, nil, ""},
		{"is killed", "kke", 3, nil, "signal: killed"},
		{"is terminated too early", "st", 2, nil, "signal: terminated"},
		{"panics", "pe", 2, nil, "exit status 2"},
		{"stops serving", "1fffe", 5, nil, "exit status 1"},
		{"can't begin", "f", 1, errors.New("before the mount could be used: exit status 1"), ""},
		{"can't go on", "kffff", 1 + maxStarts, errGivenUp, "within the last minute\"=6"},
		{"dies again and again", strings.Repeat("k", 2*maxDeaths), 1 + maxDeaths, errGivenUp, "within the last minute\"=33"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			started, log, err := hold(t, &Holder{}, c.task, nil)
			if started != c.started {
				t.Errorf("%d views were started, want %d", started, c.started)
			}
			if (err == nil) != (c.err == nil) || err != nil && !strings.Contains(err.Error(), c.err.Error()) {
				t.Errorf("ended with %v, want %v", err, c.err)
			}
			if !strings.Contains(log, c.logged) {
				t.Errorf("%q is not in its log:\n%s", c.logged, log)
			}
		})
	}
}

func TestTerminate(t *testing.T) {
	terminate := make(chan os.Signal, 1)
	time.AfterFunc(500*time.Millisecond, func() { terminate <- syscall.SIGTERM })
	if started, log, err := hold(t, &Holder{}, "te", terminate); err != nil || started > 2 { // it may not have listened yet
		t.Errorf("%d views, %v\n%s", started, err, log)
	}
}

// TestErrands has a holder do what its view may not.
func TestErrands(t *testing.T) {
	var unmounted, started int
	h := &Holder{
		Unmount: func() error { unmounted++; return errors.New("it is in use") },
		Daemon:  func(context.Context) error { started++; return errors.New("it can't") },
	}
	_, log, err := hold(t, h, "d", nil)
	if err != nil || unmounted != 1 || started != 3 || !strings.Contains(log, "it is in use") || strings.Count(log, "it can't") != 1 {
		t.Errorf("it unmounted %d times and started %d daemons: %v\n%s", unmounted, started, err, log)
	}
	// what takes long ends with the view
	h = &Holder{Daemon: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	if _, log, err := hold(t, h, "w", nil); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
}

// TestReady has the view that takes over tell what the first one couldn't.
func TestReady(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, log, err := hold(t, &Holder{Ready: w}, "kke", nil); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	w.Close()
	if told, err := io.ReadAll(r); string(told) != "e" || err != nil {
		t.Errorf("the views told %q, %v", told, err)
	}
}

// hold runs a holder of views that do the task.
func hold(t *testing.T, h *Holder, task string, terminate <-chan os.Signal) (started int, log string, err error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/task", []byte(task), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir + "/task")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	h.Task, h.Env, h.Log = f, []string{viewEnv + "=" + dir + "/count"}, slog.New(slog.NewTextHandler(&b, nil))
	err = h.Run(terminate)
	count, err2 := os.ReadFile(dir + "/count")
	if err2 != nil {
		t.Fatal(err2)
	}
	return len(count), b.String(), err
}

func TestPause(t *testing.T) {
	for _, c := range []struct {
		deaths, starts int
		want           time.Duration
	}{
		{1, 0, 0}, {3, 1, 0}, {4, 0, 20 * time.Millisecond}, {5, 1, 40 * time.Millisecond}, {31, 0, maxPause},
		{2, 2, maxPause}, {3, 3, 2 * maxPause}, {6, 6, maxRetry},
	} {
		if got := pause(c.deaths, c.starts); got != c.want {
			t.Errorf("after %d deaths, %d of them at the start: %v, want %v", c.deaths, c.starts, got, c.want)
		}
	}
}

// TestMessageBounds refuses what no view sends.
func TestMessageBounds(t *testing.T) {
	a, f, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := unixConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := send(a, kindKeep, make([]byte, maxState+1), nil); err == nil {
		t.Error("too long a message was sent")
	}
	if _, _, err := a.WriteMsgUnix(make([]byte, maxState+2), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := receive(b); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too long a message was taken: %v", err)
	}
	if err := send(a, kindKeep, make([]byte, maxState), []*os.File{os.Stdin, os.Stdout}); err != nil {
		t.Fatal(err)
	}
	kind, state, files, err := receive(b)
	if err != nil || kind != kindKeep || len(state) != maxState || len(files) != 2 {
		t.Errorf("got %q, %d bytes, %d files, %v", kind, len(state), len(files), err)
	}
	for _, f := range files {
		f.Close()
	}
}
