package lazy

import (
	"context"
	"slices"
	"sync"
)

// turns lets a few work at once, those with most to do first.
type turns struct {
	mu      sync.Mutex // guards what follows
	free    int
	waiting []*turn
}

type turn struct {
	size int64
	came chan struct{} // closed
}

// take waits for a turn, for work of some size, which give ends. The error is that of ctx.
func (t *turns) take(ctx context.Context, size int64) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	w := &turn{size, make(chan struct{})}
	t.waiting = append(t.waiting, w)
	t.mu.Unlock()
	select {
	case <-w.came:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting, w); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	} else { // it came meanwhile
		t.next()
	}
	return context.Cause(ctx)
}

// give ends a turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

// next passes a turn on. mu is held.
func (t *turns) next() {
	if len(t.waiting) == 0 {
		t.free++
		return
	}
	most := 0
	for i, w := range t.waiting {
		if w.size > t.waiting[most].size {
			most = i
		}
	}
	close(t.waiting[most].came)
	t.waiting = slices.Delete(t.waiting, most, most+1)
}
