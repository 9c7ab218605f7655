package vhostuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// testDevice answers a request with what was sent, backwards. One that begins with 'b' may block; it says so on entered
// and waits for a word on leave, or for the end of its context.
type testDevice struct {
	queues  int
	entered chan string
	leave   chan struct{}
	ended   atomic.Int32 // contexts that ended first
}

func newTestDevice() *testDevice {
	return &testDevice{queues: 2, entered: make(chan string, 2048), leave: make(chan struct{})}
}

func (d *testDevice) Info() Info {
	return Info{Features: 1 << 5, Config: []byte("configuration"), Queues: d.queues, MaxIn: 64 << 10, MaxOut: 64 << 10}
}

func (d *testDevice) MayBlock(_ int, req *Request) bool {
	return len(req.In) > 0 && req.In[0] == 'b'
}

func (d *testDevice) Handle(ctx context.Context, queue int, req *Request) int {
	switch {
	case d.MayBlock(queue, req):
		d.entered <- string(req.In)
		select {
		case <-d.leave:
		case <-ctx.Done():
			d.ended.Add(1)
		}
	case bytes.HasPrefix(req.In, []byte("panic")):
		panic(errDevice)
	}
	n := copy(req.Out, req.In)
	slices.Reverse(req.Out[:n])
	return n
}

var errDevice = errors.New("device has had enough")

func TestNegotiation(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	get := func(request uint32) uint64 { return binary.LittleEndian.Uint64(fe.ask(request, nil)) }
	got := []uint64{get(msgGetFeatures), get(msgGetProtocolFeatures), get(msgGetQueueNum), get(msgGetMaxMemSlots)}
	want := []uint64{
		1<<5 | 1<<28 | 1<<29 | 1<<30 | 1<<32,
		1<<0 | 1<<3 | 1<<13 | 1<<15,
		2,
		64,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("features, protocol features, queues, slots (-want +got):\n%s", d)
	}
	config := fe.ask(msgGetConfig, append(words(9, 6, 0), make([]byte, 6)...))
	if d := cmp.Diff(append(words(9, 6, 0), "tion\x00\x00"...), config); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
	if p := fe.ask(msgGetConfig, append(words(250, 10, 0), make([]byte, 10)...)); len(p) != 0 {
		t.Errorf("configuration past its end: %x", p)
	}
}

func TestRequests(t *testing.T) {
	for _, without := range []uint64{0, featureEventIdx, featureIndirect, featureProtocol} {
		t.Run(fmt.Sprintf("without %#x", without), func(t *testing.T) {
			fe := serveTest(t, newTestDevice(), Options{})
			fe.connect(without)
			d := fe.queue(1)
			for i := range 3 * ringSize {
				in := fmt.Sprintf("request %d", i)
				want := []byte(in)
				slices.Reverse(want)
				if got := d.request([]byte(in), 64); !bytes.Equal(got, want) {
					t.Fatalf("answer to %q: %q", in, got)
				}
			}
		})
	}
}

func TestChains(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	fe.connect(0)
	d := fe.queue(0)
	copy(fe.mem[inAt:], "abcdefgh")
	out := fe.mem[outAt:][:16]
	for _, tt := range []struct {
		name  string
		post  func()
		n     int
		wrote string
	}{
		{"scattered", func() {
			d.post(0, descriptor{inAt, 3, descNext, 2}, descriptor{}, descriptor{inAt + 3, 5, descNext, 3},
				descriptor{outAt + 8, 2, descNext | descWrite, 5}, descriptor{}, descriptor{outAt, 8, descWrite, 0})
		}, 8, "fedcba..hg......"},
		{"room for less", func() {
			d.post(0, descriptor{inAt, 8, descNext, 1}, descriptor{outAt, 3, descWrite, 0})
		}, 3, "cba............."},
		{"no room", func() { d.post(0, descriptor{inAt, 8, 0, 0}) }, 0, "................"},
		{"nothing sent", func() { d.post(0, descriptor{outAt, 8, descWrite, 0}) }, 0, "................"},
		{"empty descriptors", func() {
			d.post(0, descriptor{inAt, 0, descNext, 1}, descriptor{inAt, 1, descNext, 2}, descriptor{outAt, 0, descNext | descWrite, 3},
				descriptor{outAt, 1, descWrite, 0})
		}, 1, "a..............."},
		{"indirect", func() {
			fe.table(tableAt, descriptor{inAt, 2, descNext, 2}, descriptor{outAt, 4, descWrite, 0}, descriptor{inAt + 2, 2, descNext, 1})
			d.post(0, descriptor{tableAt, 3 * descSize, descIndirect, 0})
		}, 4, "dcba............"},
		{"indirect after a direct one", func() {
			fe.table(tableAt, descriptor{outAt, 4, descWrite, 0})
			d.post(0, descriptor{inAt, 4, descNext, 1}, descriptor{tableAt, descSize, descIndirect | descWrite, 0})
		}, 4, "dcba............"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			copy(out, "................")
			tt.post()
			if e := d.take(); e.n != tt.n || string(out) != tt.wrote {
				t.Errorf("wrote %d bytes: %q; want %d: %q", e.n, out, tt.n, tt.wrote)
			}
		})
	}
}

