package vhostuser

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxRing is the greatest ring and the longest chain of descriptors: what QEMU's own devices take.
const maxRing = 1024

// The parts of a split ring (VIRTIO 1.2, section 2.7).
const (
	descSize      = 16
	usedEntrySize = 8

	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
)

// place is where a ring is and how far it has come: all that identifies it between a stop and a start.
type place struct {
	num               uint16
	desc, used, avail uint64 // addresses of the front end
	nextAvail         uint16 // the next entry of the available ring to take
	nextUsed          uint16 // the next entry of the used ring to fill
}

// A ring is one virtqueue.
//
// The fields of the first group change only with server.gate held for writing, nextAvail also on the ring's goroutine
// with the gate held for reading. Those of the second are guarded by mu, which is taken with the gate held.
type ring struct {
	s     *server
	index int

	num              uint16
	at               place
	enabled, started bool
	stopped          *place // where the ring was stopped, if it may go on from there
	epoch            uint64 // counts the starts that were not continuations
	ctx              context.Context
	cancel           context.CancelFunc
	kick, call, errs int // descriptors, or -1
	eventIdx         bool
	desc             []byte
	avail            []byte
	used             []byte
	nextAvail        uint16

	mu        sync.Mutex
	nextUsed  uint16
	signalled uint16 // nextUsed when the driver was last told
	told      bool   // signalled holds
	parked    []*Request

	broken   atomic.Bool   // stands still until it is started again
	reported atomic.Bool   // a fault has been logged
	fence    atomic.Uint32 // see arm
	wait     *waiter       // nil until the first start
	slots    chan struct{} // one per request in flight
	indirect []byte        // the copy of an indirect table; of the ring's goroutine
}

func newRing(s *server, index int) *ring {
	r := &ring{s: s, index: index, kick: -1, call: -1, errs: -1, slots: make(chan struct{}, s.opts.InFlight)}
	r.ctx, r.cancel = context.WithCancel(s.ctx)
	return r
}

// resolve finds the ring in memory. The gate is held for writing.
func (r *ring) resolve() error {
	r.desc, r.avail, r.used = nil, nil, nil
	n := uint64(r.num)
	if n == 0 {
		return protocolError("ring %d has no size", r.index)
	}
	desc, err := r.s.mem.atUser(r.at.desc, descSize*n, 16)
	if err != nil {
		return fmt.Errorf("finding descriptors of ring %d: %w", r.index, err)
	}
	event := uint64(0)
	if r.s.features&featureEventIdx != 0 {
		event = 2
	}
	avail, err := r.s.mem.atUser(r.at.avail, 4+2*n+event, 2)
	if err != nil {
		return fmt.Errorf("finding available ring %d: %w", r.index, err)
	}
	used, err := r.s.mem.atUser(r.at.used, 4+usedEntrySize*n+event, 4)
	if err != nil {
		return fmt.Errorf("finding used ring %d: %w", r.index, err)
	}
	r.desc, r.avail, r.used = desc, avail, used
	return nil
}

// start lets the ring run. If it continues from where it was stopped, what has become ready meanwhile is delivered;
// if not, it begins a new epoch. The gate is held for writing.
func (r *ring) start() error {
	if err := r.resolve(); err != nil {
		return err
	}
	r.eventIdx = r.s.features&featureEventIdx != 0
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nextUsed, r.told = load16(r.used, 2), false
	at := r.at
	at.num, at.nextAvail, at.nextUsed = r.num, r.nextAvail, r.nextUsed
	if r.stopped == nil || *r.stopped != at || r.broken.Load() {
		r.renew()
	}
	r.stopped, r.started = nil, true
	r.broken.Store(false)
	parked := r.parked
	r.parked = nil
	for _, req := range parked {
		err := r.deliver(req)
		r.s.release(req)
		if err != nil {
			r.fault(err)
			break
		}
	}
	return nil
}

