package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// Policy says how long to go on after failures that may pass. A zero field means its default.
type Policy struct {
	// Attempts bounds the tries in a row that bring nothing new; 6. Whoever got a good piece further starts over.
	Attempts int
	// MinWait is the wait before the second try, 100 ms. It doubles with each try up to MaxWait, 5 s. Every wait is
	// shortened at random by up to half, so that many who failed together don't come back together.
	MinWait, MaxWait time.Duration
	// Idle is how long to wait for an answer, and then for each further byte, before a try counts as failed; 15 s.
	Idle time.Duration
	// Patience is the longest wait a server may ask for (an error's RetryAfter), one minute. One that asks for more
	// has refused.
	Patience time.Duration
}

// progress is how many bytes a try must bring to count as one that got further: few enough for a bad link, too many
// for a server that keeps a reader for ever with one byte at a time.
const progress = 64 << 10

func (p Policy) withDefaults() Policy {
	p.Attempts = cmp.Or(p.Attempts, 6)
	p.MinWait = cmp.Or(p.MinWait, 100*time.Millisecond)
	p.MaxWait = cmp.Or(p.MaxWait, 5*time.Second)
	p.Idle = cmp.Or(p.Idle, 15*time.Second)
	p.Patience = cmp.Or(p.Patience, time.Minute)
	return p
}

// Temporary says whether what failed with err may work later: the first error in err's tree that has a method
// Temporary() bool decides, and a stream that ended too early is temporary. An error that wraps ErrDigestMismatch or
// ErrRangeUnsupported never is, nor one that doesn't say.
func Temporary(err error) bool {
	if errors.Is(err, ErrDigestMismatch) || errors.Is(err, ErrRangeUnsupported) {
		return false
	}
	var t interface{ Temporary() bool }
	if errors.As(err, &t) {
		return t.Temporary()
	}
	return errors.Is(err, io.ErrUnexpectedEOF)
}

// wait is how long to wait after the given number of failures in a row, the last being err; false: don't go on.
// An error can ask for more time by a method RetryAfter() time.Duration.
func (p Policy) wait(failures int, err error) (time.Duration, bool) {
	if failures >= p.Attempts || !Temporary(err) {
		return 0, false
	}
	d := p.MinWait
	for range failures - 1 {
		if d >= p.MaxWait/2 {
			d = p.MaxWait
			break
		}
		d *= 2
	}
	d = min(d, p.MaxWait)
	d -= rand.N(d/2 + 1)
	var after interface{ RetryAfter() time.Duration }
	if errors.As(err, &after) {
		asked := after.RetryAfter()
		if asked > p.Patience {
			return 0, false
		}
		if asked > 0 {
			d += asked // the jitter comes on top: never earlier than asked
		}
	}
	return d, true
}

// Do calls f until it succeeds, fails for good (see Temporary), or the policy has no more attempts; then it returns f's
// last error. Each call's context ends when Idle passes without f having called alive.
func (p Policy) Do(ctx context.Context, f func(ctx context.Context, alive func()) error) error {
	p = p.withDefaults()
	try := ctx
	for failures := 1; ; failures++ {
		dogCtx, dog := watch(try, p.Idle)
		err := dog.explain(f(dogCtx, dog.arm))
		dog.stop()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d, ok := p.wait(failures, err)
		if !ok {
			return givingUp(failures, err)
		}
		if err := sleep(ctx, d); err != nil {
			return err
		}
		try = again(ctx)
	}
}

// givingUp tells of the number of failures where there was more than one.
func givingUp(failures int, err error) error {
	if failures < 2 {
		return err
	}
	return fmt.Errorf("giving up after %d attempts: %w", failures, err)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchdog ends a context when nobody says for a while that there is progress. It starts armed.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
}

// idleError is the cause of a context that a watchdog ended.
type idleError struct{ idle time.Duration }

func (e *idleError) Error() string   { return fmt.Sprintf("nothing received for %v", e.idle) }
func (e *idleError) Temporary() bool { return true }

func watch(ctx context.Context, idle time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(idle, func() { cancel(&idleError{idle}) })
	return ctx, &watchdog{ctx, cancel, timer, idle}
}

func (d *watchdog) arm()    { d.timer.Reset(d.idle) }
func (d *watchdog) disarm() { d.timer.Stop() }

// stop ends the watch and the context.
func (d *watchdog) stop() {
	d.timer.Stop()
	d.cancel(nil)
}

// explain is err, or why the watchdog ended the context if that is what err is from.
func (d *watchdog) explain(err error) error {
	var idle *idleError
	if err != nil && errors.As(context.Cause(d.ctx), &idle) {
		return idle
	}
	return err
}
