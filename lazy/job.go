package lazy

import "context"

// job is a fetch of neighbouring chunks of a layer. It ends before all of them are written if the last who waits for one of them gives
// up. It goes on if he has got what he wanted: what was added to that is for nobody, or for him when he reads on.
type job struct {
	cancel  context.CancelFunc
	waiters int
	got     map[int]chan struct{} // by chunk, closed when it was written
	line    *line                 // where its turn comes
	turn    *ask

	end     chan struct{} // closed in the end; what follows is valid then
	err     error
	dropped bool // it was given up, so err says nothing of its chunks
}

// has tells whether a chunk of the job was written.
func (j *job) has(k int) bool {
	select {
	case <-j.got[k]:
		return true
	default:
		return false
	}
}

// concerns tells whether the error of a job that failed is one of these keys: the job was of no others, as far as it didn't get.
func (j *job) concerns(keys []int) bool {
	if j.dropped {
		return false
	}
	mine := make(map[int]bool, len(keys))
	for _, k := range keys {
		mine[k] = true
	}
	for k := range j.got {
		if !mine[k] && !j.has(k) {
			return false
		}
	}
	return true
}

// waits are the jobs that somebody waits for, with the keys that he wants of them.
type waits map[*job][]int

// obtain waits until everything in keys is there: by the jobs under way that others started, and by one of its own, work, for what
// nobody has started, and with it for what of ahead nobody has. Where a job fails or is given up that was of other keys, too, what
// is still missing is got by another, without ahead. With behind nobody waits for it but the caller. has is called with im.mu held. The
// caller has begun.
func (im *Image) obtain(ctx context.Context, keys, ahead []int, behind bool, has func(key int) bool, work func(context.Context, *job) error) error {
	for again := true; again; ahead = nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if im.ctx.Err() != nil { // ctx is about to end
			return ErrReopened
		}
		held := im.join(keys, ahead, behind, has, work)
		var err error
		again, err = held.wait(ctx, keys)
		im.mu.Lock()
		for j := range held {
			if j.waiters--; j.waiters == 0 && err != nil {
				j.cancel()
			}
		}
		im.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// join makes the caller wait for the jobs of keys, one of which it may start.
func (im *Image) join(keys, ahead []int, behind bool, has func(key int) bool, work func(context.Context, *job) error) waits {
	im.mu.Lock()
	defer im.mu.Unlock()
	held := make(waits)
	var own *job
	add := func(k int) {
		if own == nil {
			own = &job{end: make(chan struct{}), got: make(map[int]chan struct{}), line: im.line, turn: newAsk(im, behind)}
		}
		own.got[k] = make(chan struct{})
		im.jobsOf[k] = own
	}
	for _, k := range keys {
		if has(k) {
			continue
		}
		if im.jobsOf[k] == nil {
			add(k)
		}
		j := im.jobsOf[k]
		held[j] = append(held[j], k)
	}
	for j := range held {
		j.waiters++
		if !behind {
			im.c.fetches.await(j.line, j.turn)
		}
	}
	if own == nil {
		return held
	}
	for _, k := range ahead {
		if im.jobsOf[k] == nil && !has(k) {
			add(k)
		}
	}
	ctx, cancel := context.WithCancel(im.ctx)
	own.cancel = cancel
	im.jobs.Go(func() { im.do(ctx, own, work) })
	return held
}

// wait waits until all is there. again says that something isn't, for no reason of its own.
func (w waits) wait(ctx context.Context, keys []int) (again bool, err error) {
	for j, wanted := range w {
		for _, k := range wanted {
			select {
			case <-j.got[k]:
				continue
			case <-j.end:
			case <-ctx.Done():
				return false, context.Cause(ctx)
			}
			if j.has(k) || j.err == nil { // the error is of what came behind it
				continue
			}
			if j.concerns(keys) {
				return false, j.err
			}
			again = true
			break
		}
	}
	return again, nil
}

// do runs a job and takes it off the list.
func (im *Image) do(ctx context.Context, j *job, work func(context.Context, *job) error) {
	err := work(ctx, j)
	j.dropped = ctx.Err() != nil
	im.mu.Lock()
	j.err = err
	for k := range j.got {
		delete(im.jobsOf, k)
	}
	im.mu.Unlock()
	j.cancel()
	close(j.end)
}
