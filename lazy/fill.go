package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/store"
)

// Fill fetches all that is missing, behind the readers, and seals the image. It goes on through faults of the network,
// waiting longer from one to the next, until ctx ends, and rests while the folder takes no more (Cache.Trouble); it gives up on bytes that
// are wrong and on a registry that refuses: see MayPass. A second call while one runs returns at once. Where a failing disk may have lost
// blocks when the image was to be sealed, it is looked at again and taken out of memory: the error is ErrReopened then.
func (im *Image) Fill(ctx context.Context) error {
	err := im.fillAndSeal(ctx)
	if !errors.Is(err, errLost) {
		return err
	}
	im.log().Warn("blocks may be lost: those on disk are checked", "err", err)
	key := im.file.Info.Key
	err = im.c.change(context.WithoutCancel(ctx), key, func(now *Image) error {
		if now != im {
			return nil // another has changed it meanwhile, and opened it anew
		}
		return im.file.Recheck(context.WithoutCancel(ctx))
	})
	if err != nil {
		return err
	}
	return ErrReopened
}

// errLost says that a failing disk may have lost blocks.
var errLost = errors.New("the disk has failed")

func (im *Image) fillAndSeal(ctx context.Context) error {
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
		err = im.seal(ctx)
	}
	err = cmp.Or(err, g.Wait())
	if im.file.State() == store.Sealed {
		im.letGo()
		close(im.sealed) // once: whoever fills it next sees its state
	}
	if ctx.Err() == nil {
		im.setErr(err)
	}
	return err
}

// seal puts the complete image on disk. The error wraps errLost where a failing disk has lost some of it perhaps.
func (im *Image) seal(ctx context.Context) error {
	for wait := roomLook; ; wait = min(2*wait, time.Minute) {
		err := im.file.Seal()
		if !errors.Is(err, store.ErrUnwritable) {
			return err
		}
		im.c.met(err, 0)
		if im.file.State() == store.Lazy {
			return fmt.Errorf("%w: %w", errLost, err)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		if err := im.awaitRoom(ctx); err != nil {
			return err
		}
	}
}

func (im *Image) fill(ctx context.Context) error {
	if im.plan == nil {
		return nil
	}
	for i := range im.plan.extents {
		if _, ok := im.clones[i]; !ok {
			continue
		}
		for e := im.plan.extent(i); !im.file.Has(e.off, e.size); {
			err := im.copyClone(ctx, i, e)
			if err == nil {
				break // if it is damaged there, it is fetched
			}
			if !errors.Is(err, store.ErrUnwritable) {
				return err
			}
			if err := im.awaitRoom(ctx); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithCancelCause(im.purpose(ctx, blob.ForFiller))
	defer cancel(nil)
	runs := make(chan run)
	p := newPace(&im.fetchedIn().readers)
	var o outage
	var wg sync.WaitGroup
	for range fillers {
		wg.Go(func() {
			for r := range runs {
				if err := im.fillRun(ctx, r, p, &o); err != nil {
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
func (im *Image) fillRun(ctx context.Context, r run, p *pace, o *outage) error {
	for {
		if err := im.awaitRoom(ctx); err != nil {
			return err
		}
		if err := o.await(ctx); err != nil {
			return err
		}
		if im.writeHeld(r) {
			return nil
		}
		if err := p.take(ctx); err != nil {
			return err
		}
		begun := time.Now()
		err := im.fetchBehind(ctx, r)
		p.give()
		switch {
		case err == nil && o.passed():
			im.log().Info("filling goes on")
			im.ResetErr()
		case err != nil && (ctx.Err() != nil || !blob.Temporary(err)):
			return err
		case err != nil:
			if pause, first := o.met(begun); first {
				im.setErr(err)
				im.log().Warn("filling pauses", "err", err, "again", pause)
			}
			continue
		}
		if im.c.troubled() == nil {
			return nil
		} // else it may be held
	}
}

// MayPass tells of the error of Fill whether it is worth another call after some minutes: what a registry refuses it may grant again, but
// what is wrong stays wrong.
func MayPass(err error) bool {
	return err != nil && !errors.Is(err, blob.ErrDigestMismatch) && !errors.Is(err, ErrRefused)
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
