package vhostuser

import (
	"context"
	"encoding/binary"
	"io"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fuzzMessage is a message as FuzzFrontend reads it: request, flags, descriptors, length of the payload, payload.
func fuzzMessage(request, flags uint32, fds int, payload []byte) []byte {
	return append([]byte{byte(request), byte(flags), byte(fds), byte(len(payload))}, payload...)
}

// FuzzFrontend sends messages. A descriptor is sealed memory, unsealed memory or an eventfd, by its place.
func FuzzFrontend(f *testing.F) {
	region := longs(0, memSize, userBase, 0)
	addr := append(words(0, 0), longs(userBase+descAt, userBase+usedAt, userBase+availAt, 0)...)
	var start []byte
	for _, m := range [][]byte{
		fuzzMessage(msgGetFeatures, 1, 0, nil),
		fuzzMessage(msgSetFeatures, 9, 0, longs(transportFeature)),
		fuzzMessage(msgSetProtocolFeatures, 1, 0, longs(protoMQ|protoReplyAck|protoResetDevice|protoConfigureMemSlots)),
		fuzzMessage(msgAddMemReg, 9, 1, append(longs(0), region...)),
		fuzzMessage(msgSetVringNum, 9, 0, words(0, ringSize)),
		fuzzMessage(msgSetVringBase, 9, 0, words(0, 0)),
		fuzzMessage(msgSetVringAddr, 9, 0, addr),
		fuzzMessage(msgSetVringKick, 9, 1<<4, longs(0)),
		fuzzMessage(msgSetVringCall, 9, 1<<4, longs(0)),
		fuzzMessage(msgSetVringEnable, 9, 0, words(0, 1)),
	} {
		start = append(start, m...)
	}
	f.Add(start)
	f.Add(append(start, fuzzMessage(msgGetVringBase, 1, 0, words(0, 0))...))
	f.Add(append(start, fuzzMessage(msgRemMemReg, 9, 0, append(longs(0), region...))...))
	f.Add(fuzzMessage(msgSetMemTable, 1, 1, append(words(1, 0), region...)))
	f.Add(fuzzMessage(msgGetConfig, 1, 0, append(words(0, 4, 0), 0, 0, 0, 0)))
	sealed, m := newMemory(f, memSize, unix.F_SEAL_SHRINK)
	f.Cleanup(func() { unix.Munmap(m); unix.Close(sealed) })
	fds := []int{sealed, testFD(f, 'u'), testFD(f, 'n'), testFD(f, 'm'), eventfd(f)}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := openFDs(t)
		s, err := newServer(context.Background(), newTestDevice(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		for len(data) >= 4 {
			n := min(int(data[3]), len(data)-4)
			m := &message{request: uint32(data[0]), flags: uint32(data[1]), payload: data[4:][:n]}
			for i, fd := range fds {
				if data[2]&(1<<i) == 0 {
					continue
				}
				d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				m.fds = append(m.fds, d)
			}
			data = data[4+n:]
			_ = s.serveMessage(io.Discard, m)
		}
		s.fail(errFrontEndGone)
		if err := s.close(); err != nil {
			t.Error(err)
		}
		if err := context.Cause(s.ctx); err != errFrontEndGone {
			t.Error(err)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors, there were %d", after, before)
		}
	})
}

// FuzzRing takes requests off a ring whose descriptor table, indirect tables and available ring are arbitrary.
func FuzzRing(f *testing.F) {
	const size = 64 << 10 // of guest memory, in two regions with a gap
	chain := append(descriptor{inAt % size, 8, descNext, 1}.bytes(), descriptor{0x9000, 8, descWrite, 0}.bytes()...)
	f.Add(chain, words(0), uint16(1))
	f.Add(descriptor{0, 32, descIndirect, 0}.bytes(), words(0), uint16(1))
	f.Add(descriptor{0, 0, descNext, 0}.bytes(), words(0), uint16(3))
	f.Add(descriptor{size / 2, 1<<32 - 1, descWrite, 0}.bytes(), words(0xffff), uint16(0xffff))
	f.Fuzz(func(t *testing.T, table, heads []byte, avail uint16) {
		s, err := newServer(context.Background(), newTestDevice(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		s.features = transportFeature
		backing := make([]uint64, size/8)
		low := bytesOf(backing[:len(backing)/2])
		high := bytesOf(backing[len(backing)/2:])
		s.mem.regions = []*region{
			{regionDesc: regionDesc{guest: 0, size: size / 2, user: userBase}, bytes: low},
			{regionDesc: regionDesc{guest: size/2 + 16, size: size / 2, user: userBase + size}, bytes: high},
		}
		copy(low, table)
		r := s.rings[0]
		r.num, r.enabled = ringSize, true
		r.at = place{desc: userBase, avail: userBase + 0x4000, used: userBase + 0x6000}
		copy(low[0x4004:][:2*ringSize], heads)
		binary.LittleEndian.PutUint16(low[0x4002:], avail)
		if err := r.start(); err != nil {
			t.Fatal(err)
		}
		for {
			req := r.pop()
			if req == nil {
				break
			}
			req.makeOut()
			if len(req.In) > s.info.MaxIn || len(req.Out) > s.info.MaxOut {
				t.Fatalf("request of %d and %d bytes", len(req.In), len(req.Out))
			}
			r.complete(req, len(req.Out))
		}
		if n := avail - r.nextAvail; n != 0 && !r.broken.Load() {
			t.Errorf("%d requests left in a ring that is not broken", n)
		}
	})
}

// FuzzFUSE gives arbitrary requests to the virtio-fs device.
func FuzzFUSE(f *testing.F) {
	f.Add(fuseRequest(opLookup, 9, 1, []byte("hello\x00")), uint16(144))
	f.Add(fuseRequest(opRead, 9, 2, readBody(7, 4096)), uint16(4112))
	f.Add(fuseRequest(opReaddirplus, 9, 1, readBody(0, 512)), uint16(528))
	f.Add(fuseRequest(opBatchForget, 9, 0, words(2, 0), longs(3, 2, 4, 1)), uint16(0))
	f.Add(fuseRequest(opRename2, 9, 1, longs(1, 0), []byte("a\x00b\x00")), uint16(16))
	f.Add(fuseRequest(opSetxattr, 9, 1, words(1, 0), []byte("user.a\x00b")), uint16(16))
	f.Add(fuseRequest(opInit, 9, 0, initBody()), uint16(80))
	f.Add(longExtension(), uint16(144))
	f.Fuzz(func(t *testing.T, in []byte, room uint16) {
		fs := newTestFS()
		d, err := newFSDevice("pexroot", noPanicFS{fs}, nil, 1)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		d.Handle(ctx, 1, &Request{In: fuseRequest(opInit, 1, 0, initBody()), Out: make([]byte, 80)})
		var unique uint64
		if len(in) >= inHeaderSize {
			unique = binary.LittleEndian.Uint64(in[offUnique:])
		}
		req := &Request{In: append([]byte(nil), in...), Out: make([]byte, room)}
		d.MayBlock(1, req)
		n := d.Handle(ctx, 1, req)
		if n == 0 {
			return
		}
		if n < outHeaderSize || n > int(room) {
			t.Fatalf("answer of %d bytes in %d", n, room)
		}
		if u := binary.LittleEndian.Uint64(req.Out[offUnique:]); u != unique {
			t.Errorf("answer to %d, not to %d", u, unique)
		}
	})
}

// noPanicFS is testFS without the name that panics.
type noPanicFS struct{ *testFS }

func (f noPanicFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name == "panic" {
		return fuse.ENOENT
	}
	return f.testFS.Lookup(cancel, h, name, out)
}

func bytesOf(w []uint64) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), 8*len(w)) }
