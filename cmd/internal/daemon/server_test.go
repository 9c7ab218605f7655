package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/store"
)

// testServer is a server on a folder of its own, with an image. It ends with the test.
func testServer(t *testing.T) (*server, *Opened) {
	t.Helper()
	s := newServer(t, filepath.Join(t.TempDir(), "cache"))
	t.Cleanup(func() { closeServer(t, s) })
	return s, testImage(t, s, writeLayout(t))
}

func closeServer(t *testing.T, s *server) {
	t.Helper()
	s.stop()
	s.end()
	if err := errors.Join(s.cache.Close(), s.st.Close()); err != nil {
		t.Error(err)
	}
}

func testImage(t *testing.T, s *server, layout string) *Opened {
	t.Helper()
	o, err := s.openImage(s.ctx, OpenRequest{Ref: "oci:" + layout}, newLines(httptest.NewRecorder()))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func request(t *testing.T, s *server, method, path string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(s.ctx, method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestEndWaits ends a server while a request is under way: that one is waited for, and others are turned away.
func TestEndWaits(t *testing.T) {
	s, _ := testServer(t)
	h := s.routes()
	body, write := io.Pipe()
	var wg sync.WaitGroup
	put := request(t, s, "PUT", "/v1/profiles", body)
	wg.Go(func() {
		if !aborted(func() { h.ServeHTTP(httptest.NewRecorder(), put) }) {
			t.Error("what fails in the end is answered")
		}
	})
	if _, err := write.Write([]byte(" ")); err != nil { // the handler reads
		t.Fatal(err)
	}
	s.stop()
	ended := make(chan int, 1)
	go func() {
		s.end()
		s.mu.Lock()
		defer s.mu.Unlock()
		ended <- s.busy
	}()
	refused := func() bool {
		return aborted(func() { h.ServeHTTP(httptest.NewRecorder(), request(t, s, "DELETE", "/v1/profiles/x", nil)) })
	}
	for !refused() {
	}
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := <-ended; n != 0 {
		t.Errorf("it has ended before %d requests", n)
	}
}

// TestLeaseOrRemoval takes a lease of an image while it is removed: one of the two is refused.
func TestLeaseOrRemoval(t *testing.T) {
	s, _ := testServer(t)
	h := s.routes()
	layout := writeLayout(t)
	leased := 0
	for i := range 100 {
		o := testImage(t, s, layout)
		path := "/v1/images/" + string(o.Key)
		removed := httptest.NewRecorder()
		var wg sync.WaitGroup
		start, gone := make(chan struct{}), make(chan struct{})
		wg.Go(func() {
			<-start
			h.ServeHTTP(removed, request(t, s, "DELETE", path, nil))
			close(gone)
		})
		ctx, cancel := context.WithCancel(s.ctx)
		w := &client{httptest.NewRecorder(), func() { <-gone; cancel() }} // who has got it holds it until then
		close(start)
		for range i % 10 {
			runtime.Gosched()
		}
		h.ServeHTTP(w, request(t, s, "GET", path+"/lease?who=me", nil).WithContext(ctx))
		cancel()
		wg.Wait()
		_, err := os.Stat(o.Dir)
		switch {
		case w.Code == http.StatusOK && (removed.Code != http.StatusConflict || err != nil):
			t.Fatalf("it was leased, and removed with status %d: %v", removed.Code, err)
		case w.Code != http.StatusOK && (w.Code != http.StatusNotFound || removed.Code != http.StatusNoContent || err == nil):
			t.Fatalf("a lease is answered with %d %s, the removal with %d %s", w.Code, w.Body, removed.Code, removed.Body)
		case w.Code == http.StatusOK:
			leased++
		}
		if s.cache.Loaded(o.Key) != nil && err != nil {
			t.Fatal("an image that is gone is in memory")
		}
	}
	t.Logf("%d times leased, %d removed", leased, 100-leased)
}

// TestRemovalTwice begins a removal that another has begun.
func TestRemovalTwice(t *testing.T) {
	s, o := testServer(t)
	if err := s.removal(o.Key); err != nil {
		t.Fatal(err)
	}
	if err := s.removal(o.Key); !errors.Is(err, store.ErrNotCached) {
		t.Errorf("got %v", err)
	}
	if s.addLease(o.Key, &lease{}) {
		t.Error("it is leased")
	}
}

// TestKeepTogether has a profile imported and found while runs are recorded: what was imported stays.
func TestKeepTogether(t *testing.T) {
	s, _ := testServer(t)
	for i := range 30 {
		p := func(bytes int64) *profile.Profile {
			return &profile.Profile{Image: "sha256:" + strings.Repeat("0", 64), Name: fmt.Sprint(i), Layers: []string{"sha256:" + strings.Repeat("1", 64)}, Touches: []profile.Touch{{N: bytes}}}
		}
		var wg sync.WaitGroup
		for _, origin := range []string{Recorded, Found, Recorded, Imported, Recorded, Found} {
			wg.Go(func() {
				if err := s.keep(t.Context(), p(1+int64(len(origin))), origin); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		k, err := s.keptAs(profile.ID(p(1).Image, fmt.Sprint(i)))
		if err != nil || k.Origin != Imported {
			t.Fatalf("kept is what was %s, %v", k.Origin, err)
		}
	}
	for _, c := range []struct {
		origin string
		bytes  int64
		want   string // what is kept then
	}{{Recorded, 5, "5 recorded"}, {Recorded, 4, "5 recorded"}, {Recorded, 6, "6 recorded"}, {Found, 3, "3 found"}, {Recorded, 9, "3 found"}, {Found, 2, "2 found"}, {Imported, 1, "1 imported"}, {Found, 7, "1 imported"}, {Recorded, 8, "1 imported"}, {Imported, 2, "2 imported"}} {
		p := &profile.Profile{Image: "sha256:" + strings.Repeat("2", 64), Layers: []string{"sha256:" + strings.Repeat("1", 64)}, Touches: []profile.Touch{{N: c.bytes}}}
		if err := s.keep(t.Context(), p, c.origin); err != nil {
			t.Fatal(err)
		}
		k, err := s.keptAs(profile.ID(p.Image, ""))
		if err != nil {
			t.Fatal(err)
		}
		if p, err = profile.Decode(k.Profile); err != nil || fmt.Sprint(p.Bytes(), " ", k.Origin) != c.want {
			t.Errorf("after %d %s: %d %s, want %s", c.bytes, c.origin, p.Bytes(), k.Origin, c.want)
		}
	}
}