// TestRegions has buffers that cross from one region to the next.
func TestRegions(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	fe.connect(0)
	d := fe.queue(0)
	other, mem := newMemory(t, 2*memSize, unix.F_SEAL_SHRINK)
	defer unix.Close(other)
	defer unix.Munmap(mem)
	// Its offset is no multiple of anything, as it may be with huge pages.
	fe.must(msgAddMemReg, longs(0, memSize, 0x1000, 1<<44, 4096+512), other)
	copy(fe.mem[memSize-2:], "ab")
	copy(mem[4096+512:], "cd")
	d.post(0, descriptor{memSize - 2, 4, descNext, 1}, descriptor{memSize - 3, 4, descWrite, 0})
	e := d.take()
	if got := string(fe.mem[memSize-3:]) + string(mem[4096+512:][:1]); e.n != 4 || got != "dcba" {
		t.Errorf("wrote %d bytes: %q", e.n, got)
	}
	fe.must(msgRemMemReg, longs(0, memSize, 0x1000, 1<<44, 0))
	if fe.ack(msgRemMemReg, longs(0, memSize, 0x1000, 1<<44, 0)) {
		t.Error("a region was removed twice")
	}
	d.post(0, descriptor{memSize - 2, 4, descNext, 1}, descriptor{outAt, 4, descWrite, 0})
	if !wait(d.errs) {
		t.Error("memory that was removed is still used")
	}
}

// TestMemoryTable replaces the table while a queue runs.
func TestMemoryTable(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	fe.connect(0)
	d := fe.queue(0)
	d.request([]byte("first"), 16)
	table := append(words(2, 0), longs(0, memSize/2, userBase, 0, memSize/2, memSize/2, userBase+memSize/2, memSize/2)...)
	fe.must(msgSetMemTable, table, fe.memFD, fe.memFD)
	if got := d.request([]byte("after"), 16); string(got) != "retfa" {
		t.Errorf("answer %q", got)
	}
}

// TestMemoryGoesUnderRequest takes away the memory that an answer is to be written to.
func TestMemoryGoesUnderRequest(t *testing.T) {
	dev := newTestDevice()
	fe := serveTest(t, dev, Options{})
	fe.connect(0)
	fe.must(msgAddMemReg, append(longs(0), fe.region(memSize)...), fe.memFD)
	d := fe.queue(0)
	copy(fe.mem[inAt:], "block")
	d.post(0, descriptor{inAt, 5, descNext, 1}, descriptor{memSize + outAt, 8, descWrite, 0})
	<-dev.entered
	fe.must(msgRemMemReg, append(longs(0), fe.region(memSize)...))
	dev.leave <- struct{}{}
	if !wait(d.errs) {
		t.Fatal("the ring is not broken")
	}
	if _, ok := d.ready(); ok {
		t.Error("the request was answered")
	}
	d.stop()
	d.clear()
	d.start(0)
	if got := d.request([]byte("again"), 16); string(got) != "niaga" {
		t.Errorf("answer of the mended ring: %q", got)
	}
}

// TestStopWithRequestInFlight is what a front end does that pauses the machine, and one that resets the device.
func TestStopWithRequestInFlight(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first bool // the request is answered before the ring is started again
		reset func(d *driver, base uint16) uint16
		want  bool
	}{
		{"continued, answered while stopped", true, nil, true},
		{"continued, answered later", false, nil, true},
		{"started afresh", false, func(d *driver, _ uint16) uint16 { d.clear(); return 0 }, false},
		{"reset", false, func(d *driver, base uint16) uint16 {
			d.fe.must(msgResetDevice, nil)
			return base
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := newTestDevice()
			fe := serveTest(t, dev, Options{})
			fe.connect(0)
			d := fe.queue(0)
			copy(fe.mem[inAt:], "block")
			d.post(0, descriptor{inAt, 5, descNext, 1}, descriptor{outAt, 8, descWrite, 0})
			<-dev.entered
			base := d.stop()
			if base != 1 {
				t.Errorf("base %d, want 1", base)
			}
			if tt.first {
				dev.leave <- struct{}{}
			}
			if tt.reset != nil {
				base = tt.reset(d, base)
			}
			d.start(base)
			if !wait(d.call) {
				t.Error("no interrupt for what was used before there was a way to tell")
			}
			if tt.want && !tt.first {
				dev.leave <- struct{}{}
			}
			if tt.want {
				if e := d.take(); e.n != 5 {
					t.Errorf("answer of %d bytes", e.n)
				}
			}
			// Room beyond the first answer's shows that nothing late is written.
			copy(fe.mem[outAt:], "........")
			copy(fe.mem[inAt:], "next")
			d.post(4, descriptor{inAt, 4, descNext, 5}, descriptor{outAt + 8, 8, descWrite, 0})
			if e := d.take(); e.head != 4 || string(fe.mem[outAt:][:12]) != "........txen" {
				t.Errorf("next answer: head %d, memory %q", e.head, fe.mem[outAt:][:12])
			}
		})
	}
}

