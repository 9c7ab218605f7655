package vhostuser

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	maxTag        = 36        // bytes of the tag (VIRTIO 1.2, section 5.11.4)
	minFUSEBuffer = 128 << 10 // bytes that any driver may read, list or write at a time
	fuseHeaders   = 4096      // bytes that any request's fixed part, or answer's, fits in
)

// ServeFS is Serve for a virtio-fs device (VIRTIO 1.2, section 5.11) over a file system of go-fuse, which the guest
// mounts by its tag: 1 to 36 bytes. The device has 1 + o.RequestQueues queues, of which the front end may use fewer.
// There are no notifications and no DAX window, so what the guest caches is up to the time-outs in fs's answers.
//
// Of opts, which may be nil, the options of the protocol count and those of a mount don't. PanicHandler is replaced: a
// panic in fs ends the device, as *PanicError. Logger is used only with Debug, since a guest can provoke any number of
// messages. The passthrough capability is never offered: it makes sense for /dev/fuse alone.
//
// READ, and whatever changes something, runs concurrently on goroutines of its own; the rest runs on its queue's
// goroutine and should not wait for long. fs sees an InHeader.Unique that is not the guest's. The cancel channel it is
// given is closed when the guest interrupts the request, when the guest resets the device and when ctx ends: ServeFS
// returns only when fs has answered every request.
func ServeFS(ctx context.Context, conn *net.UnixConn, tag string, fs fuse.RawFileSystem, opts *fuse.MountOptions, o Options) error {
	defer conn.Close()
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	dev, err := newFSDevice(tag, fs, opts, o.RequestQueues)
	if err != nil {
		return err
	}
	return Serve(ctx, conn, dev, o)
}

// fsDevice is the virtio-fs device.
type fsDevice struct {
	info    Info
	fuse    *fuse.ProtocolServer
	setxath int // bytes of the fixed part of SETXATTR

	// INIT changes what go-fuse parses other requests by, without a lock: it is held for reading around any other
	// request, for writing around INIT.
	init sync.RWMutex

	// Requests reach the file system under numbers of ours, since a guest may use one number twice.
	unique  atomic.Uint64
	mu      sync.Mutex
	waiting map[uint64]uint64 // the guest's number of a request that may block -> ours
}

func newFSDevice(tag string, fs fuse.RawFileSystem, opts *fuse.MountOptions, queues int) (*fsDevice, error) {
	if len(tag) == 0 || len(tag) > maxTag {
		return nil, fmt.Errorf("virtio-fs tag %q has %d bytes: want 1 to %d", tag, len(tag), maxTag)
	}
	var own fuse.MountOptions
	if opts != nil {
		own = *opts
	}
	own.PanicHandler = func(v any) fuse.Status { panic(v) }
	own.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	if !own.Debug {
		own.Logger = log.New(io.Discard, "", 0)
	}
	config := make([]byte, maxTag, maxTag+4)
	copy(config, tag)
	buffer := max(own.MaxWrite, minFUSEBuffer) + fuseHeaders
	d := &fsDevice{
		info: Info{
			Config: binary.LittleEndian.AppendUint32(config, uint32(queues)),
			Queues: 1 + queues,
			MaxIn:  buffer,
			MaxOut: buffer,
		},
		fuse:    fuse.NewProtocolServer(fs, &own),
		setxath: setXAttrSize(own.ExtraCapabilities),
		waiting: make(map[uint64]uint64),
	}
	return d, nil
}

func (d *fsDevice) Info() Info { return d.info }

func (d *fsDevice) MayBlock(_ int, req *Request) bool {
	h, err := parseFUSE(req.In, d.setxath)
	return err == 0 && mayBlock(h.opcode)
}

// Handle answers one FUSE request. What go-fuse would take amiss is answered here.
func (d *fsDevice) Handle(ctx context.Context, _ int, req *Request) int {
	h, errno := parseFUSE(req.In, d.setxath)
	if errno == 0 && h.answer > len(req.Out) {
		errno = syscall.EINVAL
	}
	if errno != 0 {
		return h.fail(req.Out, errno)
	}
	if h.opcode == opInit {
		if !d.init.TryLock() {
			return h.fail(req.Out, syscall.EBUSY) // a driver waits for its answers before it begins anew
		}
		defer d.init.Unlock()
	} else {
		d.init.RLock()
		defer d.init.RUnlock()
	}
	unique := d.unique.Add(1)
	binary.LittleEndian.PutUint64(req.In[offUnique:], unique)
	switch {
	case h.opcode == opInterrupt:
		d.mu.Lock()
		target := d.waiting[binary.LittleEndian.Uint64(req.In[inHeaderSize:])]
		d.mu.Unlock()
		binary.LittleEndian.PutUint64(req.In[inHeaderSize:], target)
	case mayBlock(h.opcode):
		defer d.cancelWith(ctx, h.unique, unique)()
	}
	n, status := d.fuse.HandleRequest([][]byte{req.In}, [][]byte{req.Out})
	if !status.Ok() {
		return h.fail(req.Out, syscall.Errno(status))
	}
	if n >= outHeaderSize {
		binary.LittleEndian.PutUint64(req.Out[offUnique:], h.unique)
	}
	return n
}

// cancelWith has a request interrupted when ctx ends or the guest says so. The function it returns ends that.
func (d *fsDevice) cancelWith(ctx context.Context, guest, own uint64) func() {
	d.mu.Lock()
	d.waiting[guest] = own
	d.mu.Unlock()

	answered := make(chan struct{})
	gone := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(gone)
		d.interrupt(own, answered)
	})
	return func() {
		d.mu.Lock()
		if d.waiting[guest] == own {
			delete(d.waiting, guest)
		}
		d.mu.Unlock()
		close(answered)
		if !stop() {
			<-gone
		}
	}
}

// interrupt interrupts a request. As go-fuse may not have come to it yet, it does so until it is answered.
func (d *fsDevice) interrupt(unique uint64, answered <-chan struct{}) {
	const again = 10 * time.Millisecond
	var in [inHeaderSize + 8]byte
	binary.LittleEndian.PutUint32(in[0:], uint32(len(in)))
	binary.LittleEndian.PutUint32(in[offOpcode:], opInterrupt)
	binary.LittleEndian.PutUint64(in[inHeaderSize:], unique)
	var out [outHeaderSize]byte
	for {
		// Taken for an answer is that it ends: the status only says whether the request was found.
		_, _ = d.fuse.HandleRequest([][]byte{in[:]}, [][]byte{out[:]})
		select {
		case <-answered:
			return
		case <-time.After(again):
		}
	}
}
