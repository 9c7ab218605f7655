package view

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/lazy/store"
)

// healTime is how long another check of an image is waited for that is under way.
const healTime = time.Minute

// openSound opens the image, and has the daemon make anew what is damaged. The error wraps store.ErrDamaged where it can't.
func (im *Image) openSound(ctx context.Context, o *daemon.Opened, opt Options) error {
	err := im.open(o.Dir, opt.Proven)
	if !errors.Is(err, store.ErrDamaged) {
		return err
	}
	if opt.Warn != nil {
		opt.Warn(fmt.Sprintf("%v: all of the image is checked, and what is damaged is fetched again", err))
	}
	if herr := im.heal(ctx, o); herr != nil {
		return damaged{fmt.Errorf("%w; healing it: %w", err, herr), o.Ref}
	}
	if err = im.open(o.Dir, opt.Proven); errors.Is(err, store.ErrDamaged) {
		err = damaged{err, o.Ref}
	}
	return err
}

// heal has the daemon check the image and make anew what is damaged, and waits until it is complete again if it was: so others may use it
// meanwhile, and what can't be fetched is known before anybody reads it.
func (im *Image) heal(ctx context.Context, o *daemon.Opened) error {
	if err := im.ensure(ctx); err != nil {
		return err
	}
	for begun := time.Now(); ; {
		rep, err := im.c.Fsck(ctx, im.key, daemon.FsckRequest{Heal: true, Ref: o.Ref}, nil)
		var e *daemon.Error
		if errors.As(err, &e) && e.Code == daemon.CodeBusy && time.Since(begun) < healTime {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		switch {
		case err != nil:
			return err
		case rep.Files != "":
			return removed{errors.New("it could not be used, and was removed")}
		case !rep.Healed || o.State != store.Sealed:
			return nil
		}
		return im.c.Wait(ctx, im.key, nil)
	}
}

// damaged is an error about files that fsck can mend.
type damaged struct {
	error
	ref string
}

func (e damaged) Unwrap() error { return e.error }

// Hint is what to do about it.
func (e damaged) Hint() string {
	var r removed
	if errors.As(e.error, &r) {
		return "once more: the image is made anew when it is opened"
	}
	return "`pexfs fsck " + e.ref + "` finds what is damaged and fetches it again"
}

// removed is the error where an image is no longer in the cache.
type removed struct{ error }
