package vhostuser

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileMessages sends one bad message. A front end that wants to know is told, and goes on; one that doesn't is
// dropped.
func TestHostileMessages(t *testing.T) {
	regions := func(n int, r ...uint64) []byte { return append(words(uint32(n), 0), longs(r...)...) }
	add := func(r ...uint64) []byte { return longs(append([]uint64{0}, r...)...) }
	const top = 1<<64 - 1
	for _, tt := range []struct {
		name    string
		request uint32
		payload []byte
		fds     string // m: sealed memory, u: unsealed, n: /dev/null, e: eventfd
	}{
		{"unknown", 99, nil, ""},
		{"unknown with descriptors", 99, nil, "mne"},
		{"log base", 6, longs(4096, 0), "m"},
		{"postcopy", 28, nil, ""},
		{"status, not negotiated", 39, longs(0), ""},
		{"features not offered", msgSetFeatures, longs(1 << 40), ""},
		{"features too short", msgSetFeatures, words(1), ""},
		{"features too long", msgSetFeatures, longs(1, 1), ""},
		{"protocol features not offered", msgSetProtocolFeatures, longs(1 << 5), ""},
		{"memory table empty", msgSetMemTable, nil, ""},
		{"memory table longer than it says", msgSetMemTable, regions(0, 0, memSize, 1<<40, 0), "m"},
		{"memory table shorter than it says", msgSetMemTable, regions(2, 0, memSize, 1<<40, 0), "mm"},
		{"memory table of 2^32-1", msgSetMemTable, regions(-1, 0, memSize, 1<<40, 0), "m"},
		{"memory table without descriptor", msgSetMemTable, regions(1, 0, memSize, 1<<40, 0), ""},
		{"memory table with one too many", msgSetMemTable, regions(1, 0, memSize, 1<<40, 0), "mm"},
		{"memory table that overlaps", msgSetMemTable, regions(2, 0, memSize, 1<<40, 0, memSize-1, memSize, 1<<41, 0), "mm"},
		{"region without descriptor", msgAddMemReg, add(1<<30, 4096, 1<<40, 0), ""},
		{"region too short", msgAddMemReg, longs(0, 1<<30, 4096), "m"},
		{"region unsealed", msgAddMemReg, add(1<<30, 4096, 1<<40, 0), "u"},
		{"region not memory", msgAddMemReg, add(1<<30, 4096, 1<<40, 0), "n"},
		{"region of nothing", msgAddMemReg, add(1<<30, 0, 1<<40, 0), "m"},
		{"region longer than its file", msgAddMemReg, add(1<<30, memSize+1, 1<<40, 0), "m"},
		{"region past its file", msgAddMemReg, add(1<<30, 4096, 1<<40, memSize), "m"},
		{"region whose guest addresses wrap", msgAddMemReg, add(top-1, 4096, 1<<40, 0), "m"},
		{"region whose front end addresses wrap", msgAddMemReg, add(1<<30, 4096, top-1, 0), "m"},
		{"region whose file offsets wrap", msgAddMemReg, add(1<<30, 4096, 1<<40, top-1), "m"},
		{"region of 2^64-1", msgAddMemReg, add(0, top, 0, 0), "m"},
		{"region that overlaps in the guest", msgAddMemReg, add(memSize-1, 4096, 1<<40, 0), "m"},
		{"region that overlaps in the front end", msgAddMemReg, add(1<<30, 4096, userBase+memSize-1, 0), "m"},
		{"region removed that isn't there", msgRemMemReg, add(0, 4096, userBase, 0), ""},
		{"ring that isn't there", msgSetVringNum, words(2, 16), ""},
		{"ring of 2^32-1", msgSetVringNum, words(1<<32-1, 16), ""},
		{"ring of nothing", msgSetVringNum, words(0, 0), ""},
		{"ring of no power of two", msgSetVringNum, words(0, 24), ""},
		{"ring too large", msgSetVringNum, words(0, 2048), ""},
		{"ring at 65536", msgSetVringBase, words(0, 65536), ""},
		{"ring enabled with 2", msgSetVringEnable, words(0, 2), ""},
		{"ring with a log", msgSetVringAddr, append(words(0, 1), longs(0, 0, 0, 0)...), ""},
		{"ring address too short", msgSetVringAddr, words(0, 0), ""},
		{"kick of a ring that isn't there", msgSetVringKick, longs(7), "e"},
		{"kick without descriptor", msgSetVringKick, longs(0), ""},
		{"kick by polling", msgSetVringKick, longs(noFD), ""},
		{"kick with two descriptors", msgSetVringKick, longs(0), "ee"},
		{"kick with a file", msgSetVringKick, longs(0), "m"},
		{"kick of a ring without size", msgSetVringKick, longs(0), "e"},
		{"kick of 2^64-1", msgSetVringKick, longs(top), "e"},
		{"call with none, but a descriptor", msgSetVringCall, longs(noFD), "e"},
		{"call without descriptor", msgSetVringCall, longs(0), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, told := range []bool{true, false} {
				fe := serveTest(t, newTestDevice(), Options{})
				fe.connect(0)
				var fds []int
				for _, c := range tt.fds {
					fds = append(fds, testFD(t, c))
				}
				if told {
					if fe.ack(tt.request, tt.payload, fds...) {
						t.Error("it was accepted")
					}
					if !fe.ack(msgSetOwner, nil) {
						t.Error("the next message was refused")
					}
					continue
				}
				fe.send(tt.request, 0, tt.payload, fds...)
				if err := fe.result(); err == nil {
					t.Error("Serve returned nil")
				}
			}
		})
	}
}

