package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// ErrCorrupt is wrapped by the error of a read whose bytes have come and are not what the image says: no waiting mends
// that. The guest gets an I/O error.
var ErrCorrupt = errors.New("not what the image says")

// Waits of a patient image.
const (
	patientFirst  = 100 * time.Millisecond // before a failed read is tried again; doubled each time,
	patientLast   = 5 * time.Second        // up to this
	patientNotice = 10 * time.Second       // until the user is told of a read that waits
)

// patient is the image of a running machine. A read of what is missing doesn't fail because the daemon, the network or
// the registry does: it waits, since a program that is told of an I/O error has no good way to go on. When no read has
// got data that was missing for as long as timeout, the machine ends, and nothing is answered any more.
type patient struct {
	Image
	ref     string        // the image's name, for people
	timeout time.Duration // 0: for ever
	kill    context.CancelCauseFunc
	log     *slog.Logger

	begin time.Time
	last  atomic.Int64 // when data that was missing came, in nanoseconds since begin
}

func newPatient(image Image, ref string, timeout time.Duration, kill context.CancelCauseFunc, log *slog.Logger) *patient {
	return &patient{Image: image, ref: ref, timeout: timeout, kill: kill, log: log, begin: time.Now()}
}

// ReadAt is part of Image. Its error wraps ErrCorrupt, or is the local disk's, or ctx has ended.
func (p *patient) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	if _, _, ok := p.ReadFd(off, len(b)); ok {
		return p.Image.ReadAt(ctx, b, off)
	}
	const waits = "the machine waits for data of %s"
	notice := time.AfterFunc(patientNotice, func() {
		p.log.Warn(fmt.Sprintf(waits, p.ref), "error", fmt.Errorf("none came for %v", patientNotice))
	})
	defer notice.Stop()
	wctx, stop := p.untilTimeout(ctx)
	defer stop()
	var why error
	for wait := patientFirst; ; wait = min(2*wait, patientLast) {
		n, err := p.Image.ReadAt(wctx, b, off)
		switch {
		case err == nil:
			p.last.Store(int64(time.Since(p.begin)))
			return n, nil
		case ctx.Err() != nil, errors.Is(err, ErrCorrupt):
			return n, err
		case wctx.Err() == nil:
			why = err
			p.log.Warn(fmt.Sprintf(waits, p.ref), "error", err)
			t := time.NewTimer(wait)
			select {
			case <-wctx.Done():
			case <-t.C:
			}
			t.Stop()
		}
		if wctx.Err() != nil && ctx.Err() == nil {
			p.kill(p.noData(off, int64(len(b)), why))
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
}

// untilTimeout gives a context that ends with ctx, or when nothing came for as long as the image is patient.
func (p *patient) untilTimeout(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	if p.timeout == 0 {
		return ctx, cancel
	}
	start := time.Since(p.begin)
	var t *time.Timer
	armed := make(chan struct{})
	t = time.AfterFunc(p.timeout, func() {
		<-armed
		quiet := time.Since(p.begin) - max(start, time.Duration(p.last.Load()))
		if quiet >= p.timeout {
			cancel()
			return
		}
		t.Reset(p.timeout - quiet)
	})
	close(armed)
	return ctx, func() {
		t.Stop()
		cancel()
	}
}

// noData is the end of a machine whose read of n bytes at off waited in vain; why may be nil.
func (p *patient) noData(off, n int64, why error) error {
	text := fmt.Sprintf("reading %s: bytes %d to %d of the image are missing, and no data came for %v", p.ref, off, off+n, p.timeout)
	if why != nil {
		text += ": " + why.Error()
	}
	return &EndedError{Ended{
		Error: text,
		Hint:  "check the network and the registry; --io-timeout sets how long a machine waits, 0 for ever",
	}}
}
