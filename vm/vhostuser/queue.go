package vhostuser

import (
	"runtime/debug"
)

// batch is how many requests are answered, at most, before the driver is told of the first.
const batch = 16

// run is the ring's goroutine.
func (r *ring) run() {
	defer r.s.recover(r.index)
	debug.SetPanicOnFault(true)
	for r.s.ctx.Err() == nil {
		r.drain()
		if err := r.wait.wait(); err != nil {
			r.s.fail(err)
			return
		}
	}
}

// drain serves the ring until there is nothing more to take.
func (r *ring) drain() {
	files, _ := r.s.dev.(FileDevice)
	for n := 1; ; n++ {
		req := r.pop()
		if req == nil {
			r.notify()
			return
		}
		if files != nil {
			if part, ok := files.InFile(r.index, req); ok && r.completeFrom(req, part) {
				if n%batch == 0 {
					r.notify()
				}
				continue
			}
		}
		req.makeOut()
		if !r.s.dev.MayBlock(r.index, req) {
			r.complete(req, r.s.dev.Handle(req.ctx, r.index, req))
			if n%batch == 0 {
				r.notify()
			}
			continue
		}
		select {
		case r.slots <- struct{}{}:
		default:
			r.notify() // what is answered must not wait for a slot
			select {
			case r.slots <- struct{}{}:
			case <-r.s.ctx.Done():
				return
			}
		}
		r.s.wg.Go(func() {
			defer r.s.recover(r.index)
			defer func() { <-r.slots }()
			debug.SetPanicOnFault(true)
			r.complete(req, r.s.dev.Handle(req.ctx, r.index, req))
			r.notify()
		})
	}
}

// recover turns a panic of the calling goroutine into the end of the device.
func (s *server) recover(queue int) {
	if v := recover(); v != nil {
		err := &PanicError{Queue: queue, Value: v, Stack: debug.Stack()}
		s.opts.Logger.Error("device ended", "queue", queue, "error", err, "stack", string(err.Stack))
		s.fail(err)
	}
}

// acquire gives an empty request.
func (s *server) acquire() *Request {
	if req, ok := s.requests.Get().(*Request); ok {
		return req
	}
	return new(Request)
}

// release takes a request back, to be reused with its buffers.
func (s *server) release(req *Request) {
	*req = Request{in: req.in[:0], out: req.out[:0], room: req.room[:0]}
	s.requests.Put(req)
}
