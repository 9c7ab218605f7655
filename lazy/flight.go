package lazy

import (
	"context"
	"sync"
)

// flights runs one piece of work however many want it. The work runs on a context that ends with its last waiter, so
// that one who gives up never fails the others.
type flights[K comparable, V any] struct {
	mu   sync.Mutex
	m    map[K]*flight[V]
	work sync.WaitGroup
}

// wait waits for work that its waiters have given up. Nobody calls do any more.
func (g *flights[K, V]) wait() { g.work.Wait() }

type flight[V any] struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	v       V
	err     error
}

// do joins the work under way for key, or starts it.
func (g *flights[K, V]) do(ctx context.Context, key K, work func(context.Context) (V, error)) (V, error) {
	g.mu.Lock()
	f := g.m[key]
	if f == nil {
		wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight[V]{done: make(chan struct{}), cancel: cancel}
		if g.m == nil {
			g.m = make(map[K]*flight[V])
		}
		g.m[key] = f
		g.work.Go(func() {
			v, err := work(wctx)
			g.mu.Lock()
			f.v, f.err = v, err
			if g.m[key] == f {
				delete(g.m, key)
			}
			g.mu.Unlock()
			cancel()
			close(f.done)
		})
	}
	f.waiters++
	g.mu.Unlock()

	select {
	case <-f.done:
		return f.v, f.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		if g.m[key] == f {
			delete(g.m, key) // a newcomer starts anew rather than share the cancelled work's error
		}
	}
	var zero V
	return zero, context.Cause(ctx)
}
