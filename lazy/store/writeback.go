package store

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// regionBlocks are the blocks of a region, which goes to disk as soon as all of it is there: 16 MiB.
const regionBlocks = 4096

// writeback has regions of an image written to disk while others are still being filled, so that Seal has little to wait for. Nothing relies
// on it: errors are met again by Seal. The zero value is ready. Its methods may be called concurrently.
type writeback struct {
	run    sync.WaitGroup
	mu     sync.Mutex // guards what follows
	queue  []int64    // regions
	busy   bool       // a goroutine works on the queue
	closed bool
}

// add has a region of f written.
func (w *writeback) add(f *os.File, region int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.queue = append(w.queue, region)
	if !w.busy {
		w.busy = true
		w.run.Go(func() {
			for region, ok := w.next(); ok; region, ok = w.next() {
				const size = regionBlocks * BlockSize
				_ = unix.SyncFileRange(int(f.Fd()), region*size, size, unix.SYNC_FILE_RANGE_WRITE)
			}
		})
	}
}

func (w *writeback) next() (region int64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.queue) == 0 {
		w.busy = false
		return 0, false
	}
	region, w.queue = w.queue[0], w.queue[1:]
	return region, true
}

// close ends the work: f is no longer in use.
func (w *writeback) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.run.Wait()
}
