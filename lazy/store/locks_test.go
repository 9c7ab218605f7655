package store

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestLocks(t *testing.T) {
	var l Locks[string]
	counts := map[string]*int{"a": new(int), "b": new(int)} // not guarded otherwise
	var wg sync.WaitGroup
	for i := range 8 {
		key := []string{"a", "b"}[i%2]
		wg.Go(func() {
			for range 1000 {
				unlock, err := l.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				*counts[key]++
				unlock()
			}
		})
	}
	wg.Wait()
	if *counts["a"] != 4000 || *counts["b"] != 4000 || len(l.held) != 0 {
		t.Errorf("%d, %d, %d locks are held", *counts["a"], *counts["b"], len(l.held))
	}
	unlock, err := l.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	unlock()
	if unlock, err = l.Lock(ctx, "a"); err != nil { // it is free
		t.Fatal(err)
	}
	unlock()
}
