package lazy

import (
	"context"
	"errors"
	"testing"
)

func TestTurns(t *testing.T) {
	tu := &turns{free: 1}
	if err := tu.take(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	waiting := func(n int) { // until so many wait
		for {
			tu.mu.Lock()
			have := len(tu.waiting)
			tu.mu.Unlock()
			if have == n {
				return
			}
		}
	}
	order := make(chan int64)
	for i, size := range []int64{5, 9, 7} {
		go func() {
			if tu.take(context.Background(), size) == nil {
				order <- size
			}
		}()
		waiting(i + 1)
	}
	gone, cancel := context.WithCancelCause(t.Context())
	why := errors.New("nobody wants it")
	ended := make(chan error)
	go func() { ended <- tu.take(gone, 100) }()
	waiting(4)
	cancel(why)
	if err := <-ended; err != why {
		t.Errorf("of one who gave up: %v", err)
	}
	for _, want := range []int64{9, 7, 5} {
		tu.give()
		if got := <-order; got != want {
			t.Errorf("the turn of %d came, not of %d", got, want)
		}
	}
	tu.give()
	if tu.free != 1 || len(tu.waiting) != 0 {
		t.Errorf("in the end %d are free, %d wait", tu.free, len(tu.waiting))
	}
	// one who gives up as his turn comes passes it on
	for range 100 {
		if err := tu.take(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- tu.take(ctx, 1) }()
		waiting(1)
		go cancel()
		tu.give()
		if <-ended == nil {
			tu.give()
		}
		if tu.free != 1 {
			t.Fatal("a turn was lost")
		}
	}
}
