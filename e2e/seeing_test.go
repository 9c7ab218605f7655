package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// foreground is a daemon whose log, in JSON, is read.
type foreground struct {
	t   *testing.T
	cmd *exec.Cmd

	mu    sync.Mutex
	lines []map[string]any
	more  chan struct{}
}

// foreground starts the daemon of the lab's folder, and ends it with the test.
func (l *lab) foreground(args ...string) *foreground {
	l.t.Helper()
	f := &foreground{t: l.t, cmd: l.command("pexfs", append([]string{"daemon", "--idle", "0", "--log-format", "json"}, args...)...), more: make(chan struct{})}
	out, err := f.cmd.StderrPipe()
	if err == nil {
		err = f.cmd.Start()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			line := make(map[string]any)
			if err := json.Unmarshal(s.Bytes(), &line); err != nil {
				l.t.Errorf("logged: %s", s.Text())
			}
			f.mu.Lock()
			f.lines = append(f.lines, line)
			close(f.more)
			f.more = make(chan struct{})
			f.mu.Unlock()
		}
	})
	l.t.Cleanup(func() {
		f.cmd.Process.Signal(syscall.SIGTERM)
		wg.Wait()
		if err := f.cmd.Wait(); err != nil {
			l.t.Errorf("the daemon: %v", err)
		}
	})
	return f
}

// logged waits for a line.
func (f *foreground) logged(msg string) map[string]any {
	f.t.Helper()
	for {
		f.mu.Lock()
		lines, more := f.lines, f.more
		f.mu.Unlock()
		for _, l := range lines {
			if l["msg"] == msg {
				return l
			}
		}
		select {
		case <-more:
		case <-f.t.Context().Done():
			f.t.Fatalf("nothing is logged of %q", msg)
		}
	}
}

// socket is a client of the daemon's socket.
func (l *lab) socket() *http.Client {
	l.t.Helper()
	var st struct{ Socket string }
	decode(l.t, l.do("pexfs", "status", "--json"), &st)
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", st.Socket)
	}}}
}

