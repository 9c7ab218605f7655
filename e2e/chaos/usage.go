package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// usage is what a process takes.
type usage struct {
	Anon        int64 // bytes of memory that are no file's
	Descriptors int64
	Files       int64 // those of them that are of files
	Threads     int64
	Goroutines  int64 // of the daemon, once it was asked
}

// usageOf looks at a process.
func usageOf(pid int) (u usage, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "RssAnon:":
			u.Anon = kib(f[1])
		case "Threads:":
			u.Threads, _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	u.Descriptors = int64(len(fds))
	for _, fd := range fds {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil && strings.HasPrefix(to, "/") {
			u.Files++
		}
	}
	return u, err
}

// goroutines asks the daemon how many it has.
func (w *world) goroutines(ctx context.Context) (n int64, err error) {
	out, err := w.do(ctx, "status", "--json")
	if err != nil {
		return 0, err
	}
	var st struct{ Socket string }
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return 0, err
	}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", st.Socket)
	}}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/debug/pprof/goroutine?debug=1", nil)
	if err != nil {
		return 0, err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := fmt.Fscanf(res.Body, "goroutine profile: total %d", &n); err != nil {
		return 0, fmt.Errorf("asking the daemon for its goroutines: %s: %w", res.Status, err)
	}
	return n, nil
}

// kib gives the bytes of a number of KiB.
func kib(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n << 10
}

// most keeps the greatest of each.
func (u *usage) most(o usage) {
	u.Anon, u.Threads = max(u.Anon, o.Anon), max(u.Threads, o.Threads)
	u.Descriptors, u.Files = max(u.Descriptors, o.Descriptors), max(u.Files, o.Files)
}
