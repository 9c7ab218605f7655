package lazy

import (
	"context"
	"errors"
)

// job is a fetch of neighbouring chunks of a layer. Its context ends with the last who waits for one of them, unless some were
// fetched for nobody.
type job struct {
	cancel  context.CancelFunc
	waiters int
	stays   bool
	end     chan struct{}
	err     error
	got     map[int]chan struct{} // by chunk, closed when it was written
}

// obtain waits until everything in keys is there: by the jobs under way that others started, and by one of its own, work, for
// what nobody has started, and with it for what of ahead nobody has. A job that others gave up is started anew. has is called with im.mu held.
func (im *Image) obtain(ctx context.Context, keys, ahead []int, has func(key int) bool, work func(context.Context, *job) error) error {
	for {
		type wait struct {
			j   *job
			key int
		}
		var waits []wait
		held := make(map[*job]bool)
		var own *job
		im.mu.Lock()
		for _, k := range keys {
			if has(k) {
				continue
			}
			j := im.jobsOf[k]
			if j == nil {
				if own == nil {
					own = &job{end: make(chan struct{}), got: make(map[int]chan struct{})}
				}
				own.got[k] = make(chan struct{})
				im.jobsOf[k] = own
				j = own
			}
			if !held[j] {
				held[j] = true
				j.waiters++
			}
			waits = append(waits, wait{j, k})
		}
		if own != nil {
			for _, k := range ahead {
				if im.jobsOf[k] == nil && !has(k) {
					own.got[k] = make(chan struct{})
					im.jobsOf[k] = own
					own.stays = true
				}
			}
			wctx, cancel := context.WithCancel(im.ctx)
			own.cancel = cancel
			im.jobs.Add(1)
			go im.do(wctx, own, work)
		}
		im.mu.Unlock()

		var err error
		again := false
		for _, w := range waits {
			select {
			case <-w.j.got[w.key]:
				continue
			case <-w.j.end:
				select {
				case <-w.j.got[w.key]: // the error is of what came behind it
					continue
				default:
				}
				if w.j.err == nil {
					continue
				}
				if w.j != own && errors.Is(w.j.err, context.Canceled) {
					again = true
					continue
				}
				err = w.j.err
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
			break
		}
		im.mu.Lock()
		for j := range held {
			if j.waiters--; j.waiters == 0 && !j.stays {
				j.cancel()
			}
		}
		im.mu.Unlock()
		if err != nil || !again {
			return err
		}
	}
}

// do runs a job and takes it off the list.
func (im *Image) do(ctx context.Context, j *job, work func(context.Context, *job) error) {
	defer im.jobs.Done()
	err := work(ctx, j)
	im.mu.Lock()
	j.err = err
	for k := range j.got {
		if im.jobsOf[k] == j {
			delete(im.jobsOf, k)
		}
	}
	im.mu.Unlock()
	j.cancel()
	close(j.end)
}