// testFD makes a descriptor for the front end to send.
func testFD(t testing.TB, kind rune) int {
	t.Helper()
	var fd int
	var err error
	switch kind {
	case 'm', 'u':
		seals := unix.F_SEAL_SHRINK
		if kind == 'u' {
			seals = unix.F_SEAL_GROW
		}
		var m []byte
		fd, m = newMemory(t, memSize, seals)
		unix.Munmap(m)
	case 'n':
		fd, err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	default:
		return eventfd(t)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestHostileStreams sends what is no sequence of messages.
func TestHostileStreams(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bytes []byte
		fds   int
		want  error
	}{
		{"version 2", words(1, 2, 0), 0, ErrProtocol},
		{"a reply", words(1, 5, 0), 0, ErrProtocol},
		{"4097 bytes", words(1, 1, 4097), 0, ErrProtocol},
		{"2^32-1 bytes", words(1, 1, 1<<32-1), 0, ErrProtocol},
		{"200 descriptors", words(msgSetMemTable, 1, 8, 0, 0), 200, ErrProtocol},
		{"descriptors with half a header", words(1)[:2], 3, nil},
		{"a bad index with a reply", words(msgGetVringBase, 1, 8, 9, 0), 0, ErrProtocol},
		{"a bad size with a reply", words(msgGetVringBase, 1, 4, 0), 0, ErrProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fe := serveTest(t, newTestDevice(), Options{})
			fds := make([]int, tt.fds)
			for i := range fds {
				fds[i] = fe.memFD
			}
			fe.raw(tt.bytes, fds...)
			if tt.want == nil {
				fe.conn.Close()
				if err := fe.result(); err == nil {
					t.Error("Serve returned nil")
				}
				return
			}
			if err := fe.result(); !errors.Is(err, tt.want) {
				t.Errorf("Serve returned %v, want %v", err, tt.want)
			}
		})
	}
}

