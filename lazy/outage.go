package lazy

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	outageFirst = time.Second // the pause after a filler's first fault, doubled with each
	outageLast  = time.Minute // up to this
)

// outage is when a filler's fetches fail one after the other: all pause together then, longer each time. The zero value is none.
type outage struct {
	mu    sync.Mutex // guards what follows
	pause time.Duration
	begun time.Time // the last pause
	until time.Time
}

// await waits for the end of a pause.
func (o *outage) await(ctx context.Context) error {
	o.mu.Lock()
	left := time.Until(o.until)
	o.mu.Unlock()
	if left <= 0 {
		return context.Cause(ctx)
	}
	return sleep(ctx, left)
}

// met notes that a fetch failed that was begun then. It is the first after a pause, or one of those that were under way when that began.
func (o *outage) met(begun time.Time) (pause time.Duration, first bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if begun.Before(o.begun) {
		return o.pause, false
	}
	o.pause = min(max(2*o.pause, outageFirst), outageLast)
	o.begun = time.Now()
	o.until = o.begun.Add(o.pause/2 + rand.N(o.pause))
	return o.pause, true
}

// passed notes that a fetch succeeded, and tells whether that ends an outage.
func (o *outage) passed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := o.pause > 0
	o.pause = 0
	return was
}
