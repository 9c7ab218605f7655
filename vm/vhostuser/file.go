package vhostuser

import (
	"golang.org/x/sys/unix"
)

// A FileDevice is a Device some of whose answers lie in a file.
type FileDevice interface {
	Device

	// InFile is asked of every request before MayBlock and Handle, when req.Out is not there yet; it must not wait for
	// anything. If the answer is part of a file, ok is true, and the answer is read from there straight into guest memory,
	// if the host has it in its own. If it hasn't, or anything comes between, the request goes to MayBlock and Handle as
	// any other.
	InFile(queue int, req *Request) (part FilePart, ok bool)
}

// FilePart is an answer: N > 0 bytes of a file and then Tail, together as many as Request.Room or fewer.
type FilePart struct {
	FD   uintptr // open until Serve has returned
	Off  int64
	N    int
	Tail []byte
}

// maxVectors is the most buffers that one preadv2(2) takes (IOV_MAX).
const maxVectors = 1024

// completeFrom answers a request from a file that is in the host's memory, and ends it. It returns false, with the request
// as it was, if it could not. The gate is held meanwhile: nothing here waits.
func (r *ring) completeFrom(req *Request, part FilePart) bool {
	r.s.gate.RLock()
	defer r.s.gate.RUnlock()
	if req.epoch != r.epoch || !r.started || r.broken.Load() || part.N <= 0 || part.N+len(part.Tail) > req.size {
		return false
	}
	vectors, tail, ok := r.vectors(req, part.N)
	if !ok {
		return false
	}
	n, err := unix.Preadv2(int(part.FD), vectors, part.Off, unix.RWF_NOWAIT)
	if err != nil || n != part.N || r.s.mem.fill(tail, part.Tail) != nil {
		return false
	}
	req.n = part.N + len(part.Tail)
	r.mu.Lock()
	r.push(req)
	r.mu.Unlock()
	r.s.release(req)
	return true
}

// vectors gives the first n bytes of a request's room as guest memory, and the segments of the room behind them.
func (r *ring) vectors(req *Request, n int) (vectors [][]byte, rest []segment, ok bool) {
	left := uint64(n)
	for i, s := range req.room {
		for left > 0 && s.n > 0 {
			b := r.s.mem.at(s.addr, min(s.n, left))
			if b == nil || len(vectors) == maxVectors {
				return nil, nil, false // memory has changed, or is in many pieces
			}
			vectors = append(vectors, b)
			s.addr, s.n, left = s.addr+uint64(len(b)), s.n-uint64(len(b)), left-uint64(len(b))
		}
		if s.n > 0 {
			return vectors, append([]segment{s}, req.room[i+1:]...), true
		}
	}
	return vectors, nil, left == 0
}
