package lazy

import (
	"context"
	"slices"
	"sync"
)

// queue bounds how much is fetched at once: however many readers come, it takes no more memory and connections. Work waits in the line of
// where it fetches from, so that a registry that is slow, or silent, takes turns from no other but for those that all have together. In
// a line the images, or whatever else the work is for, have their turns one after another, each its oldest first: one with many
// readers delays another's by no more than what is under way and a turn. What somebody waits for comes before what nobody does,
// which gets only some of the turns.
type queue struct {
	each   int // turns of a line at once
	behind int // of them for what nobody waits for

	mu    sync.Mutex // guards what follows, and lines and turns
	free  int        // turns of all lines that may begin
	lines []*line    // whose turn it is next, first
}

// line is what is fetched from one place.
type line struct {
	origin  string
	readers readers // who wait for data from there

	underway, behind int
	waiting          [2]rounds // what somebody waits for, and what nobody does
}

// rounds are turns that wait, by whom they are for, whose is next first.
type rounds []*round

type round struct {
	of    any
	turns []*ask // oldest first
}

// ask is a piece of work, or the wish for it.
type ask struct {
	of     any
	behind bool // nobody waits for it
	came   chan struct{}
}

func newAsk(of any, behind bool) *ask {
	return &ask{of: of, behind: behind, came: make(chan struct{})}
}

func (t *ask) underway() bool {
	select {
	case <-t.came:
		return true
	default:
		return false
	}
}

// line gives the line of a place.
func (q *queue) line(origin string) *line {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range q.lines {
		if l.origin == origin {
			return l
		}
	}
	l := &line{origin: origin}
	q.lines = append(q.lines, l)
	return l
}

// take waits for a turn, which give ends. The error is that of ctx.
func (q *queue) take(ctx context.Context, l *line, t *ask) error {
	q.mu.Lock()
	l.rounds(t).add(t)
	q.next()
	q.mu.Unlock()
	select {
	case <-t.came:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !l.rounds(t).drop(t) { // it came meanwhile
		q.end(l, t)
	}
	return context.Cause(ctx)
}

// give ends a turn.
func (q *queue) give(l *line, t *ask) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.end(l, t)
}

// await says that somebody waits for a turn's work now, whether or not it has begun.
func (q *queue) await(l *line, t *ask) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !t.behind {
		return
	}
	waits := l.rounds(t).drop(t)
	t.behind = false
	switch {
	case waits:
		l.rounds(t).add(t)
	case t.underway():
		l.behind--
	}
	q.next()
}

// end counts a turn no more. q.mu is held, as by all that follow.
func (q *queue) end(l *line, t *ask) {
	q.free++
	l.underway--
	if t.behind {
		l.behind--
		t.behind = false // who still wants to wait for it comes too late
	}
	q.next()
}

// next lets those begin who may.
func (q *queue) next() {
	for q.free > 0 {
		i := slices.IndexFunc(q.lines, func(l *line) bool { return l.next(q) != nil })
		if i < 0 {
			return
		}
		l := q.lines[i]
		t := l.next(q).take()
		q.lines = append(slices.Delete(q.lines, i, i+1), l)
		q.free--
		l.underway++
		if t.behind {
			l.behind++
		}
		close(t.came)
	}
}

// next is what a line may begin with, or nil.
func (l *line) next(q *queue) *rounds {
	switch awaited, behind := &l.waiting[0], &l.waiting[1]; {
	case l.underway >= q.each:
		return nil
	case len(*awaited) > 0:
		return awaited
	case len(*behind) > 0 && l.behind < q.behind:
		return behind
	}
	return nil
}

// rounds are those that a turn waits in.
func (l *line) rounds(t *ask) *rounds {
	if t.behind {
		return &l.waiting[1]
	}
	return &l.waiting[0]
}

func (r *rounds) of(t *ask) int {
	return slices.IndexFunc(*r, func(one *round) bool { return one.of == t.of })
}

func (r *rounds) add(t *ask) {
	i := r.of(t)
	if i < 0 {
		i = len(*r)
		*r = append(*r, &round{of: t.of})
	}
	(*r)[i].turns = append((*r)[i].turns, t)
}

// take takes the turn that is next, of which there is one.
func (r *rounds) take() *ask {
	one := (*r)[0]
	t := one.turns[0]
	one.turns = one.turns[1:]
	*r = slices.Delete(*r, 0, 1)
	if len(one.turns) > 0 {
		*r = append(*r, one)
	}
	return t
}

// drop takes out a turn, and tells whether it was there.
func (r *rounds) drop(t *ask) bool {
	i := r.of(t)
	if i < 0 {
		return false
	}
	one := (*r)[i]
	k := slices.Index(one.turns, t)
	if k < 0 {
		return false
	}
	if one.turns = slices.Delete(one.turns, k, k+1); len(one.turns) == 0 {
		*r = slices.Delete(*r, i, i+1)
	}
	return true
}