// TestCloudHypervisorOrder starts a queue as cloud-hypervisor does, without acknowledgements, and resets it.
func TestCloudHypervisorOrder(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	d := &driver{fe: fe, queue: 1, num: ringSize, kick: eventfd(t), call: eventfd(t), errs: eventfd(t)}
	offered := binary.LittleEndian.Uint64(fe.ask(msgGetFeatures, nil))
	fe.send(msgSetOwner, 0, nil)
	fe.send(msgSetProtocolFeatures, 0, longs(protoMQ|protoConfigureMemSlots))
	for range 2 {
		fe.send(msgSetFeatures, 0, longs(offered))
		fe.send(msgSetMemTable, 0, append(words(1, 0), fe.region(0)...), fe.memFD)
		fe.send(msgSetVringNum, 0, words(1, ringSize))
		fe.send(msgSetVringAddr, 0, d.addr())
		fe.send(msgSetVringBase, 0, words(1, 0))
		fe.send(msgSetVringCall, 0, longs(1), d.call)
		fe.send(msgSetVringKick, 0, longs(1), d.kick)
		fe.send(msgSetVringEnable, 0, words(1, 1))
		if got := d.request([]byte("request"), 16); string(got) != "tseuqer" {
			t.Errorf("answer: %q", got)
		}
		fe.send(msgSetVringEnable, 0, words(1, 0))
		if p := fe.ask(msgGetVringBase, words(1, 0)); binary.LittleEndian.Uint32(p[4:]) != 1 {
			t.Errorf("base: %x", p)
		}
		d.clear()
	}
}

// TestInFlight fills a queue with requests that block: others go on, and so does the protocol.
func TestInFlight(t *testing.T) {
	dev := newTestDevice()
	fe := serveTest(t, dev, Options{InFlight: 3})
	fe.connect(0)
	d, other := fe.queue(0), fe.queue(1)
	copy(fe.mem[inAt+4096:], "block")
	for i := range 5 {
		d.post(2*i, descriptor{inAt + 4096, 5, descNext, uint16(2*i + 1)}, descriptor{outAt, 8, descWrite, 0})
	}
	for range 3 {
		<-dev.entered
	}
	if got := other.request([]byte("other"), 8); string(got) != "rehto" {
		t.Errorf("answer on the other queue: %q", got)
	}
	if len(dev.entered) != 0 {
		t.Error("more requests in flight than allowed")
	}
	base := d.stop()
	d.start(base)
	heads := map[uint16]bool{}
	for range 5 {
		dev.leave <- struct{}{}
		heads[d.take().head] = true
	}
	if len(heads) != 5 {
		t.Errorf("answered: %v", heads)
	}
}

// TestInterruptSuppression looks at who is told of what when both sides use event indices.
func TestInterruptSuppression(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	fe.connect(0)
	d := fe.queue(0)
	d.request([]byte("first"), 8)
	// The driver wants to hear of the fifth answer from here only.
	store16(fe.mem[availAt:], 4+2*d.num, d.seen+4)
	for i := range 5 {
		d.post(0, descriptor{outAt, 8, descWrite, 0})
		if i < 4 {
			for ok := false; !ok; _, ok = d.ready() {
				runtime.Gosched()
			}
		}
	}
	if !wait(d.call) {
		t.Fatal("no interrupt")
	}
	if _, ok := d.ready(); !ok {
		t.Error("an interrupt before the answer that was asked for")
	}
	// The device wants to hear of the next request: avail_event is where it has come to.
	for load16(fe.mem[usedAt:], 4+usedEntrySize*d.num) != d.next {
		runtime.Gosched()
	}
}

func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(fe *frontEnd, d *driver)
		want error
	}{
		{"front end closes", func(fe *frontEnd, _ *driver) { fe.conn.Close() }, nil},
		{"context ends", func(fe *frontEnd, _ *driver) { fe.end() }, context.Canceled},
		{"device panics", func(fe *frontEnd, d *driver) {
			copy(fe.mem[inAt:], "panic")
			d.post(4, descriptor{inAt, 5, 0, 0})
		}, errDevice},
		{"front end closes within a message", func(fe *frontEnd, _ *driver) {
			fe.raw(words(msgSetFeatures, 1))
			fe.conn.Close()
		}, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := newTestDevice()
			fe := serveTest(t, dev, Options{})
			fe.connect(0)
			d := fe.queue(0)
			copy(fe.mem[inAt:], "block")
			d.post(0, descriptor{inAt, 5, descNext, 1}, descriptor{outAt, 8, descWrite, 0})
			<-dev.entered
			tt.end(fe, d)
			if err := fe.result(); !errors.Is(err, tt.want) {
				t.Errorf("Serve returned %v, want %v", err, tt.want)
			}
			if n := dev.ended.Load(); n != 1 {
				t.Errorf("%d contexts ended, want 1", n)
			}
		})
	}
}
