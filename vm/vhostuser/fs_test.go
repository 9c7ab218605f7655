package vhostuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// testFS has in its root the file "hello", nodeid 2, whose content is text; reading nodeid 3 waits until it is
// cancelled, and looking up "panic" panics.
type testFS struct {
	fuse.RawFileSystem
	reading chan uint64 // unique of a read that waits
	forgot  atomic.Uint64
}

const text = "hello, guest\n"

func newTestFS() *testFS {
	return &testFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), reading: make(chan uint64, 64)}
}

func (f *testFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch {
	case name == "panic":
		panic(errDevice)
	case h.NodeId != fuse.FUSE_ROOT_ID || name != "hello":
		return fuse.ENOENT
	}
	out.NodeId, out.Attr = 2, fuse.Attr{Ino: 2, Size: uint64(len(text)), Mode: fuse.S_IFREG | 0o644}
	return fuse.OK
}

func (f *testFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.NodeId == 3 {
		f.reading <- in.Unique
		<-cancel
		return nil, fuse.EINTR
	}
	n := copy(buf, text[min(in.Offset, uint64(len(text))):])
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *testFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.Offset == 0 {
		out.AddDirEntry(fuse.DirEntry{Name: "hello", Ino: 2, Mode: fuse.S_IFREG, Off: 1})
	}
	return fuse.OK
}

func (f *testFS) Readlink(<-chan struct{}, *fuse.InHeader) ([]byte, fuse.Status) {
	return []byte("/target"), fuse.OK
}

func (f *testFS) GetXAttr(_ <-chan struct{}, _ *fuse.InHeader, _ string, dest []byte) (uint32, fuse.Status) {
	if len(dest) < 5 {
		return 5, fuse.ERANGE
	}
	return uint32(copy(dest, "value")), fuse.OK
}

func (f *testFS) Forget(node, n uint64) { f.forgot.Add(node * n) }

// fuseRequest makes a request: header, fixed part, the rest.
func fuseRequest(opcode uint32, unique, node uint64, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	b := words(uint32(inHeaderSize+len(body)), opcode)
	b = append(b, longs(unique, node)...)
	return append(append(b, make([]byte, inHeaderSize-len(b))...), body...)
}

// initBody is what Linux 6.9 sends with INIT, every capability claimed.
func initBody() []byte {
	b := words(7, 40, 128<<10, 1<<32-1, 1<<32-1)
	return append(b, make([]byte, 11*4)...)
}

func readBody(off uint64, size uint32) []byte {
	b := append(longs(0, off), words(size, 0)...)
	return append(b, longs(0, 0)...)
}