// TestHostileRings has entries that break the ring, which is mended by starting it again, while another one works.
func TestHostileRings(t *testing.T) {
	in, out := descriptor{inAt, 8, descNext, 1}, descriptor{outAt, 8, descWrite, 0}
	for _, tt := range []struct {
		name string
		post func(fe *frontEnd, d *driver)
	}{
		{"head outside the table", func(_ *frontEnd, d *driver) { d.offer(ringSize) }},
		{"head 65535", func(_ *frontEnd, d *driver) { d.offer(65535) }},
		{"next outside the table", func(_ *frontEnd, d *driver) { d.post(0, descriptor{inAt, 8, descNext, ringSize}) }},
		{"loop of one", func(_ *frontEnd, d *driver) { d.post(0, descriptor{inAt, 0, descNext, 0}) }},
		{"loop of two", func(_ *frontEnd, d *driver) {
			d.post(0, descriptor{inAt, 1, descNext, 1}, descriptor{inAt, 1, descNext, 0})
		}},
		{"loop of room", func(_ *frontEnd, d *driver) { d.post(0, descriptor{outAt, 1 << 19, descNext | descWrite, 0}) }},
		{"more available than there are entries", func(_ *frontEnd, d *driver) { d.publish(ringSize + 1); signal(d.kick) }},
		{"available index behind", func(_ *frontEnd, d *driver) { d.publish(65535); signal(d.kick) }},
		{"readable after writable", func(_ *frontEnd, d *driver) {
			d.post(0, descriptor{outAt, 8, descNext | descWrite, 1}, descriptor{inAt, 8, 0, 0})
		}},
		{"request outside memory", func(_ *frontEnd, d *driver) { d.post(0, descriptor{memSize, 1, descNext, 1}, out) }},
		{"request over the end of memory", func(_ *frontEnd, d *driver) { d.post(0, descriptor{memSize - 1, 2, descNext, 1}, out) }},
		{"request at the end of the address space", func(_ *frontEnd, d *driver) {
			d.post(0, descriptor{1<<64 - 1, 2, descNext, 1}, out)
		}},
		{"request of 2^32-1", func(_ *frontEnd, d *driver) { d.post(0, descriptor{inAt, 1<<32 - 1, descNext, 1}, out) }},
		{"request too large in all", func(_ *frontEnd, d *driver) {
			d.post(0, descriptor{inAt, 40 << 10, descNext, 1}, descriptor{inAt, 40 << 10, descNext, 2}, out)
		}},
		{"room outside memory", func(_ *frontEnd, d *driver) { d.post(0, in, descriptor{memSize, 1, descWrite, 0}) }},
		{"room of 2^32-1", func(_ *frontEnd, d *driver) { d.post(0, in, descriptor{outAt, 1<<32 - 1, descWrite, 0}) }},
		{"indirect table of 0 bytes", func(_ *frontEnd, d *driver) { d.post(0, descriptor{tableAt, 0, descIndirect, 0}) }},
		{"indirect table of 15 bytes", func(_ *frontEnd, d *driver) { d.post(0, descriptor{tableAt, 15, descIndirect, 0}) }},
		{"indirect table of 2^32-16", func(_ *frontEnd, d *driver) { d.post(0, descriptor{tableAt, 1<<32 - 16, descIndirect, 0}) }},
		{"indirect table outside memory", func(_ *frontEnd, d *driver) { d.post(0, descriptor{memSize - 8, 16, descIndirect, 0}) }},
		{"indirect table and next", func(_ *frontEnd, d *driver) { d.post(0, descriptor{tableAt, 16, descIndirect | descNext, 1}, out) }},
		{"indirect table in an indirect table", func(fe *frontEnd, d *driver) {
			fe.table(tableAt, descriptor{tableAt, 16, descIndirect, 0})
			d.post(0, descriptor{tableAt, 16, descIndirect, 0})
		}},
		{"indirect table that says it is longer", func(fe *frontEnd, d *driver) {
			fe.table(tableAt, descriptor{inAt, 1, descNext, 1}, out)
			d.post(0, descriptor{tableAt, 16, descIndirect, 0})
		}},
		{"indirect table with a loop", func(fe *frontEnd, d *driver) {
			fe.table(tableAt, descriptor{inAt, 1, descNext, 0})
			d.post(0, descriptor{tableAt, 16, descIndirect, 0})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fe := serveTest(t, newTestDevice(), Options{})
			fe.connect(0)
			d, other := fe.queue(0), fe.queue(1)
			tt.post(fe, d)
			if !wait(d.errs) {
				t.Fatal("the ring is not broken")
			}
			if got := other.request([]byte("other"), 8); string(got) != "rehto" {
				t.Errorf("answer on the other queue: %q", got)
			}
			d.stop()
			d.clear()
			d.start(0)
			if got := d.request([]byte("again"), 8); string(got) != "niaga" {
				t.Errorf("answer of the mended ring: %q", got)
			}
		})
	}
}

