package vhostuser

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The guest of these tests: its memory, and where in it things are.
const (
	memSize  = 1 << 20
	userBase = 0x7f00_0000_0000 // the front end's address of guest address 0

	descAt  = 0x0000
	availAt = 0x4000
	usedAt  = 0x6000
	tableAt = 0x8000 // for indirect tables
	inAt    = 0x10000
	outAt   = 0x40000

	ringStride = 0x1000 // between the rings of two queues; a ring of 16 entries fits
	ringSize   = 16
)

// deadline is how long a test waits for what must come.
const deadline = 30 * time.Second

// frontEnd is a VMM and its guest's driver.
type frontEnd struct {
	t     testing.TB
	conn  *net.UnixConn
	done  chan error
	end   context.CancelFunc
	memFD int
	mem   []byte
}

// serveTest starts Serve with dev and gives its front end. At the end of the test, everything must be gone.
func serveTest(t testing.TB, dev Device, o Options) *frontEnd {
	t.Helper()
	checkLeaks(t)
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fe := &frontEnd{t: t, conn: unixConn(t, sp[0]), done: make(chan error, 1)}
	back := unixConn(t, sp[1])
	ctx, cancel := context.WithCancel(context.Background())
	fe.end = cancel
	go func() { fe.done <- Serve(ctx, back, dev, o) }()
	fe.memFD, fe.mem = newMemory(t, memSize, unix.F_SEAL_SHRINK)
	t.Cleanup(func() {
		fe.conn.Close()
		fe.result()
		cancel()
		unix.Munmap(fe.mem)
		unix.Close(fe.memFD)
	})
	return fe
}

func unixConn(t testing.TB, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

// newMemory makes a memfd with seals.
func newMemory(t testing.TB, size int, seals int) (int, []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	return fd, m
}

// checkLeaks compares descriptors and goroutines now with those at the end of the test, after all other cleanups.
func checkLeaks(t testing.TB) {
	t.Helper()
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		// A goroutine that has told of its end is counted for a moment longer.
		for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
			f, g := openFDs(t), runtime.NumGoroutine()
			if f <= fds && g <= goroutines {
				return
			}
			if time.Now().After(end) {
				stacks := make([]byte, 1<<16)
				t.Errorf("%d descriptors and %d goroutines; there were %d and %d\n%s", f, g, fds, goroutines,
					stacks[:runtime.Stack(stacks, true)])
				return
			}
		}
	})
}

func openFDs(t testing.TB) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// result waits for Serve to return. It can be called again.
func (fe *frontEnd) result() error {
	fe.t.Helper()
	select {
	case err := <-fe.done:
		fe.done <- err
		return err
	case <-time.After(deadline):
		stacks := make([]byte, 1<<16)
		fe.t.Fatalf("Serve doesn't return\n%s", stacks[:runtime.Stack(stacks, true)])
		return nil
	}
}

