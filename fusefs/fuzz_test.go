package fusefs

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"syscall"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// memImage is an image in memory: a superblock and metadata. All other bytes are what fill gives for their offsets.
type memImage struct {
	t       testing.TB
	super   []byte // block 0
	metaOff int64
	meta    []byte
	size    int64
}

func fill(off int64) byte { return byte(off*7 + off>>12) }

func (m *memImage) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 {
		m.super = bytes.Clone(p)
		return len(p), nil
	}
	at := off - m.metaOff
	m.meta = append(m.meta, make([]byte, max(0, at+int64(len(p))-int64(len(m.meta))))...)
	copy(m.meta[at:], p)
	return len(p), nil
}

func (m *memImage) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		switch at := off + int64(i); {
		case at < 0 || at >= m.size:
			return i, io.EOF
		case at < int64(len(m.super)):
			p[i] = m.super[at]
		case at >= m.metaOff && at-m.metaOff < int64(len(m.meta)):
			p[i] = m.meta[at-m.metaOff]
		default:
			p[i] = fill(at)
		}
	}
	return len(p), nil
}

// memData is the Data of a memImage.
type memData struct{ *memImage }

func (d memData) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off > d.size-int64(len(p)) {
		d.t.Errorf("%d bytes at %d of an image of %d are asked for", len(p), off, d.size)
	}
	return d.memImage.ReadAt(p, off)
}

// newMemImage makes an image of a superblock and metadata of any bytes. Its checksum is taken out, and it has at most 16 MiB.
func newMemImage(t testing.TB, super, meta []byte) *memImage {
	m := &memImage{t: t, super: make([]byte, disk.BlockSize), meta: meta}
	copy(m.super[disk.SuperOffset:], super)
	var s disk.Super
	s.Decode(m.super[disk.SuperOffset:])
	s.FeatureCompat &^= disk.CompatChecksum
	s.Encode(m.super[disk.SuperOffset:])
	m.metaOff = int64(s.MetaBlock) * disk.BlockSize
	m.size = min(int64(s.Blocks)*disk.BlockSize, 16<<20)
	return m
}

// fuzzTree is a tree with something of every type.
func fuzzTree(f *testing.F) *erofs.Layout {
	b := tree.NewBuilder(tree.Options{})
	entries := []tree.Entry{
		{Name: "d", Type: tree.Dir, Mode: 0o1750, UID: 7, GID: 1 << 20, Mtime: tree.Time{Sec: -5, Nsec: 250}},
		{Name: "d/file", Type: tree.Regular, Mode: 0o4755, Size: 5000, Xattrs: []tree.Xattr{{Name: "user.a", Value: []byte{0, 1}}, {Name: "trusted.b", Value: []byte("x")}}},
		{Name: "d/link", Type: tree.HardLink, Linkname: "d/file"},
		{Name: "empty", Type: tree.Regular, Mode: 0o600},
		{Name: "sym", Type: tree.Symlink, Mode: 0o777, Linkname: "d/file"},
		{Name: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3},
		{Name: "pipe", Type: tree.Fifo, Mode: 0o600},
	}
	if err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}); err != nil {
		f.Fatal(err)
	}
	t, err := b.Build()
	if err != nil {
		f.Fatal(err)
	}
	l, err := erofs.NewLayout(t, func(tree.Content) [32]byte { return [32]byte{} }, [16]byte{})
	if err != nil {
		f.Fatal(err)
	}
	return l
}

// Opcodes of linux/fuse.h, which go-fuse keeps to itself, of requests that an image answers or refuses.
const (
	opLookup, opForget, opGetattr, opSetattr, opReadlink, opMknod           = 1, 2, 3, 4, 5, 8
	opUnlink, opOpen, opRead, opWrite, opStatfs, opGetxattr, opListxattr    = 10, 14, 15, 16, 17, 22, 23
	opInit, opOpendir, opReaddir, opAccess, opCreate, opReaddirplus, opSeek = 26, 27, 28, 34, 35, 44, 46
)

var fuzzOps = []uint32{
	opLookup, opForget, opGetattr, opSetattr, opReadlink, opMknod, opUnlink, opOpen, opRead, opWrite, opStatfs, opGetxattr, opListxattr,
	opOpendir, opReaddir, opAccess, opCreate, opReaddirplus, opSeek,
}

const (
	inSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	outSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	unique  = 0x1122334455667788
	maxRoom = 16 << 10 // bytes that one read of any kind asks for
)

