package lazy

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/store"
)

// Fill fetches all that is missing, behind the readers, and seals the image. It goes on through faults of the network,
// waiting longer from one to the next, until ctx ends; it gives up on bytes that are wrong, on a registry that refuses, and on a disk
// that won't take them. A second call while one runs returns at once.
func (im *Image) Fill(ctx context.Context) error {
	ctx, done, err := im.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if !im.filling.CompareAndSwap(false, true) {
		return nil
	}
	defer im.filling.Store(false)
	if im.file.State() == store.Sealed {
		return nil
	}
	var g errgroup.Group
	g.Go(im.c.st.Sync) // meanwhile
	err = im.fill(ctx)
	if err == nil {
		err = im.c.refused(im.file.Info)
	}
	if err == nil {
		err = im.file.Seal()
	}
	err = cmp.Or(err, g.Wait())
	if im.file.State() == store.Sealed {
		close(im.sealed) // once: whoever fills it next sees its state
	}
	if ctx.Err() == nil {
		im.mu.Lock()
		im.err = err
		im.mu.Unlock()
	}
	return err
}

func (im *Image) fill(ctx context.Context) error {
	if im.plan == nil {
		return nil
	}
	for i := range im.plan.extents {
		if _, ok := im.clones[i]; !ok {
			continue
		}
		if e := im.plan.extent(i); !im.file.Has(e.off, e.size) {
			if err := im.copyClone(ctx, i, e); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithCancelCause(im.purpose(ctx, blob.ForFiller))
	defer cancel(nil)
	runs := make(chan run)
	p := newPace(&im.fetchedIn().readers)
	var wg sync.WaitGroup
	for range fillers {
		wg.Go(func() {
			for r := range runs {
				if err := im.fillRun(ctx, r, p); err != nil {
					cancel(err)
				}
			}
		})
	}
	var pairs []int
	send := func() bool {
		rs := im.runs(pairs, fillSize)
		pairs = nil
		for _, r := range rs {
			select {
			case runs <- r:
			case <-ctx.Done():
				return false
			}
		}
		return true
	}
	more := true
	for i := 0; i < im.plan.extents && more; i++ {
		e := im.plan.extent(i)
		if im.file.Has(e.off, e.size) {
			continue
		}
		for k := int(e.first); k < int(e.first+e.chunks); k++ {
			pairs = append(pairs, i, k)
		}
		if len(pairs) >= 2*1024 {
			more = send()
		}
	}
	if more {
		send()
	}
	close(runs)
	wg.Wait()
	return context.Cause(ctx)
}

// fillRun fetches one run once no reader waits, and again after a fault that may pass.
func (im *Image) fillRun(ctx context.Context, r run, p *pace) error {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		if err := p.take(ctx); err != nil {
			return err
		}
		err := im.fetchBehind(ctx, r)
		p.give()
		if err == nil || ctx.Err() != nil || !blob.Temporary(err) {
			return err
		}
		im.mu.Lock()
		im.err = err
		im.mu.Unlock()
		im.log().Warn("filling image", "err", err, "again", wait)
		if err := sleep(ctx, wait/2+rand.N(wait)); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