// stop ends the processing of the ring, at once. The gate is held for writing.
func (r *ring) stop() {
	if !r.started {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.at
	at.num, at.nextAvail, at.nextUsed = r.num, r.nextAvail, r.nextUsed
	r.stopped, r.started = &at, false
	r.dropKick()
	r.desc, r.avail, r.used = nil, nil, nil
}

// reset stops the ring and forgets what was in flight. The gate is held for writing.
func (r *ring) reset() {
	r.stop()
	r.dropKick() // a start that failed has left one
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renew()
	r.stopped, r.enabled, r.nextAvail = nil, false, 0
}

// renew begins an epoch: requests of the one before are cancelled and their answers dropped.
func (r *ring) renew() {
	r.cancel()
	r.ctx, r.cancel = context.WithCancel(r.s.ctx)
	r.epoch++
	for _, req := range r.parked {
		r.s.release(req)
	}
	r.parked = nil
}

func (r *ring) runs() bool { return r.started && r.enabled && !r.broken.Load() }

// fault breaks the ring, tells the front end, and logs it if it is the ring's first. The gate is held.
func (r *ring) fault(err error) {
	r.broken.Store(true)
	if !r.reported.Swap(true) {
		r.s.opts.Logger.Warn("virtqueue broken", "queue", r.index, "error", err)
	}
	signal(r.errs)
}

// pop takes the next request off the ring. It is nil if there is none: then the driver has been asked to kick when
// there is. Only the ring's goroutine calls it.
func (r *ring) pop() *Request {
	r.s.gate.RLock()
	defer r.s.gate.RUnlock()
	if !r.runs() {
		return nil
	}
	n := load16(r.avail, 2) - r.nextAvail
	if n == 0 && r.eventIdx {
		n = r.arm()
	}
	if n == 0 {
		return nil
	}
	if n > r.num {
		r.fault(fmt.Errorf("%d entries available in a ring of %d", n, r.num))
		return nil
	}
	head := binary.LittleEndian.Uint16(r.avail[4+2*(r.nextAvail&(r.num-1)):])
	r.nextAvail++
	req := r.s.acquire()
	req.head, req.epoch, req.ctx = head, r.epoch, r.ctx
	if err := r.readChain(req); err != nil {
		r.s.release(req)
		r.fault(fmt.Errorf("reading descriptor chain %d: %w", head, err))
		return nil
	}
	return req
}

// arm asks for a kick at the next entry, and looks again for one that came before the driver could know. The driver
// stores its index and then loads avail_event; here the store and the load are the other way round, and either side
// must have a full barrier between the two, or both could miss: fence is that barrier.
func (r *ring) arm() uint16 {
	store16(r.used, 4+usedEntrySize*int(r.num), r.nextAvail)
	r.fence.Add(1)
	return load16(r.avail, 2) - r.nextAvail
}

// complete hands the first n bytes of req.Out to the driver, now or when the ring goes on, and ends the request. An answer
// that nobody waits for any more is dropped: a device that ends, while the guest still runs, says nothing about it.
func (r *ring) complete(req *Request, n int) {
	req.n = n
	r.s.gate.RLock()
	defer r.s.gate.RUnlock()
	if req.epoch == r.epoch && !r.started {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.parked = append(r.parked, req)
		return
	}
	defer r.s.release(req)
	if req.epoch != r.epoch || req.ctx.Err() != nil || r.broken.Load() {
		return
	}
	if err := r.writeAnswer(req); err != nil {
		r.fault(err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.push(req)
}

// deliver is complete for a request that was parked. The gate and mu are held.
func (r *ring) deliver(req *Request) error {
	if err := r.writeAnswer(req); err != nil {
		return err
	}
	r.push(req)
	return nil
}

func (r *ring) writeAnswer(req *Request) error {
	if err := r.s.mem.fill(req.room, req.Out[:req.n]); err != nil {
		return fmt.Errorf("answering descriptor chain %d: %w", req.head, err)
	}
	return nil
}

// push puts the request on the used ring. The gate and mu are held.
func (r *ring) push(req *Request) {
	e := r.used[4+usedEntrySize*int(r.nextUsed&(r.num-1)):][:usedEntrySize]
	binary.LittleEndian.PutUint32(e, uint32(req.head))
	binary.LittleEndian.PutUint32(e[4:], uint32(req.n))
	r.nextUsed++
	store32(r.used, 0, uint32(r.nextUsed)<<16) // flags, which stay 0, and idx
}

// notify tells the driver of what push has added since the last time, if it wants to know (VIRTIO 1.2, section 2.7.7).
func (r *ring) notify() {
	r.s.gate.RLock()
	defer r.s.gate.RUnlock()
	if !r.started || r.broken.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	last, told := r.signalled, r.told
	if told && last == r.nextUsed {
		return
	}
	r.signalled, r.told = r.nextUsed, true
	if r.eventIdx {
		event := load16(r.avail, 4+2*int(r.num))
		if told && r.nextUsed-event-1 >= r.nextUsed-last {
			return
		}
	} else if load16(r.avail, 0)&availNoInterrupt != 0 {
		return
	}
	signal(r.call)
}

// signal adds one to an eventfd, without ever blocking: if it is full, whoever reads it has been told.
func signal(fd int) {
	if fd < 0 {
		return
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(p, 0); err != nil || n != 1 || p[0].Revents != unix.POLLOUT {
		return
	}
	// An error can only mean that the front end has no use for it.
	_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// setKick makes fd the descriptor that the guest kicks. Unless there is an error, fd is the ring's from now on. The gate
// is held for writing.
func (r *ring) setKick(fd int) error {
	if err := r.wait.watch(fd); err != nil {
		return fmt.Errorf("watching kicks of ring %d: %w", r.index, err)
	}
	r.dropKick()
	r.kick = fd
	return nil
}

func (r *ring) dropKick() {
	if r.kick >= 0 {
		r.wait.unwatch(r.kick)
		replace(&r.kick, -1)
	}
}

// replace makes fd the descriptor *p, closing what was there.
func replace(p *int, fd int) {
	if *p >= 0 {
		unix.Close(*p)
	}
	*p = fd
}