// encode makes a request. It is padded, so that it is as long as its kind has to be.
func encode(op uint32, node uint64, body []byte) []byte {
	b := make([]byte, inSize, inSize+256)
	binary.LittleEndian.PutUint32(b[4:], op)
	binary.LittleEndian.PutUint64(b[8:], unique)
	binary.LittleEndian.PutUint64(b[16:], node)
	b = append(append(b, body...), make([]byte, 128)...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

// seekTo is the body of READ, READDIR and READDIRPLUS.
func seekTo(off uint64, size uint32) []byte {
	b := make([]byte, 40)
	binary.LittleEndian.PutUint64(b[8:], off)
	binary.LittleEndian.PutUint32(b[16:], size)
	return b
}

// FuzzRequests sends requests of any kind, node and body over an image whose superblock and metadata are of any bytes. Answers are
// those of the protocol and within their room, contents come from within the image and are its own, attributes are in their
// ranges, and a listing ends.
func FuzzRequests(f *testing.F) {
	l := fuzzTree(f)
	m := &memImage{t: f, metaOff: l.MetaOffset(), size: l.Size()}
	if err := l.WriteTo(m); err != nil {
		f.Fatal(err)
	}
	super, meta := m.super[disk.SuperOffset:][:disk.SuperSize], bytes.TrimRight(m.meta, "\x00")
	im, err := erofs.Open(m, m.size)
	if err != nil {
		f.Fatal(err)
	}
	for op := range fuzzOps {
		for _, names := range [][]string{nil, {"d"}, {"d", "file"}, {"empty"}, {"sym"}, {"null"}} {
			nid := uint64(1)
			for _, name := range names {
				dir, err := im.Inode(nid)
				if err != nil {
					f.Fatal(err)
				}
				if nid, err = im.Lookup(dir, name); err != nil {
					f.Fatal(err)
				}
			}
			body := seekTo(1, 4096)
			if fuzzOps[op] == opLookup {
				body = []byte("d\x00")
			}
			f.Add(super, meta, byte(op), nid, body)
		}
	}
	f.Add(super, meta, byte(0), uint64(math.MaxUint64), []byte("x\x00"))
	f.Add(super, meta, byte(14), uint64(1), seekTo(math.MaxUint64, maxRoom))
	f.Fuzz(func(t *testing.T, super, meta []byte, op byte, node uint64, body []byte) {
		m := newMemImage(t, super, meta)
		im, err := erofs.Open(m, m.size)
		if err != nil {
			return
		}
		if node == math.MaxUint64 { // go-fuse keeps it for itself
			return
		}
		o := ServerOptions()
		o.PanicHandler = func(v any) fuse.Status { panic(v) }
		c := &conn{t: t, m: m, im: im, s: fuse.NewProtocolServer(New(im, memData{m}, Options{}), o)}
		c.send(encode(opInit, 0, binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 7), 38)))
		c.request(fuzzOps[int(op)%len(fuzzOps)], node, body)
		c.walk(node)
		c.walk(1)
	})
}

// conn is a kernel at the other end.
type conn struct {
	t  *testing.T
	m  *memImage
	im *erofs.Image
	s  *fuse.ProtocolServer
}

// send gives the answer to a request: its error and what follows the header.
func (c *conn) send(req []byte) (syscall.Errno, []byte) {
	out := make([]byte, outSize+128+maxRoom)
	n, status := c.s.HandleRequest([][]byte{req}, [][]byte{out})
	if !status.Ok() || n == 0 {
		return syscall.Errno(status), nil // not understood, or not to be answered
	}
	if n < outSize || n > len(out) || int(binary.LittleEndian.Uint32(out)) != n {
		c.t.Fatalf("an answer of %d bytes says that it has %d", n, binary.LittleEndian.Uint32(out))
	}
	if got := binary.LittleEndian.Uint64(out[8:]); got != unique {
		c.t.Fatalf("the answer is to request %#x", got)
	}
	errno := -int32(binary.LittleEndian.Uint32(out[4:]))
	if errno < 0 || errno > 4095 {
		c.t.Fatalf("error %d", errno)
	}
	return syscall.Errno(errno), out[outSize:n]
}