func fetch(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

type whyReport struct {
	Reads, Failed, WantedBytes, Requests int64
	WaitedSeconds                        float64
	FetchedBytes                         map[string]int64
	Hosts                                []struct{ Name string }
	Places                               []struct {
		Path  string
		Size  int64
		Reads int64
	}
}

// TestSeeing reads one file of an image, and looks at what the daemon tells of it.
func TestSeeing(t *testing.T) {
	l := newLab(t)
	l.serve()
	f := l.foreground("--metrics-listen", ":0")
	tcp := "http://" + f.logged("metrics are served")["address"].(string)
	if !strings.HasPrefix(tcp, "http://127.0.0.1:") {
		t.Errorf("metrics are served at %s", tcp)
	}
	dir := l.mount("--no-fill", "--no-profile", l.addr+"/demo-estargz")
	const file = "/usr/bin/bash"
	if _, err := os.ReadFile(dir + file); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dir + file)
	if err != nil {
		t.Fatal(err)
	}

	var why whyReport
	decode(t, l.do("pexfs", "status", "--why", "--json", dir), &why)
	var waited []string
	for _, p := range why.Places {
		waited = append(waited, p.Path)
		if p.Path == file && (p.Size != st.Size() || p.Reads < 1) {
			t.Errorf("%+v, the file has %d bytes", p, st.Size())
		}
	}
	if len(waited) != 1 || waited[0] != file || why.Reads < 1 || why.Failed != 0 || why.WaitedSeconds <= 0 || why.WantedBytes < 1 {
		t.Errorf("waited for %q: %+v", waited, why)
	}
	if why.FetchedBytes["reader"] <= 0 || why.FetchedBytes["open"] <= 0 || why.FetchedBytes["filler"] != 0 || why.Requests < 4 || len(why.Hosts) != 1 || why.Hosts[0].Name != l.addr {
		t.Errorf("fetched: %+v", why)
	}
	for _, s := range []string{file, l.addr, "fetched", "reads"} {
		if out := l.do("pexfs", "status", "--why", l.addr+"/demo-estargz"); !strings.Contains(out, s) {
			t.Errorf("%q is not in:\n%s", s, out)
		}
	}

	sock := l.socket()
	for _, c := range []struct {
		url    string
		client *http.Client
		status int
		has    string
	}{
		{"http://pex/metrics", sock, 200, fmt.Sprintf(`pexfs_fetched_bytes_total{reason="reader",registry=%q} `, l.addr)},
		{tcp + "/metrics", http.DefaultClient, 200, fmt.Sprintf("pexfs_read_wait_seconds_count %d", why.Reads)},
		{"http://pex/metrics", sock, 200, "\npexfs_cache_bytes "},
		{"http://pex/metrics", sock, 200, "\npexfs_uncached_reads_total 0\n"},
		{"http://pex/metrics", sock, 200, "\npexfs_evictions_total 0\n"},
		{"http://pex/healthz", sock, 200, `"ok":true`},
		{tcp + "/healthz", http.DefaultClient, 200, `"ok":true`},
		{"http://pex/debug/pprof/goroutine?debug=1", sock, 200, "goroutine profile"},
		{tcp + "/debug/pprof/", http.DefaultClient, 404, ""},
		{tcp + "/v1/status", http.DefaultClient, 404, ""},
	} {
		if status, body := fetch(t, c.client, c.url); status != c.status || !strings.Contains(body, c.has) {
			t.Errorf("%s: status %d, %q is not in: %.200s", c.url, status, c.has, body)
		}
	}

	_, body := fetch(t, sock, "http://pex/metrics")
	_, value, _ := strings.Cut(body, fmt.Sprintf(`pexfs_fetched_bytes_total{reason="reader",registry=%q} `, l.addr))
	value, _, _ = strings.Cut(value, "\n")
	// what lies behind the file in its layer may have been on its way before
	if n, err := strconv.ParseFloat(value, 64); err != nil || n < float64(why.FetchedBytes["reader"]) {
		t.Errorf("%s bytes were fetched for readers, and before %d", value, why.FetchedBytes["reader"])
	}

	// the folder is made anew beneath it
	lock := filepath.Join(l.cache, "lock")
	if err := os.Rename(lock, lock+"-held"); err != nil {
		t.Fatal(err)
	}
	if status, body := fetch(t, sock, "http://pex/healthz"); status != 503 || !strings.Contains(body, `"ok":false`) || !strings.Contains(body, "gone") {
		t.Errorf("status %d: %s", status, body)
	}
	if err := os.Rename(lock+"-held", lock); err != nil {
		t.Fatal(err)
	}

	// of an image whose source is gone, and the log says which one it is
	image := fixtureImage(t, formStargz)
	dir = l.mount("--no-fill", "--no-profile", image)
	if err := os.RemoveAll(strings.TrimPrefix(image, "oci:")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(dir + "/bin/big"); err == nil {
		t.Error("a file was read that isn't there")
	}
	if line := f.logged("read fails"); line["image"] == nil || line["ref"] != image || line["level"] != "WARN" {
		t.Errorf("logged: %v", line)
	}
	decode(t, l.do("pexfs", "status", "--why", "--json", dir), &why)
	if why.Failed < 1 {
		t.Errorf("after a read that failed: %+v", why)
	}
}

// TestWhyHostile reads files whose names would command a terminal.
func TestWhyHostile(t *testing.T) {
	l := newLab(t)
	names := []string{"a\x1b[2Jb", "line\nbreak", "right\u202eleft", "\u009b31m", "tab\tbed"}
	var layer []entry
	for i, n := range names {
		layer = append(layer, entry{name: n, kind: '0', mode: 0o644, content: whole(noise(uint64(i), 10_000))})
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := writeImage(image, formStargz, packing{}, tars([][]entry{layer})); err != nil {
		t.Fatal(err)
	}
	dir := l.mount("--no-fill", "--no-profile", "oci:"+image)
	for _, n := range names {
		if _, err := os.ReadFile(filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	var why whyReport
	decode(t, l.do("pexfs", "status", "--why", "--json", dir), &why)
	for _, p := range why.Places {
		found := false
		for _, n := range names {
			found = found || p.Path == "/"+n
		}
		if !found {
			t.Errorf("there is no %q", p.Path)
		}
	}
	out := l.do("pexfs", "status", "--why", dir)
	if strings.ContainsAny(out, "\x1b\u009b\u202e\t") || len(why.Places) == 0 {
		t.Errorf("%d places, shown as %q", len(why.Places), out)
	}
}
