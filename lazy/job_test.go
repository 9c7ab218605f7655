package lazy

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
)

// scripted has each fetch answered, or not, by a function, which is given the number of the fetch, from 1 on.
type scripted struct {
	*memRepo
	mu    sync.Mutex
	n     int
	fetch func(ctx context.Context, n int, off, size int64) error
}

func (r *scripted) Blob(d v1.Descriptor) blob.Source { return &scriptedBlob{r.memRepo.Blob(d), r} }

type scriptedBlob struct {
	blob.Source
	r *scripted
}

func (b *scriptedBlob) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.r.mu.Lock()
	b.r.n++
	number, fetch := b.r.n, b.r.fetch
	b.r.mu.Unlock()
	if fetch != nil {
		if err := fetch(ctx, number, off, n); err != nil {
			return nil, err
		}
	}
	return b.Source.Fetch(ctx, off, n)
}

// begin makes the next fetch the first.
func (r *scripted) begin(fetch func(ctx context.Context, n int, off, size int64) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n, r.fetch = 0, fetch
}

func openScripted(t *testing.T) (*scripted, madeLayer, *Image) {
	t.Helper()
	m, l, _ := scattered(t)
	r := &scripted{memRepo: m}
	return r, l, mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
}

// wanted waits until so many wait for a chunk.
func wanted(im *Image, chunk, readers int) {
	for {
		im.mu.Lock()
		j := im.jobsOf[chunk]
		n := 0
		if j != nil {
			n = j.waiters
		}
		im.mu.Unlock()
		if n == readers {
			return
		}
		runtime.Gosched()
	}
}

var errLine = errors.New("the line is down")

// TestErrorsOfOthers has readers who wait for a chunk in a fetch that another began: what fails there that they haven't asked for is
// nothing to them.
func TestErrorsOfOthers(t *testing.T) {
	for name, damage := range map[string]func(*scripted, madeLayer, *Image) error{
		"a wrong chunk": func(r *scripted, l madeLayer, im *Image) error {
			r.blobs[l.d.Digest][im.plan.chunk(0).Start+100] ^= 1
			return nil
		},
		"the network": func(*scripted, madeLayer, *Image) error { return errLine },
	} {
		t.Run(name, func(t *testing.T) {
			r, l, im := openScripted(t)
			failing := damage(r, l, im)
			goOn := make(chan struct{})
			r.begin(func(_ context.Context, n int, off, _ int64) error {
				if n == 1 {
					<-goOn
				}
				if off == im.plan.chunk(0).Start {
					return failing
				}
				return nil
			})
			var wg sync.WaitGroup
			var first, second error
			e := im.plan.extent(1)
			wg.Go(func() { first = im.Need(t.Context(), 2<<20, e.off+1-2<<20) }) // both
			wanted(im, 1, 1)
			wg.Go(func() { second = im.Need(t.Context(), e.off, 1) })
			wanted(im, 1, 2)
			close(goOn)
			wg.Wait()
			if first == nil || second != nil {
				t.Errorf("who wants the first file is told %v, who wants the second %v", first, second)
			}
		})
	}
}

// TestAheadIsTooMuch has a network that doesn't give what is fetched ahead.
func TestAheadIsTooMuch(t *testing.T) {
	r, _, im := openScripted(t)
	r.begin(func(_ context.Context, _ int, _, size int64) error {
		if size > 10_000 {
			return errLine
		}
		return nil
	})
	if err := im.Need(t.Context(), im.plan.extent(0).off, 1); err != nil {
		t.Error(err)
	}
	if r.n != 2 {
		t.Errorf("%d fetches", r.n)
	}
	r.begin(func(context.Context, int, int64, int64) error { return errLine })
	if err := im.Need(t.Context(), im.plan.extent(300).off, 1); !errors.Is(err, errLine) {
		t.Errorf("got %v", err)
	}
	if r.n != 2 {
		t.Errorf("%d fetches where all fail", r.n)
	}
}

// TestGivenUp has a reader give up while what he wants is fetched, and more ahead: the fetch ends, unless another one waits.
func TestGivenUp(t *testing.T) {
	r, _, im := openScripted(t)
	hang := func(ctx context.Context, n int, _, _ int64) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	r.begin(hang)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := im.Need(ctx, im.plan.extent(0).off, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	wanted(im, 0, 1)
	cancel()
	wg.Wait()
	im.jobs.Wait() // else it hangs

	goOn := make(chan struct{})
	r.begin(func(ctx context.Context, n int, _, _ int64) error {
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	ctx, cancel = context.WithCancel(t.Context())
	wg.Go(func() { im.Need(ctx, im.plan.extent(0).off, 1) })
	wanted(im, 0, 1)
	wg.Go(func() {
		if err := im.Need(t.Context(), im.plan.extent(1).off, 1); err != nil { // it is fetched ahead of the first
			t.Error(err)
		}
	})
	wanted(im, 1, 2)
	cancel()
	wanted(im, 1, 1)
	close(goOn)
	wg.Wait()
	if r.n != 1 {
		t.Errorf("%d fetches", r.n)
	}
}

// TestNeedAfterGivingUp has nothing fetched for who has given up before.
func TestNeedAfterGivingUp(t *testing.T) {
	r, _, im := openScripted(t)
	r.begin(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := im.Need(ctx, im.plan.extent(0).off, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	im.jobs.Wait()
	if r.n != 0 {
		t.Errorf("%d fetches", r.n)
	}
}
