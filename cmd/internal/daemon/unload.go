package daemon

import (
	"time"

	"github.com/pexfs/pex/lazy/store"
)

// unloadAfter is how long an image that nobody leases stays in memory, at least; it may be twice as long.
const unloadAfter = time.Minute

// unload closes images that nobody has used for a while: memory, mappings and descriptors are for those in use.
func (s *server) unload() {
	t := time.NewTicker(unloadAfter)
	defer t.Stop()
	seen := make(map[store.Key]bool)
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		seen = s.unloadIdle(seen)
	}
}

// unloadIdle unloads those idle images that were idle when it was called last, and returns the others.
func (s *server) unloadIdle(before map[store.Key]bool) (idle map[store.Key]bool) {
	idle = make(map[store.Key]bool)
	for _, k := range s.cache.Idle() {
		s.mu.Lock()
		leased := len(s.leases[k]) > 0 || time.Since(s.opened[k]) < handOver
		s.mu.Unlock()
		if leased {
			continue
		}
		if !before[k] {
			idle[k] = true
			continue
		}
		if err := s.cache.Unload(s.ctx, k); err != nil && s.ctx.Err() == nil {
			s.log.Warn("closing image", "image", k, "err", err)
		}
	}
	return idle
}
