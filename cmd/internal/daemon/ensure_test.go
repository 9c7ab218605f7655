package daemon

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// answering is a daemon of a cache folder that answers by h.
func answering(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	c, err := NewClient(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", c.sock)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return c
}

func TestPing(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		want         Pong
		err          string // of Ensure
	}{
		{"this program's", `{"pid":7,"version":"v1","api":1}`, Pong{PID: 7, Version: "v1", API: 1}, ""},
		{"another build's", `{"pid":7,"version":"v2","api":1,"more":2}`, Pong{PID: 7, Version: "v2", API: 1}, ""},
		{"one that says nothing", ``, Pong{Version: "unknown", API: 1}, ""},
		{"another API's", `{"pid":7,"version":"v3","api":2}`, Pong{PID: 7, Version: "v3", API: 2}, "the daemon (process 7, version v3) has version 2 of the API, this program has 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := answering(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, c.answer) })
			if got, err := cl.Ping(t.Context()); err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
			err := cl.Ensure(t.Context())
			if (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}

// TestPersist asks the next daemon when one ends in the middle of its answer; but not for ever, and not for who only looks.
func TestPersist(t *testing.T) {
	var asked, whole atomic.Int64
	c := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/ping" {
			io.WriteString(w, `{"pid":7,"api":1}`)
			return
		}
		if asked.Add(1) < whole.Load() {
			io.WriteString(w, "{\"event\":{}}\n{")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, `{"opened":{"key":"abc"}}`)
	})
	for _, q := range []struct {
		ensures      bool
		whole, asked int64
		err          error
	}{
		{true, 1, 1, nil}, {true, 4, 4, nil}, {false, 2, 1, ErrGone}, {true, 100, 8, ErrGone},
	} {
		c.ensures = q.ensures
		asked.Store(0)
		whole.Store(q.whole)
		o, err := c.Open(t.Context(), OpenRequest{}, nil)
		if asked.Load() != q.asked || !errors.Is(err, q.err) || err == nil && o.Key != "abc" {
			t.Errorf("%+v: asked %d times, got %v, %v", q, asked.Load(), o, err)
		}
	}
}

// TestLastWords has a read fail because the daemon ends: its answer breaks off, so that another daemon is asked.
func TestLastWords(t *testing.T) {
	s, o := testServer(t)
	h := s.routes()
	for name, answer := range map[string]http.HandlerFunc{
		"failing":   func(w http.ResponseWriter, r *http.Request) { fail(w, s.ctx.Err()) },
		"in lines":  func(w http.ResponseWriter, r *http.Request) { newLines(w).send(Message{Opened: o}) },
		"by itself": nil,
	} {
		w, r := httptest.NewRecorder(), request(t, s, "GET", "/v1/ping", nil)
		s.stop()
		if !aborted(func() {
			if answer == nil {
				h.ServeHTTP(w, r)
			} else {
				s.unlessEnding(answer, w, r)
			}
		}) {
			t.Errorf("%s: it is answered with %d %s", name, w.Code, w.Body)
		}
	}
}

// TestDoor makes the socket again that somebody has removed, with its folder.
func TestDoor(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "run", "a.sock")
	if err := os.Mkdir(filepath.Dir(sock), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sock, nil, 0o600); err != nil { // of one that was killed
		t.Fatal(err)
	}
	var log strings.Builder
	d, err := listen(sock, nil, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := d.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	var dialer net.Dialer
	c, err := dialer.DialContext(t.Context(), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-accepted; err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(sock); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if err := os.RemoveAll(filepath.Dir(sock)); err != nil {
		t.Fatal(err)
	}
	gone := false
	d.look(t.Context(), func() { gone = true })
	if !gone {
		t.Error("nobody is told that the socket is gone")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepting in the end: %v", err)
	}
	if !strings.Contains(log.String(), "the socket is gone") {
		t.Errorf("nothing of it is logged: %s", &log)
	}
}

func TestSocketPath(t *testing.T) {
	home, run := t.TempDir(), t.TempDir()
	t.Setenv("XDG_CACHE_HOME", home)
	t.Setenv("XDG_RUNTIME_DIR", run)
	for dir, want := range map[string]string{
		filepath.Join(home, "pex"):   filepath.Join(run, "pex/pexfs.sock"),
		filepath.Join(home, "other"): filepath.Join(run, "pex/????????????.sock"),
	} {
		got, err := socketPath(dir)
		if ok, _ := filepath.Match(want, got); err != nil || !ok {
			t.Errorf("%s: %s, %v; want %s", dir, got, err, want)
		}
	}
}
