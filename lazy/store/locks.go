package store

import (
	"context"
	"sync"
)

// Locks are locks by key that are waited for on a context, and may be held over I/O. The zero value is ready. Its methods may be called
// concurrently.
type Locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]chan struct{} // closed when the lock is given back
}

// Lock waits for the lock of a key, which unlock gives back. The error is that of ctx.
func (l *Locks[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	for {
		l.mu.Lock()
		held := l.held[key]
		if held == nil {
			break
		}
		l.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = make(map[K]chan struct{})
	}
	free := make(chan struct{})
	l.held[key] = free
	return func() {
		l.mu.Lock()
		delete(l.held, key)
		l.mu.Unlock()
		close(free)
	}, nil
}
