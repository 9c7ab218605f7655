package daemon

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/pexfs/pex/lazy/store"
)

// TestUnload leaves an image alone until it is the second time that nobody uses it, and then closes its files, which are opened again when
// somebody comes.
func TestUnload(t *testing.T) {
	s, o := testServer(t)
	mapped := func() bool {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), o.Dir)
	}
	none := map[store.Key]bool{}
	if idle := s.unloadIdle(s.unloadIdle(none)); len(idle) > 0 || !mapped() {
		t.Errorf("just opened: %v", idle)
	}
	s.handedOver(o.Key, true)
	l := &lease{who: "me"}
	s.addLease(o.Key, l)
	if idle := s.unloadIdle(s.unloadIdle(none)); len(idle) > 0 || !mapped() {
		t.Errorf("leased: %v", idle)
	}
	s.dropLease(o.Key, l)
	idle := s.unloadIdle(none)
	if !idle[o.Key] || !mapped() {
		t.Errorf("unused: %v", idle)
	}
	if idle = s.unloadIdle(idle); len(idle) > 0 || s.cache.Loaded(o.Key) != nil {
		t.Errorf("unused still: %v", idle)
	}
	for mapped() { // for a moment by what looks for contents in all images after an opening
		runtime.Gosched()
	}
	if _, err := s.fetchable(t.Context(), o.Key); err != nil || !mapped() {
		t.Errorf("opened again: %v", err)
	}
}