func TestIndirectNotNegotiated(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	fe.connect(featureIndirect)
	d := fe.queue(0)
	fe.table(tableAt, descriptor{outAt, 8, descWrite, 0})
	d.post(0, descriptor{tableAt, 16, descIndirect, 0})
	if !wait(d.errs) {
		t.Fatal("the ring is not broken")
	}
}

// TestStartedRingIsFixed tries to change a ring that runs, and to place one badly.
func TestStartedRingIsFixed(t *testing.T) {
	fe := serveTest(t, newTestDevice(), Options{})
	fe.connect(0)
	d := fe.queue(0)
	moved := *d
	moved.queue = 1
	addr := moved.addr()
	addr[0] = 0
	for name, ok := range map[string]bool{
		"size":         fe.ack(msgSetVringNum, words(0, 8)),
		"base":         fe.ack(msgSetVringBase, words(0, 8)),
		"address":      fe.ack(msgSetVringAddr, addr),
		"features":     fe.ack(msgSetFeatures, longs(0)),
		"same address": !fe.ack(msgSetVringAddr, d.addr()),
	} {
		if ok {
			t.Errorf("%s", name)
		}
	}
	for name, at := range map[string][3]uint64{
		"descriptors misaligned":     {userBase + 8, userBase + usedAt, userBase + availAt},
		"used ring misaligned":       {userBase, userBase + usedAt + 2, userBase + availAt},
		"available ring misaligned":  {userBase, userBase + usedAt, userBase + availAt + 1},
		"descriptors outside memory": {userBase + memSize - 16, userBase + usedAt, userBase + availAt},
		"used ring outside memory":   {userBase, userBase + memSize - 4, userBase + availAt},
		"available at the very end":  {userBase, userBase + usedAt, 1<<64 - 2},
	} {
		fe.must(msgSetVringNum, words(1, ringSize))
		fe.must(msgSetVringAddr, append(words(1, 0), longs(at[0], at[1], at[2], 0)...))
		if fe.ack(msgSetVringKick, longs(1), d.kick) {
			t.Errorf("started: %s", name)
		}
	}
	if got := d.request([]byte("still"), 8); string(got) != "llits" {
		t.Errorf("answer: %q", got)
	}
}

// TestMemoryFault has memory vanish that was, for the test, not sealed.
func TestMemoryFault(t *testing.T) {
	checkLeaks(t)
	s, err := newServer(context.Background(), newTestDevice(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	fd, m := newMemory(t, memSize, unix.F_SEAL_GROW)
	defer unix.Close(fd)
	defer unix.Munmap(m)
	r, err := mapFile(fd, regionDesc{size: memSize, user: userBase}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.mem.add(r); err != nil {
		t.Fatal(err)
	}
	q := s.rings[0]
	q.num, q.at, q.enabled = ringSize, place{desc: userBase + descAt, used: userBase + usedAt, avail: userBase + availAt}, true
	if q.wait, err = newWaiter(); err != nil {
		t.Fatal(err)
	}
	if err := q.start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	s.wg.Go(q.run)
	<-s.ctx.Done()
	var p *PanicError
	var fault runtime.Error
	if err := context.Cause(s.ctx); !errors.As(err, &p) || !errors.As(err, &fault) {
		t.Errorf("the device ended with %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		dev func(*Info)
		o   Options
	}{
		"no queue":        {func(i *Info) { i.Queues = 0 }, Options{}},
		"many queues":     {func(i *Info) { i.Queues = 257 }, Options{}},
		"configuration":   {func(i *Info) { i.Config = make([]byte, 257) }, Options{}},
		"large requests":  {func(i *Info) { i.MaxIn = 1 << 30 }, Options{}},
		"large answers":   {func(i *Info) { i.MaxOut = -1 }, Options{}},
		"in flight":       {func(*Info) {}, Options{InFlight: 1025}},
		"request queues":  {func(*Info) {}, Options{RequestQueues: 256}},
		"fewer than none": {func(*Info) {}, Options{InFlight: -1}},
	} {
		info := newTestDevice().Info()
		tt.dev(&info)
		if _, err := newServer(context.Background(), infoDevice{newTestDevice(), info}, tt.o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

type infoDevice struct {
	Device
	info Info
}

func (d infoDevice) Info() Info { return d.info }
