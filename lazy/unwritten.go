package lazy

import (
	"slices"
	"sync"
)

// unwrittenMax bounds the bytes of chunks that are held though nobody waits for them. One chunk may be larger.
const unwrittenMax = 32 << 20

// unwritten are chunks that couldn't be written, the latest of them, and those that somebody waits for. The zero value is ready.
type unwritten struct {
	mu    sync.Mutex // guards what follows
	held  map[heldKey]*heldChunk
	order []heldKey // of those that nobody waits for, oldest first
	bytes int64     // of these
}

type heldKey struct {
	im    *Image
	chunk int
}

type heldChunk struct {
	b       []byte // nil: it didn't come yet
	waiters int
}

// put keeps the bytes of a chunk, which are copied.
func (u *unwritten) put(im *Image, chunk int, b []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k := heldKey{im, chunk}
	h := u.held[k]
	if h == nil {
		h = u.add(k)
	}
	if h.b == nil {
		h.b = slices.Clone(b)
		u.rest(k, h)
	}
}

// get gives the bytes of a chunk, or nil.
func (u *unwritten) get(im *Image, chunk int) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	if h := u.held[heldKey{im, chunk}]; h != nil {
		return h.b
	}
	return nil
}

// await keeps a chunk, if it is there or as soon as it is, until done is called.
func (u *unwritten) await(im *Image, chunk int) (done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k := heldKey{im, chunk}
	h := u.held[k]
	if h == nil {
		h = u.add(k)
	} else if h.waiters == 0 {
		u.take(k, h)
	}
	h.waiters++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		h.waiters--
		if u.held[k] == h {
			u.rest(k, h)
		}
	}
}

func (u *unwritten) add(k heldKey) *heldChunk {
	if u.held == nil {
		u.held = make(map[heldKey]*heldChunk)
	}
	h := new(heldChunk)
	u.held[k] = h
	return h
}

// rest makes a chunk one of the latest, if nobody waits for it.
func (u *unwritten) rest(k heldKey, h *heldChunk) {
	switch {
	case h.waiters > 0:
		return
	case h.b == nil:
		delete(u.held, k)
		return
	}
	u.order = append(u.order, k)
	u.bytes += int64(len(h.b))
	for len(u.order) > 1 && u.bytes > unwrittenMax {
		old := u.order[0]
		u.take(old, u.held[old])
		delete(u.held, old)
	}
}

// take takes a chunk off the latest.
func (u *unwritten) take(k heldKey, h *heldChunk) {
	i := slices.Index(u.order, k)
	u.order = slices.Delete(u.order, i, i+1)
	u.bytes -= int64(len(h.b))
}

// drop forgets a chunk, or all of an image where chunk is -1.
func (u *unwritten) drop(im *Image, chunk int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range slices.Clone(u.order) {
		if k.im == im && (chunk == -1 || k.chunk == chunk) {
			u.take(k, u.held[k])
			delete(u.held, k)
		}
	}
}
