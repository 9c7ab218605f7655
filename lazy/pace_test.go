package lazy

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	// granted is how many of 10 who ask get a turn now.
	granted := func(t *testing.T, p *pace) (n int) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := make(chan error, 10)
		for range 10 {
			go func() { got <- p.take(ctx) }()
		}
		synctest.Wait()
		cancel()
		for range 10 {
			if err := <-got; err == nil {
				n++
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		return n
	}
	synctest.Test(t, func(t *testing.T) {
		var r readers
		p := newPace(&r)
		for want := 1; want <= 4; want *= 2 {
			if got := granted(t, p); got != want {
				t.Errorf("%d fetches at once, want %d", got, want)
			}
			for range want {
				p.give()
			}
		}
		for range 3 {
			if got := granted(t, p); got != fillers {
				t.Errorf("%d fetches at once after a while, want %d", got, fillers)
			}
			for range fillers {
				p.give()
			}
		}
		r.enter()
		time.Sleep(time.Second)
		if got := granted(t, p); got != 0 {
			t.Errorf("%d fetches while a reader waits", got)
		}
		r.leave()
		time.Sleep(fillQuiet / 2)
		if got := granted(t, p); got != 0 {
			t.Errorf("%d fetches just after a reader has waited", got)
		}
		time.Sleep(fillQuiet)
		if got := granted(t, p); got != 1 {
			t.Errorf("%d fetches at once after a reader, want 1", got)
		}
		p.give()

		for range fillers {
			if err := p.take(t.Context()); err != nil {
				t.Error(err)
			}
			if p.underway == fillers {
				break
			}
			p.give()
		}
		for p.underway < fillers {
			if err := p.take(t.Context()); err != nil {
				t.Error(err)
			}
		}
		r.enter()
		r.leave()
		p.give()
		granted(t, p) // one looks, and finds that a reader has come
		for range fillers - 1 {
			p.give()
		}
		time.Sleep(2 * fillQuiet)
		if got := granted(t, p); got != 1 {
			t.Errorf("%d fetches at once after a reader who came while %d were under way, want 1", got, fillers)
		}
		p.give()

		r.enter() // one who never leaves
		came := time.Now()
		if err := p.take(t.Context()); err != nil {
			t.Error(err)
		}
		if waited := time.Since(came); waited < fillPatience || waited > 2*fillPatience {
			t.Errorf("one fetch after %v, want it after %v", waited, fillPatience)
		}
		ended := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- p.take(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	})
}
