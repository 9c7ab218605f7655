package daemon

import (
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestNeeds has very many readers of one image wait for bytes that don't come: they share a bounded number of connections, and each is told
// when his time is over, whether or not he had one.
func TestNeeds(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	c, err := NewClient(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", c.sock)
	if err != nil {
		t.Fatal(err)
	}
	var now, most, longest atomic.Int64
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req NeedRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		most.Store(max(most.Load(), now.Add(1)))
		longest.Store(max(longest.Load(), int64(req.Timeout)))
		time.Sleep(req.Timeout)
		now.Add(-1)
		w.WriteHeader(http.StatusInternalServerError)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	const timeout = 200 * time.Millisecond
	var all sync.WaitGroup
	for range 5 * needsMost {
		all.Go(func() {
			if _, err := c.Need(t.Context(), "k", NeedRequest{N: 1, Timeout: timeout}, make([]byte, 1)); err == nil {
				t.Error("they have come")
			}
		})
	}
	all.Wait()
	if most.Load() > needsMost {
		t.Errorf("%d at once, want %d at most", most.Load(), needsMost)
	}
	if longest.Load() > int64(timeout) {
		t.Errorf("the daemon was given %v", time.Duration(longest.Load()))
	}
}