// serveFSTest starts the device and its queues: priority and requests.
func serveFSTest(t testing.TB, fs fuse.RawFileSystem) (*frontEnd, *driver, *driver) {
	t.Helper()
	d, err := newFSDevice("pexroot", fs, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	fe := serveTest(t, d, Options{})
	fe.connect(0)
	return fe, fe.queue(0), fe.queue(1)
}

// answer takes a FUSE answer apart, after checking its header.
func answer(t testing.TB, b []byte, unique uint64) (syscall.Errno, []byte) {
	t.Helper()
	if len(b) < outHeaderSize || int(binary.LittleEndian.Uint32(b)) != len(b) {
		t.Fatalf("answer %x", b)
	}
	if u := binary.LittleEndian.Uint64(b[offUnique:]); u != unique {
		t.Errorf("answer to %d, not to %d", u, unique)
	}
	return syscall.Errno(-int32(binary.LittleEndian.Uint32(b[4:]))), b[outHeaderSize:]
}

func TestFS(t *testing.T) {
	fs := newTestFS()
	fe, high, d := serveFSTest(t, fs)
	config := append([]byte("pexroot"), make([]byte, 29)...)
	config = append(config, words(1)...)
	got := fe.ask(msgGetConfig, append(words(0, 40, 0), make([]byte, 40)...))
	if d := cmp.Diff(append(words(0, 40, 0), config...), got); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}

	errno, body := answer(t, d.request(fuseRequest(opInit, 2, 0, initBody()), 80), 2)
	if errno != 0 || len(body) != 64 {
		t.Fatalf("INIT: %v, %d bytes", errno, len(body))
	}
	out := (*fuse.InitOut)(unsafe.Pointer(&body[0]))
	if out.Major != 7 || out.Flags64()&fuse.CAP_PASSTHROUGH != 0 || out.Flags64()&fuse.CAP_READDIRPLUS == 0 {
		t.Errorf("INIT: %d, capabilities %#x", out.Major, out.Flags64())
	}

	for _, tt := range []struct {
		name  string
		in    []byte
		room  int
		errno syscall.Errno
		size  int
		start string
	}{
		{"lookup", fuseRequest(opLookup, 9, 1, []byte("hello\x00")), 144, 0, 128, "\x02\x00\x00\x00"},
		{"lookup of nothing", fuseRequest(opLookup, 9, 1, []byte("nothing\x00")), 144, syscall.ENOENT, 0, ""},
		{"lookup of a reserved name", fuseRequest(opLookup, 9, 1, []byte(reservedName+"\x00")), 144, syscall.ENOENT, 0, ""},
		{"lookup in a reserved node", fuseRequest(opLookup, 9, reservedNode, []byte("hello\x00")), 144, syscall.ESTALE, 0, ""},
		{"lookup of no name", fuseRequest(opLookup, 9, 1), 144, syscall.ENOENT, 0, ""},
		{"lookup without room", fuseRequest(opLookup, 9, 1, []byte("hello\x00")), 100, syscall.EIO, 0, ""},
		{"read", fuseRequest(opRead, 9, 2, readBody(7, 4096)), 4112, 0, 6, "guest\n"},
		{"read past the end", fuseRequest(opRead, 9, 2, readBody(1<<63, 4096)), 4112, 0, 0, ""},
		{"read without room", fuseRequest(opRead, 9, 2, readBody(0, 4096)), 4111, syscall.EINVAL, 0, ""},
		{"read of 2^32-1", fuseRequest(opRead, 9, 2, readBody(0, 1<<32-1)), 4112, syscall.EINVAL, 0, ""},
		{"short read request", fuseRequest(opRead, 9, 2, readBody(0, 4096)[:39]), 4112, syscall.EINVAL, 0, ""},
		{"list", fuseRequest(opReaddir, 9, 1, readBody(0, 512)), 528, 0, 32, "\x02\x00\x00\x00"},
		{"list on", fuseRequest(opReaddir, 9, 1, readBody(1, 512)), 528, 0, 0, ""},
		{"link", fuseRequest(opReadlink, 9, 2), 4096, 0, 7, "/target"},
		{"attribute", fuseRequest(opGetxattr, 9, 2, words(16, 0), []byte("user.a\x00")), 32, 0, 5, "value"},
		{"attribute's size", fuseRequest(opGetxattr, 9, 2, words(0, 0), []byte("user.a\x00")), 24, 0, 8, "\x05"},
		{"not implemented", fuseRequest(opMkdir, 9, 1, words(0, 0), []byte("a\x00")), 144, syscall.ENOSYS, 0, ""},
		{"unknown", fuseRequest(4096, 9, 1), 144, syscall.ENOSYS, 0, ""},
		{"not for drivers", fuseRequest(41, 9, 1, make([]byte, 64)), 144, syscall.ENOSYS, 0, ""},
		{"length that lies", append(fuseRequest(opGetattr, 9, 1, make([]byte, 16)), 0), 144, syscall.EINVAL, 0, ""},
		{"second INIT of another version", fuseRequest(opInit, 9, 0, append(words(8), initBody()[4:]...)), 80, syscall.EPROTO, 0, ""},
		{"extension longer than the request", longExtension(), 144, syscall.EIO, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			errno, body := answer(t, d.request(tt.in, tt.room), 9)
			if errno != tt.errno || len(body) != tt.size || !strings.HasPrefix(string(body), tt.start) {
				t.Errorf("%v, %q; want %v, %d bytes", errno, body, tt.errno, tt.size)
			}
		})
	}
	for name, in := range map[string][]byte{
		"nothing":      nil,
		"half header":  fuseRequest(opLookup, 9, 1)[:20],
		"forget":       fuseRequest(opForget, 9, 5, longs(7)),
		"batch forget": fuseRequest(opBatchForget, 9, 0, words(2, 0), longs(3, 2, 4, 1)),
		"short forget": fuseRequest(opForget, 9, 5),
		"lying forget": fuseRequest(opBatchForget, 9, 0, words(1<<31, 0)),
	} {
		if got := high.request(in, 64); len(got) != 0 {
			t.Errorf("%s was answered: %x", name, got)
		}
	}
	if n := fs.forgot.Load(); n != 5*7+3*2+4 {
		t.Errorf("forgot %d", n)
	}
	if errno, _ := answer(t, d.request(fuseRequest(opDestroy, 4, 0), 16), 4); errno != 0 {
		t.Errorf("DESTROY: %v", errno)
	}
}

