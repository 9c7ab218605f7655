package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// A Device answers the requests of one front end. Its methods are called concurrently.
type Device interface {
	// Info describes the device. It is called once, before any other method.
	Info() Info

	// MayBlock reports whether Handle, given this request, may wait for something slow such as a network or a disk.
	// If not, Handle is called on the ring's own goroutine, which saves a switch; if so, on another.
	MayBlock(queue int, req *Request) bool

	// Handle serves one request and returns how many bytes at the start of req.Out are the answer: from 0 to
	// len(req.Out). ctx ends when nobody waits for the answer any more, because Serve is about to return or because the
	// driver has reset the queue; Serve cannot return before Handle does. A panic ends the whole device.
	Handle(ctx context.Context, queue int, req *Request) int
}

// Info is what a front end has to know about a device, and the limits of its requests.
type Info struct {
	Features    uint64 // the device type's own feature bits: those outside 24..49 (VIRTIO 1.2, section 2.2)
	Config      []byte // configuration space, read-only, at most 256 bytes
	OfferConfig bool   // offer VHOST_USER_PROTOCOL_F_CONFIG; not for devices whose configuration the front end makes
	Queues      int    // virtqueues of every kind, 1 to 256
	MaxIn       int    // bytes the driver may send with one request; one that sends more breaks its ring
	MaxOut      int    // bytes of an answer; what more the driver has room for is not used
	WholeOut    bool   // a request with room for more than MaxOut bytes breaks its ring
}

func (i Info) validate() error {
	switch {
	case i.Queues < 1 || i.Queues > maxQueues:
		return fmt.Errorf("a device of %d queues: want 1 to %d", i.Queues, maxQueues)
	case len(i.Config) > maxConfig:
		return fmt.Errorf("a configuration space of %d bytes: at most %d", len(i.Config), maxConfig)
	case i.MaxIn < 0 || i.MaxIn > maxRequest || i.MaxOut < 0 || i.MaxOut > maxRequest:
		return fmt.Errorf("requests of %d and %d bytes: at most %d", i.MaxIn, i.MaxOut, maxRequest)
	}
	return nil
}

// Request is one chain of descriptors. Both slices are private memory that belongs to the request and must not be
// used after Handle has returned.
type Request struct {
	In  []byte // what the driver sent
	Out []byte // room for the answer, holding arbitrary bytes

	head  uint16
	epoch uint64
	ctx   context.Context // the ring's, of that epoch
	room  []segment       // where in the guest the answer goes
	size  int             // bytes of room, at most MaxOut
	n     int             // bytes of the answer, when there is one

	in, out []byte // the buffers behind In and Out, kept for reuse
}

// Room is how many bytes the answer may have, and len(Out) once that is made.
func (r *Request) Room() int { return r.size }

// makeOut makes Out.
func (r *Request) makeOut() {
	r.out = grow(r.out, r.size)
	r.Out = r.out
}

// A segment is a range of the guest's physical memory.
type segment struct{ addr, n uint64 }

// Options are the choices of whoever runs a device. The zero value is usable.
type Options struct {
	RequestQueues int          // ServeFS: queues beside the one of high priority, 1 to 255; 0 is 1
	InFlight      int          // requests per queue that may block at once, of MaxIn + MaxOut bytes each, 1 to 1024; 0 is 64 (ServeBlock: 32)
	Logger        *slog.Logger // refused messages, a ring's first fault, panics; nil is silence
}

func (o Options) withDefaults() (Options, error) {
	if o.RequestQueues == 0 {
		o.RequestQueues = 1
	}
	if o.InFlight == 0 {
		o.InFlight = 64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.RequestQueues < 0 || o.RequestQueues > maxQueues-1:
		return o, fmt.Errorf("%d request queues: want 1 to %d", o.RequestQueues, maxQueues-1)
	case o.InFlight < 0 || o.InFlight > 1024:
		return o, fmt.Errorf("%d requests in flight: want 1 to 1024", o.InFlight)
	}
	return o, nil
}

// PanicError is what Serve returns when a request made the device panic, or when guest memory could not be touched.
type PanicError struct {
	Queue int
	Value any
	Stack []byte
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("serving queue %d: panic: %v", e.Queue, e.Value)
}

// Unwrap gives the error that was panicked with, or nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// ErrProtocol is wrapped by errors about a front end that broke the vhost-user protocol.
var ErrProtocol = errors.New("vhost-user protocol violated")

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrProtocol, fmt.Errorf(format, args...))
}

const (
	maxQueues  = 256     // the index has 8 bits in SET_VRING_KICK and its like
	maxConfig  = 256     // VHOST_USER_MAX_CONFIG_SIZE of the front ends
	maxRequest = 8 << 20 // bytes, either way
)
