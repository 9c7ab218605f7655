package daemon

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/pexfs/pex/lazy/store"
)

// TestOpenWhileRemoved opens an image that an eviction has claimed: what is handed over stays.
func TestOpenWhileRemoved(t *testing.T) {
	for _, c := range []struct {
		name   string
		remove func(s *server, key store.Key) error
	}{
		{"removed", func(s *server, key store.Key) error { return s.cache.Remove(s.ctx, key) }},
		{"left in the end", func(*server, store.Key) error { return nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, t.TempDir())
			t.Cleanup(func() { closeServer(t, s) })
			layout := writeLayout(t)
			o := testImage(t, s, layout)
			s.handedOver(o.Key, true) // long ago
			done, ok := s.claim(o.Key)
			if !ok {
				t.Fatal("it is not claimed")
			}
			type result struct {
				o   *Opened
				err error
			}
			opened := make(chan result, 1)
			go func() {
				o, err := s.openImage(s.ctx, OpenRequest{Ref: "oci:" + layout}, newLines(httptest.NewRecorder()))
				opened <- result{o, err}
			}()
			select {
			case <-opened:
				t.Error("it is handed over while it is removed")
			case <-time.After(100 * time.Millisecond): // it opens what is there still, and waits
			}
			if err := c.remove(s, o.Key); err != nil {
				t.Fatal(err)
			}
			done()
			got := <-opened
			if got.err != nil {
				t.Fatal(got.err)
			}
			if s.cache.Loaded(got.o.Key) == nil || !s.addLease(got.o.Key, &lease{}) {
				t.Error("what was handed over is gone")
			}
		})
	}
}

// TestClaimOpened claims an image for eviction that was just handed over: it isn't given, and others may have it.
func TestClaimOpened(t *testing.T) {
	s, o := testServer(t)
	if _, ok := s.claim(o.Key); ok {
		t.Error("it is claimed before its lease may come")
	}
	if !s.addLease(o.Key, &lease{}) {
		t.Error("it can't be leased")
	}
	if _, ok := s.claim(o.Key); ok {
		t.Error("it is claimed while it is leased")
	}
}
