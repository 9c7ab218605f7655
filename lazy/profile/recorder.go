package profile

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// BlockSize is the unit in which a Recorder sees an image, in bytes.
const BlockSize = 4096

// Read is a range of an image's blocks that was read, and when first.
type Read struct {
	Block, Blocks int64
	At            time.Duration // since the recorder was made
}

// Recorder notes which blocks of an image are read, each once, in order. Its methods may be called concurrently; noting
// what was noted before takes a few loads and no lock.
type Recorder struct {
	start time.Time
	seen  []atomic.Uint64
	over  atomic.Bool

	mu    sync.Mutex // guards what follows
	reads []Read
	last  time.Time // of the latest read that was new
}

// NewRecorder records reads of an image of size bytes.
func NewRecorder(size int64) *Recorder {
	return &Recorder{start: time.Now(), seen: make([]atomic.Uint64, (size+64*BlockSize-1)/(64*BlockSize))}
}

// Touch notes that n bytes from off on are read; the range lies in the image and isn't empty. A nil Recorder notes nothing.
func (r *Recorder) Touch(off, n int64) {
	if r == nil || r.over.Load() {
		return
	}
	first, end := off/BlockSize, (off+n+BlockSize-1)/BlockSize
	if r.known(first, end) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for b := first; b < end; b++ {
		bit := uint64(1) << uint(b%64)
		if r.seen[b/64].Or(bit)&bit != 0 {
			continue
		}
		r.last = now
		if k := len(r.reads); k > 0 && r.reads[k-1].Block+r.reads[k-1].Blocks == b {
			r.reads[k-1].Blocks++
			continue
		}
		if len(r.reads) == MaxTouches {
			r.over.Store(true)
			return
		}
		r.reads = append(r.reads, Read{b, 1, now.Sub(r.start)})
	}
}

// known tells whether these blocks were noted already.
func (r *Recorder) known(first, end int64) bool {
	for b := first; b < end; {
		lo := uint(b % 64)
		k := min(64-int64(lo), end-b)
		mask := ^uint64(0) >> (64 - uint(k)) << lo
		if r.seen[b/64].Load()&mask != mask {
			return false
		}
		b += k
	}
	return true
}

// Reads gives what was noted so far.
func (r *Recorder) Reads() []Read {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reads)
}

// Last is when something new was noted last; zero if nothing was.
func (r *Recorder) Last() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// End ends the recording: nothing more is noted.
func (r *Recorder) End() { r.over.Store(true) }