// request sends one request and judges its answer.
func (c *conn) request(op uint32, node uint64, body []byte) {
	t := c.t
	var size uint32 // that a read may have
	if op == opRead || op == opReaddir || op == opReaddirplus || op == opGetxattr || op == opListxattr {
		body = append(bytes.Clone(body), make([]byte, max(0, 24-len(body)))...)
		at := 16
		if op == opGetxattr || op == opListxattr {
			at = 0
		}
		size = binary.LittleEndian.Uint32(body[at:]) % (maxRoom + 1)
		binary.LittleEndian.PutUint32(body[at:], size)
	}
	errno, answer := c.send(encode(op, node, body))
	in, err := c.im.Inode(node)
	switch op {
	case opSetattr, opMknod, opUnlink, opWrite, opCreate:
		if errno == 0 {
			t.Errorf("opcode %d changes something", op)
		}
		return
	case opStatfs, opForget, opAccess, opSeek:
		return
	}
	if errno != 0 {
		if len(answer) > 0 {
			t.Errorf("opcode %d: %v, and %d bytes", op, errno, len(answer))
		}
		return
	}
	if err != nil {
		t.Errorf("opcode %d of an inode that can't be read (%v) is answered", op, err)
		return
	}
	switch op {
	case opLookup:
		e := (*fuse.EntryOut)(unsafe.Pointer(&answer[0]))
		if e.NodeId != 0 {
			checkAttr(t, e.NodeId, &e.Attr)
		}
	case opGetattr:
		checkAttr(t, node, &(*fuse.AttrOut)(unsafe.Pointer(&answer[0])).Attr)
	case opReadlink:
		if len(answer) == 0 || int64(len(answer)) != in.Size || len(answer) > disk.MaxTarget {
			t.Errorf("a link's target of %d bytes is read as %d", in.Size, len(answer))
		}
	case opGetxattr, opListxattr:
		if size > 0 && uint32(len(answer)) > size {
			t.Errorf("%d bytes for %d", len(answer), size)
		}
	case opRead:
		c.checkRead(in, binary.LittleEndian.Uint64(body[8:]), size, answer)
	}
}

func checkAttr(t *testing.T, nid uint64, a *fuse.Attr) {
	t.Helper()
	if a.Ino != nid || a.Size > math.MaxInt64 || a.Mtimensec >= 1e9 || disk.TypeOfMode(a.Mode) == 0 {
		t.Errorf("inode %d: %+v", nid, a)
	}
}

// checkRead compares what was read with the image, where it lies there as it is.
func (c *conn) checkRead(in erofs.Inode, off uint64, size uint32, got []byte) {
	want := uint64(0)
	if off < uint64(in.Size) {
		want = min(uint64(in.Size)-off, uint64(size))
	}
	if uint64(len(got)) != want {
		c.t.Fatalf("%d bytes of %d at %d were asked for, %d came", size, in.Size, off, len(got))
	}
	at, err := c.im.DataOff(in)
	if err != nil || want == 0 {
		return
	}
	b := make([]byte, want)
	if _, err := c.m.ReadAt(b, at+int64(off)); err != nil || !bytes.Equal(b, got) {
		c.t.Errorf("%d bytes at %d are not the image's (%v)", want, off, err)
	}
}

// walk lists a directory as a kernel does, and looks at what it finds.
func (c *conn) walk(node uint64) {
	const room = 4096
	off := uint64(0)
	for range 64 {
		errno, b := c.send(encode(opReaddir, node, seekTo(off, room)))
		if errno != 0 || len(b) == 0 {
			return
		}
		if len(b) > room {
			c.t.Fatalf("%d bytes of names for %d", len(b), room)
		}
		for len(b) > 0 {
			if len(b) < 24 {
				c.t.Fatalf("a name of %d bytes", len(b))
			}
			ino, next, n := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), int(binary.LittleEndian.Uint32(b[16:]))
			if n == 0 || n > disk.MaxName || 24+n > len(b) || bytes.ContainsAny(b[24:24+n], "/\x00") {
				c.t.Fatalf("a name of %d bytes: %.300q", n, b)
			}
			if next <= off {
				c.t.Fatalf("the listing goes from %d to %d", off, next)
			}
			off = next
			name := append(bytes.Clone(b[24:24+n]), 0)
			c.request(opLookup, node, name)
			if ino != math.MaxUint64 {
				c.request(opGetattr, ino, nil)
				c.request(opRead, ino, seekTo(0, 5000))
			}
			b = b[min(len(b), (24+n+7)/8*8):]
		}
	}
}
