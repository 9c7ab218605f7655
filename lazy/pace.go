package lazy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	fillers      = 8       // fetches under way for one image's filler, at most
	fillSize     = 1 << 20 // compressed bytes of one, at most: what is under way is in the way of a reader who comes
	fillStep     = 10 * time.Millisecond
	fillQuiet    = 300 * time.Millisecond // after a reader has waited: he will come again
	fillPatience = 10 * time.Second       // with readers, before one fetch
)

// readers counts those who wait for the network. A program that has read something reads on soon, and a link that the filler has filled
// makes it wait.
type readers struct {
	n    atomic.Int64
	came atomic.Int64 // how many have ever waited
	last atomic.Int64 // when the last one left, in nanoseconds
}

func (r *readers) enter() {
	r.n.Add(1)
	r.came.Add(1)
}

func (r *readers) leave() {
	r.last.Store(time.Now().UnixNano())
	r.n.Add(-1)
}

// busy tells whether one waits, or has just waited.
func (r *readers) busy() bool {
	return r.n.Load() > 0 || time.Duration(time.Now().UnixNano()-r.last.Load()) < fillQuiet
}

// pace is how fast an image is filled: with one fetch at a time first, since whoever has mounted an image reads it at once, and with one
// more after each during which no reader came. A reader begins that anew.
type pace struct {
	readers *readers

	mu       sync.Mutex // guards what follows
	underway int
	most     int
	came     int64         // readers that came before most began
	stale    int           // of those under way: begun before that
	given    chan struct{} // closed when underway or most changes
}

func newPace(r *readers) *pace { return &pace{readers: r, most: 1, given: make(chan struct{})} }

// take waits until the filler may fetch: no reader is there, or his patience has ended. Each success is followed by give.
func (p *pace) take(ctx context.Context) error {
	for yielded := time.Duration(0); ; {
		busy := p.readers.busy() && yielded < fillPatience
		p.mu.Lock()
		if came := p.readers.came.Load(); came != p.came {
			p.came, p.most, p.stale = came, 1, p.underway
		}
		if !busy && p.underway < p.most {
			p.underway++
			p.mu.Unlock()
			return nil
		}
		given := p.given
		p.mu.Unlock()
		if !busy {
			select {
			case <-given:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		if err := sleep(ctx, fillStep); err != nil {
			return err
		}
		yielded += fillStep
	}
}

// give ends a fetch.
func (p *pace) give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.underway--
	if p.stale > 0 {
		p.stale--
	} else {
		p.most = min(p.most+1, fillers)
	}
	close(p.given)
	p.given = make(chan struct{})
}