func longExtension() []byte {
	b := fuseRequest(opLookup, 9, 1, []byte("hello\x00"))
	binary.LittleEndian.PutUint16(b[36:], 1000) // total_extlen
	return b
}

// TestFSInterrupt interrupts one of two reads that the guest gave the same number, and lets the context end the other.
func TestFSInterrupt(t *testing.T) {
	fs := newTestFS()
	fe, high, d := serveFSTest(t, fs)
	answer(t, d.request(fuseRequest(opInit, 2, 0, initBody()), 80), 2)
	read := fuseRequest(opRead, 8, 3, readBody(0, 16))
	copy(fe.mem[inAt:], read)
	for i := range 2 {
		at := uint64(outAt + 4096*i)
		head := uint16(4 * i)
		d.post(int(head), descriptor{inAt, uint32(len(read)), descNext, head + 1}, descriptor{at, 32, descWrite, 0})
	}
	a, b := <-fs.reading, <-fs.reading
	if a == b {
		t.Errorf("both reads have the number %d", a)
	}
	// INIT must wait for reads to be answered.
	in := fuseRequest(opInit, 4, 0, initBody())
	copy(fe.mem[inAt+4096:], in)
	d.post(8, descriptor{inAt + 4096, uint32(len(in)), descNext, 9}, descriptor{outAt + 8192, 80, descWrite, 0})
	if e := d.take(); e.head != 8 {
		t.Fatalf("answer to %d", e.head)
	}
	if errno, _ := answer(t, fe.mem[outAt+8192:][:16], 4); errno != syscall.EBUSY {
		t.Errorf("INIT during reads: %v", errno)
	}
	// An interrupt of nothing says so.
	if errno, _ := answer(t, high.request(fuseRequest(opInterrupt, 7, 0, longs(99)), 16), 7); errno != syscall.EAGAIN {
		t.Errorf("INTERRUPT of nothing: %v", errno)
	}
	if got := high.request(fuseRequest(opInterrupt, 9, 0, longs(8)), 16); len(got) != 0 {
		t.Errorf("INTERRUPT was answered: %x", got)
	}
	e := d.take()
	if errno, _ := answer(t, fe.mem[outAt+1024*int(e.head):][:e.n], 8); errno != syscall.EINTR {
		t.Errorf("interrupted read: %v", errno)
	}
	fe.end()
	if err := fe.result(); !errors.Is(err, context.Canceled) {
		t.Errorf("ServeFS returned %v", err)
	}
}

func TestFSPanic(t *testing.T) {
	fe, _, d := serveFSTest(t, newTestFS())
	in := fuseRequest(opLookup, 2, 1, []byte("panic\x00"))
	copy(fe.mem[inAt:], in)
	d.post(0, descriptor{inAt, uint32(len(in)), descNext, 1}, descriptor{outAt, 144, descWrite, 0})
	err := fe.result()
	var p *PanicError
	if !errors.As(err, &p) || !errors.Is(err, errDevice) || p.Queue != 1 || !bytes.Contains(p.Stack, []byte("testFS")) {
		t.Errorf("ServeFS returned %v", err)
	}
}

func TestFSTag(t *testing.T) {
	for _, tag := range []string{"", strings.Repeat("t", 37)} {
		if _, err := newFSDevice(tag, newTestFS(), nil, 1); err == nil {
			t.Errorf("tag %q was accepted", tag)
		}
	}
}

// benchFS measures what a request costs, kick and interrupt included.
func benchFS(b *testing.B, in []byte, room int) {
	_, _, d := serveFSTest(b, newTestFS())
	d.request(fuseRequest(opInit, 2, 0, initBody()), 80)
	b.ReportAllocs()
	for b.Loop() {
		d.request(in, room)
	}
}

func BenchmarkLookup(b *testing.B) { benchFS(b, fuseRequest(opLookup, 9, 1, []byte("hello\x00")), 144) }
func BenchmarkRead(b *testing.B) {
	benchFS(b, fuseRequest(opRead, 9, 2, readBody(0, 128<<10)), 128<<10+16)
}