func words(v ...uint32) (b []byte) {
	for _, w := range v {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

func longs(v ...uint64) (b []byte) {
	for _, w := range v {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// raw sends bytes with descriptors.
func (fe *frontEnd) raw(b []byte, fds ...int) {
	fe.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := fe.conn.WriteMsgUnix(b, oob, nil); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		fe.t.Fatal(err)
	}
}

func (fe *frontEnd) send(request, flags uint32, payload []byte, fds ...int) {
	fe.t.Helper()
	fe.raw(append(words(request, flagVersion|flags, uint32(len(payload))), payload...), fds...)
}

func (fe *frontEnd) reply(request uint32) []byte {
	fe.t.Helper()
	if err := fe.conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		fe.t.Fatal(err)
	}
	var h [headerSize]byte
	readFull(fe.t, fe.conn, h[:])
	if got := binary.LittleEndian.Uint32(h[0:]); got != request || binary.LittleEndian.Uint32(h[4:]) != flagVersion|flagReply {
		fe.t.Fatalf("reply header %x to message %d", h, request)
	}
	p := make([]byte, binary.LittleEndian.Uint32(h[8:]))
	readFull(fe.t, fe.conn, p)
	return p
}

func readFull(t testing.TB, c *net.UnixConn, p []byte) {
	t.Helper()
	for len(p) > 0 {
		n, err := c.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
}

// ask sends a message that has a reply.
func (fe *frontEnd) ask(request uint32, payload []byte) []byte {
	fe.t.Helper()
	fe.send(request, 0, payload)
	return fe.reply(request)
}

// ack sends a message and reports whether it was carried out. REPLY_ACK must have been negotiated.
func (fe *frontEnd) ack(request uint32, payload []byte, fds ...int) bool {
	fe.t.Helper()
	fe.send(request, flagNeedReply, payload, fds...)
	return binary.LittleEndian.Uint64(fe.reply(request)) == 0
}

// must sends a message that must be carried out.
func (fe *frontEnd) must(request uint32, payload []byte, fds ...int) {
	fe.t.Helper()
	if !fe.ack(request, payload, fds...) {
		fe.t.Fatalf("message %d was refused", request)
	}
}

// connect negotiates features and shares memory.
func (fe *frontEnd) connect(without uint64) {
	fe.t.Helper()
	fe.send(msgSetProtocolFeatures, 0, longs(protoMQ|protoReplyAck|protoResetDevice|protoConfigureMemSlots))
	fe.must(msgSetOwner, nil)
	offered := binary.LittleEndian.Uint64(fe.ask(msgGetFeatures, nil))
	fe.must(msgSetFeatures, longs(offered&^without))
	fe.must(msgSetMemTable, append(words(1, 0), fe.region(0)...), fe.memFD)
}

// region describes all of the memory at a guest address.
func (fe *frontEnd) region(guest uint64) []byte { return longs(guest, memSize, userBase+guest, 0) }

// driver is the guest's side of a queue.
type driver struct {
	fe         *frontEnd
	queue      int
	num        int
	kick, call int
	errs       int
	next       uint16 // available index
	seen       uint16 // used index
}

// queue starts a queue.
func (fe *frontEnd) queue(index int) *driver {
	fe.t.Helper()
	d := &driver{fe: fe, queue: index, num: ringSize, kick: eventfd(fe.t), call: eventfd(fe.t), errs: eventfd(fe.t)}
	d.start(0)
	return d
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// start starts the queue in the order that QEMU does.
func (d *driver) start(base uint16) {
	d.fe.t.Helper()
	i, fe := uint32(d.queue), d.fe
	fe.must(msgSetVringNum, words(i, uint32(d.num)))
	fe.must(msgSetVringBase, words(i, uint32(base)))
	fe.must(msgSetVringAddr, d.addr())
	fe.must(msgSetVringKick, longs(uint64(i)), d.kick)
	fe.must(msgSetVringCall, longs(uint64(i)), d.call)
	fe.must(msgSetVringErr, longs(uint64(i)), d.errs)
	fe.must(msgSetVringEnable, words(i, 1))
}

func (d *driver) addr() []byte {
	off := uint64(d.queue * ringStride)
	return append(words(uint32(d.queue), 0), longs(userBase+descAt+off, userBase+usedAt+off, userBase+availAt+off, 0)...)
}

// stop stops the queue and gives its base.
func (d *driver) stop() uint16 {
	d.fe.t.Helper()
	d.fe.must(msgSetVringEnable, words(uint32(d.queue), 0))
	p := d.fe.ask(msgGetVringBase, words(uint32(d.queue), 0))
	return uint16(binary.LittleEndian.Uint32(p[4:]))
}

// clear makes the rings as a driver does that begins anew.
func (d *driver) clear() {
	off := d.queue * ringStride
	clear(d.fe.mem[availAt+off:][:ringStride/2])
	clear(d.fe.mem[usedAt+off:][:ringStride/2])
	d.next, d.seen = 0, 0
}

func (d descriptor) bytes() []byte {
	b := longs(d.addr)
	b = append(b, words(d.n)...)
	b = binary.LittleEndian.AppendUint16(b, d.flags)
	return binary.LittleEndian.AppendUint16(b, d.next)
}

// table puts descriptors into guest memory.
func (fe *frontEnd) table(at int, ds ...descriptor) {
	for i, d := range ds {
		copy(fe.mem[at+descSize*i:], d.bytes())
	}
}

// post puts descriptors at the beginning of the queue's table, from entry head on.
func (d *driver) post(head int, ds ...descriptor) {
	d.fe.table(descAt+d.queue*ringStride+descSize*head, ds...)
	d.offer(uint16(head))
}

// offer makes a head available and kicks.
func (d *driver) offer(head uint16) {
	avail := d.fe.mem[availAt+d.queue*ringStride:]
	binary.LittleEndian.PutUint16(avail[4+2*(int(d.next)%d.num):], head)
	d.next++
	d.publish(d.next)
	signal(d.kick)
}

// publish sets the available index.
func (d *driver) publish(idx uint16) {
	p := (*uint32)(unsafe.Pointer(&d.fe.mem[availAt+d.queue*ringStride]))
	atomic.StoreUint32(p, uint32(idx)<<16|atomic.LoadUint32(p)&0xffff)
}

type usedEntry struct {
	head uint16
	n    int
}

// ready gives the next used entry, if there is one.
func (d *driver) ready() (usedEntry, bool) {
	used := d.fe.mem[usedAt+d.queue*ringStride:]
	if load16(used, 2) == d.seen {
		return usedEntry{}, false
	}
	e := used[4+usedEntrySize*(int(d.seen)%d.num):]
	d.seen++
	return usedEntry{uint16(binary.LittleEndian.Uint32(e)), int(binary.LittleEndian.Uint32(e[4:]))}, true
}

// take waits for the next used entry as a driver does that sleeps: an interrupt that is not sent is a failure.
func (d *driver) take() usedEntry {
	d.fe.t.Helper()
	for {
		store16(d.fe.mem[availAt+d.queue*ringStride:], 4+2*d.num, d.seen) // used_event
		atomic.AddUint32(new(uint32), 1)
		if e, ok := d.ready(); ok {
			return e
		}
		if !wait(d.call) {
			d.fe.t.Fatalf("no interrupt on queue %d", d.queue)
		}
	}
}

// wait waits for an eventfd and clears it.
func wait(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		if n, _ := unix.Poll(p, 100); n == 1 {
			var b [8]byte
			_, err := unix.Read(fd, b[:])
			return err == nil
		}
	}
	return false
}

// request sends in and takes an answer of at most room bytes, on a queue that has nothing else to do.
func (d *driver) request(in []byte, room int) []byte {
	d.fe.t.Helper()
	copy(d.fe.mem[inAt:], in)
	d.post(0, descriptor{inAt, uint32(len(in)), descNext, 1}, descriptor{outAt, uint32(room), descWrite, 0})
	e := d.take()
	if e.head != 0 {
		d.fe.t.Fatalf("used entry of head %d", e.head)
	}
	return append([]byte(nil), d.fe.mem[outAt:][:e.n]...)
}
