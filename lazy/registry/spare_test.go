package registry

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pexfs/pex/lazy/ref"
)

// TestWarm opens connections ahead, which requests then use, and closes those that nobody has used.
func TestWarm(t *testing.T) {
	var mu sync.Mutex
	states := make(map[net.Conn]http.ConnState)
	opened := make(chan struct{}, 100)
	release := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-release }))
	srv.Config.ConnState = func(c net.Conn, s http.ConnState) {
		mu.Lock()
		states[c] = s
		mu.Unlock()
		if s == http.StateNew {
			opened <- struct{}{}
		}
	}
	srv.Start()
	defer srv.Close()
	count := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		return len(states)
	}
	host := strings.TrimPrefix(srv.URL, "http://")
	r, err := ref.Parse(host + "/a:1")
	if err != nil {
		t.Fatal(err)
	}
	transport := NewTransport()
	defer transport.CloseIdleConnections()
	transport.Proxy = nil
	repo, err := Open(r, Options{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	repo.Warm(t.Context())
	for range spares {
		<-opened
	}
	for ready := 0; ready < spares; time.Sleep(time.Millisecond) {
		transport.mu.Lock()
		ready = len(transport.spares[host])
		transport.mu.Unlock()
	}
	var wg sync.WaitGroup
	for range spares - 1 {
		wg.Go(func() {
			resp, err := (&http.Client{Transport: transport}).Get(srv.URL)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	active := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range states {
			if s == http.StateActive {
				n++
			}
		}
		return n
	}
	for active() < spares-1 {
		time.Sleep(time.Millisecond)
	}
	if n := count(); n != spares {
		t.Errorf("%d connections for %d requests at once", n, spares-1)
	}
	close(release)
	wg.Wait()
	transport.mu.Lock()
	left := append([]net.Conn(nil), transport.spares[host]...)
	transport.mu.Unlock()
	if len(left) != 1 {
		t.Fatalf("%d connections are left, want 1", len(left))
	}
	transport.drop(host, left[0])
	if _, err := left[0].Write([]byte("x")); err == nil {
		t.Error("a spare connection that was dropped is open")
	}
	if len(transport.spares) != 0 {
		t.Error("an address without spare connections is kept")
	}

	t.Run("by a proxy", func(t *testing.T) {
		transport := NewTransport()
		transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(srv.URL) }
		repo, err := Open(r, Options{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		before := count()
		repo.Warm(t.Context())
		time.Sleep(20 * time.Millisecond)
		if n := count() - before; n != 0 {
			t.Errorf("%d connections past the proxy", n)
		}
	})
	t.Run("closed", func(t *testing.T) {
		transport := NewTransport()
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		transport.spares[host] = []net.Conn{c}
		transport.CloseIdleConnections()
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("it is open")
		}
	})
	t.Run("dead", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		transport := NewTransport()
		address := l.Addr().String()
		dead, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		for alive(dead) { // until the end has come
			time.Sleep(time.Millisecond)
		}
		transport.spares[address] = []net.Conn{dead}
		c, err := transport.dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c == dead {
			t.Error("a connection that the other side has closed is used")
		}
	})
}
