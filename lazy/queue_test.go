package lazy

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// queued are asks by a name, "a1" is the first for a.
type queued struct {
	t    *testing.T
	q    *queue
	asks map[string]*ask
	in   map[string]*line
	errs map[string]chan error
}

// ask asks in a line; a name with a star is for what nobody waits for.
func (s *queued) ask(ctx context.Context, l *line, names ...string) {
	for _, n := range names {
		a := newAsk(n[:1], strings.HasSuffix(n, "*"))
		errs := make(chan error, 1)
		s.asks[n], s.in[n], s.errs[n] = a, l, errs
		go func() { errs <- s.q.take(ctx, l, a) }()
		synctest.Wait()
	}
}

// begun holds that these are under way, and no others.
func (s *queued) begun(names ...string) {
	s.t.Helper()
	for n, a := range s.asks {
		want := false
		for _, name := range names {
			want = want || n == name
		}
		if a.underway() != want {
			s.t.Errorf("%s is under way: %v", n, a.underway())
		}
	}
}

func (s *queued) give(names ...string) {
	for _, n := range names {
		s.q.give(s.in[n], s.asks[n])
		delete(s.asks, n)
	}
	synctest.Wait()
}

func TestQueue(t *testing.T) {
	for name, f := range map[string]func(*testing.T, *queued){
		"images have their turns one after another": func(t *testing.T, s *queued) {
			l := s.q.line("x")
			s.ask(t.Context(), l, "a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "c1")
			s.begun("a1", "a2", "a3")
			s.give("a1")
			s.begun("a2", "a3", "a4")
			s.give("a2", "a3", "a4")
			s.begun("b1", "c1", "a5")
			s.give("b1", "c1")
			s.begun("a5", "b2", "a6")
		},
		"one place takes no turns from another": func(t *testing.T, s *queued) {
			s.ask(t.Context(), s.q.line("x"), "a1", "a2", "a3", "a4")
			s.ask(t.Context(), s.q.line("y"), "b1", "b2", "b3")
			s.begun("a1", "a2", "a3", "b1", "b2")
			s.give("a1") // places take turns, too
			s.begun("a2", "a3", "b1", "b2", "a4")
			s.give("b1")
			s.begun("a2", "a3", "b2", "a4", "b3")
		},
		"what nobody waits for comes last, and gets some of the turns": func(t *testing.T, s *queued) {
			l := s.q.line("x")
			s.ask(t.Context(), l, "a1*", "a2*", "a3*", "b1", "b2", "b3")
			s.begun("a1*", "a2*", "b1")
			s.give("a1*")
			s.begun("a2*", "b1", "b2")
			s.give("a2*", "b1")
			s.begun("b2", "b3", "a3*")
		},
		"what somebody begins to wait for": func(t *testing.T, s *queued) {
			l := s.q.line("x")
			s.ask(t.Context(), l, "a1*", "a2*", "a3*", "a4*")
			s.begun("a1*", "a2*")
			s.q.await(l, s.asks["a4*"]) // it comes at once
			s.begun("a1*", "a2*", "a4*")
			s.q.await(l, s.asks["a1*"]) // what is under way makes room for one that nobody waits for
			s.give("a4*")
			s.begun("a1*", "a2*", "a3*")
			s.q.await(l, s.asks["a1*"])
			s.give("a1*", "a2*", "a3*")
		},
		"one who gives up": func(t *testing.T, s *queued) {
			l := s.q.line("x")
			ctx, cancel := context.WithCancelCause(t.Context())
			s.ask(t.Context(), l, "a1", "a2", "a3")
			s.ask(ctx, l, "b1", "b2*")
			s.ask(t.Context(), l, "a4")
			why := errors.New("enough")
			cancel(why)
			for _, n := range []string{"b1", "b2*"} {
				if err := <-s.errs[n]; err != why {
					t.Errorf("%s: %v", n, err)
				}
			}
			s.give("a1", "a2", "a3")
			s.begun("a4")
			s.ask(t.Context(), l, "c1", "c2", "c3")
			s.begun("a4", "c1", "c2")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f(t, &queued{t: t, q: &queue{each: 3, behind: 2, free: 5}, asks: make(map[string]*ask), in: make(map[string]*line), errs: make(map[string]chan error)})
			})
		})
	}
}

// TestQueueBounds has many come, give up, and begin to be waited for. All end, nothing exceeds its bounds, and all turns are free then.
func TestQueueBounds(t *testing.T) {
	q := &queue{each: 4, behind: 2, free: 6}
	var work sync.WaitGroup
	for i := range 200 {
		rnd := rand.New(rand.NewPCG(1, uint64(i)))
		work.Go(func() {
			l := q.line([]string{"x", "y", "z"}[rnd.IntN(3)])
			for range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				a := newAsk(rnd.IntN(5), rnd.IntN(2) == 0)
				switch rnd.IntN(3) {
				case 0:
					work.Go(cancel)
				case 1:
					work.Go(func() { q.await(l, a) }) // perhaps when it has ended
				}
				if err := q.take(ctx, l, a); err == nil {
					q.mu.Lock()
					if l.underway > q.each || l.behind > q.behind || l.behind < 0 || q.free < 0 {
						t.Errorf("%d under way, %d of them behind, %d free", l.underway, l.behind, q.free)
					}
					q.mu.Unlock()
					q.give(l, a)
				} else if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	work.Wait()
	if q.free != 6 {
		t.Errorf("%d turns are free in the end, want 6", q.free)
	}
	for _, l := range q.lines {
		if l.underway != 0 || l.behind != 0 || len(l.waiting[0])+len(l.waiting[1]) > 0 {
			t.Errorf("in line %s: %d under way, %d behind, %v waiting", l.origin, l.underway, l.behind, l.waiting)
		}
	}
}
