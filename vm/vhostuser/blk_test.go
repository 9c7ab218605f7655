package vhostuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testDisk is a disk of 64 sectors. Sectors from awaited on are missing until arrive is closed; reading the sector broken
// fails.
type testDisk struct {
	t       testing.TB
	file    *os.File // nil: everything is read by ReadAt
	content []byte
	reading chan int64
	arrive  chan struct{}
}

const (
	diskSectors = 64
	awaited     = 48
	broken      = 40
)

func newTestDisk(t testing.TB) *testDisk {
	d := &testDisk{t: t, reading: make(chan int64, 64), arrive: make(chan struct{})}
	for i := range diskSectors * blkSector {
		d.content = append(d.content, byte(i/blkSector+i%7))
	}
	return d
}

// inFile puts the disk's content into a file.
func (d *testDisk) inFile() *testDisk {
	d.t.Helper()
	name := filepath.Join(d.t.TempDir(), "disk")
	if err := os.WriteFile(name, d.content, 0o600); err != nil {
		d.t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { f.Close() })
	d.file = f
	return d
}

func (d *testDisk) Size() int64 { return int64(len(d.content)) }

func (d *testDisk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off > d.Size() || int64(len(p)) > d.Size()-off {
		d.t.Errorf("reading %d bytes at %d of a disk of %d", len(p), off, d.Size())
		return 0, io.EOF
	}
	if off == broken*blkSector {
		return 0, errDevice
	}
	if off+int64(len(p)) > awaited*blkSector {
		d.reading <- off / blkSector
		select {
		case <-d.arrive:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return copy(p, d.content[off:]), nil
}

func (d *testDisk) ReadFd(off int64, n int) (uintptr, int64, bool) {
	if off < 0 || n <= 0 || off > d.Size() || int64(n) > d.Size()-off {
		d.t.Errorf("asking for %d bytes at %d of a disk of %d", n, off, d.Size())
		return 0, 0, false
	}
	if d.file == nil || off+int64(n) > awaited*blkSector || off == broken*blkSector {
		return 0, 0, false
	}
	return d.file.Fd(), off, true
}

func blkRequest(kind uint32, sector uint64) []byte { return append(words(kind, 0), longs(sector)...) }

// withStatus is an answer: data, and the status behind it.
func withStatus(status byte, data []byte) []byte {
	return append(append([]byte(nil), data...), status)
}

func serveBlockTest(t testing.TB, disk Disk) (*frontEnd, *driver) {
	t.Helper()
	d, err := newBlkDevice(disk, "pex-0123456789", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	fe := serveTest(t, d, Options{})
	fe.connect(0)
	return fe, fe.queue(0)
}

func TestBlock(t *testing.T) {
	for _, way := range []string{"by copy", "from a file"} {
		t.Run(way, func(t *testing.T) {
			disk := newTestDisk(t)
			if way == "from a file" {
				disk.inFile()
			}
			fe, d := serveBlockTest(t, disk)
			config := append(longs(diskSectors), words(blkSegmentSize, blkSegments)...)
			config = append(config, make([]byte, blkConfigSize-len(config))...)
			got := fe.ask(msgGetConfig, append(words(0, blkConfigSize, 0), make([]byte, blkConfigSize)...))
			if d := cmp.Diff(append(words(0, blkConfigSize, 0), config...), got); d != "" {
				t.Errorf("configuration (-want +got):\n%s", d)
			}
			if f := binary.LittleEndian.Uint64(fe.ask(msgGetFeatures, nil)); f&blkReadOnly == 0 {
				t.Errorf("features %#x", f)
			}

			sectors := func(first, n int) []byte { return disk.content[first*blkSector:][:n*blkSector] }
			fails := func(n int) []byte { return withStatus(blkIOError, make([]byte, n)) }
			id := append([]byte("pex-0123456789"), make([]byte, 6)...)
			for _, tt := range []struct {
				name string
				in   []byte
				room int
				want []byte
			}{
				{"first sector", blkRequest(blkIn, 0), 513, withStatus(blkOK, sectors(0, 1))},
				{"several sectors", blkRequest(blkIn, 7), 8*512 + 1, withStatus(blkOK, sectors(7, 8))},
				{"no sector", blkRequest(blkIn, 7), 1, []byte{blkOK}},
				{"at the end, of nothing", blkRequest(blkIn, 64), 1, []byte{blkOK}},
				{"behind the end", blkRequest(blkIn, 64), 513, fails(512)},
				{"across the end", blkRequest(blkIn, 63), 1025, fails(1024)},
				{"sector that wraps", blkRequest(blkIn, 1<<55), 513, fails(512)},
				{"last sector there can be", blkRequest(blkIn, 1<<64-1), 513, fails(512)},
				{"part of a sector", blkRequest(blkIn, 0), 512, fails(511)},
				{"no room", blkRequest(blkIn, 0), 0, nil},
				{"short header", blkRequest(blkIn, 0)[:15], 513, fails(512)},
				{"no header", nil, 1, []byte{blkIOError}},
				{"more than a header", append(blkRequest(blkIn, 1), 1, 2, 3), 513, withStatus(blkOK, sectors(1, 1))},
				{"broken sector", blkRequest(blkIn, broken), 513, fails(512)},
				{"write", append(blkRequest(blkOut, 0), make([]byte, 512)...), 1, []byte{blkIOError}},
				{"flush", blkRequest(blkFlush, 0), 1, []byte{blkOK}},
				{"id", blkRequest(blkGetID, 0), 21, withStatus(blkOK, id)},
				{"id without room", blkRequest(blkGetID, 0), 20, fails(19)},
				{"discard", blkRequest(11, 0), 1, []byte{blkUnsupported}},
				{"anything", blkRequest(1<<31, 0), 5, withStatus(blkUnsupported, make([]byte, 4))},
			} {
				t.Run(tt.name, func(t *testing.T) {
					if d := cmp.Diff(tt.want, d.request(tt.in, tt.room)); d != "" {
						t.Errorf("answer (-want +got):\n%.2000s", d)
					}
				})
			}
			if !bytes.Equal(disk.content, newTestDisk(t).content) {
				t.Error("the disk has changed")
			}
		})
	}
}

// TestBlockPieces reads into room of many pieces, the status byte in one with data and by itself.
func TestBlockPieces(t *testing.T) {
	disk := newTestDisk(t).inFile()
	fe, d := serveBlockTest(t, disk)
	copy(fe.mem[inAt:], blkRequest(blkIn, 2))
	for name, sizes := range map[string][]uint32{
		"status by itself":     {512, 1, 511, 1},
		"status with data":     {100, 925},
		"empty pieces":         {0, 512, 0, 512, 0, 1, 0},
		"one piece":            {1025},
		"bytes, one at a time": {1, 1, 1, 1021, 1},
	} {
		t.Run(name, func(t *testing.T) {
			clear(fe.mem[outAt:][:16<<10])
			ds := []descriptor{{inAt, 10, descNext, 1}, {inAt + 10, 6, descNext, 2}}
			at := uint64(outAt)
			for _, n := range sizes {
				ds = append(ds, descriptor{at, n, descWrite | descNext, uint16(len(ds) + 1)})
				at += uint64(n) + 32
			}
			ds[len(ds)-1].flags = descWrite
			d.post(0, ds...)
			if e := d.take(); e.n != 1025 {
				t.Errorf("answer of %d bytes", e.n)
			}
			var got []byte
			at = outAt
			for _, n := range sizes {
				got = append(got, fe.mem[at:][:n]...)
				if !bytes.Equal(fe.mem[at+uint64(n):][:32], make([]byte, 32)) {
					t.Errorf("bytes behind a piece of %d were written", n)
				}
				at += uint64(n) + 32
			}
			if want := withStatus(blkOK, disk.content[1024:2048]); !bytes.Equal(got, want) {
				t.Errorf("%s", cmp.Diff(want, got))
			}
		})
	}
}

// TestBlockFileFails reads what can't be had straight from the file: it is copied.
func TestBlockFileFails(t *testing.T) {
	disk := newTestDisk(t).inFile()
	if err := os.Truncate(disk.file.Name(), 3*blkSector); err != nil {
		t.Fatal(err)
	}
	_, d := serveBlockTest(t, disk)
	for name, sector := range map[string]int{"there": 0, "in part": 2, "not there": 8} {
		got := d.request(blkRequest(blkIn, uint64(sector)), 1025)
		if want := withStatus(blkOK, disk.content[sector*blkSector:][:1024]); !bytes.Equal(got, want) {
			t.Errorf("%s: %s", name, cmp.Diff(want, got))
		}
	}
}

// TestBlockWaits has reads wait for what is missing while others are answered, and lets the data come, or the end.
func TestBlockWaits(t *testing.T) {
	for _, end := range []string{"data", "reset"} {
		t.Run(end, func(t *testing.T) {
			disk := newTestDisk(t).inFile()
			fe, d := serveBlockTest(t, disk)
			for i := range 3 {
				copy(fe.mem[inAt+64*i:], blkRequest(blkIn, uint64(awaited+i)))
				d.post(4*i, descriptor{uint64(inAt + 64*i), blkHeader, descNext, uint16(4*i + 1)},
					descriptor{uint64(outAt + 1024*i), 513, descWrite, 0})
			}
			for range 3 {
				<-disk.reading
			}
			copy(fe.mem[inAt+1024:], blkRequest(blkIn, 5))
			d.post(12, descriptor{inAt + 1024, blkHeader, descNext, 13}, descriptor{outAt + 8192, 513, descWrite, 0})
			if e := d.take(); e.head != 12 || !bytes.Equal(fe.mem[outAt+8192:][:513], withStatus(blkOK, disk.content[5*blkSector:][:512])) {
				t.Errorf("a read of what is there: %+v", e)
			}
			if end == "reset" {
				fe.end()
				if err := fe.result(); !errors.Is(err, context.Canceled) {
					t.Errorf("Serve returned %v", err)
				}
				if e, ok := d.ready(); ok {
					t.Errorf("a read that nobody waits for was answered: %+v", e)
				}
				return
			}
			close(disk.arrive)
			for range 3 {
				i := int(d.take().head) / 4
				if want := withStatus(blkOK, disk.content[(awaited+i)*blkSector:][:512]); !bytes.Equal(fe.mem[outAt+1024*i:][:513], want) {
					t.Errorf("read %d: wrong data", i)
				}
			}
		})
	}
}

// TestBlockTooLarge sends what breaks the ring: more than a request may have.
func TestBlockTooLarge(t *testing.T) {
	for name, ds := range map[string][]descriptor{
		"in":  repeat(descriptor{inAt, 512 << 10, 0, 0}, 5),
		"out": append([]descriptor{{inAt, blkHeader, 0, 0}}, repeat(descriptor{outAt, 512 << 10, descWrite, 0}, 5)...),
	} {
		t.Run(name, func(t *testing.T) {
			_, d := serveBlockTest(t, newTestDisk(t))
			for i := range ds[:len(ds)-1] {
				ds[i].flags |= descNext
				ds[i].next = uint16(i + 1)
			}
			d.post(0, ds...)
			if !wait(d.errs) {
				t.Error("the ring is not broken")
			}
		})
	}
}

func repeat(d descriptor, n int) (ds []descriptor) {
	for range n {
		ds = append(ds, d)
	}
	return ds
}

func TestBlockSize(t *testing.T) {
	disk := newTestDisk(t)
	disk.content = disk.content[:100]
	if _, err := newBlkDevice(disk, "", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a disk of 100 bytes was accepted")
	}
}

// FuzzBlock gives arbitrary requests to the virtio-blk device, which must read nothing outside its disk, and answer with a
// status what has room for one.
func FuzzBlock(f *testing.F) {
	f.Add(blkRequest(blkIn, 3), uint16(513), false)
	f.Add(blkRequest(blkIn, 63), uint16(1025), true)
	f.Add(blkRequest(blkIn, 1<<55), uint16(1), false)
	f.Add(blkRequest(blkIn, broken), uint16(4097), true)
	f.Add(append(blkRequest(blkOut, 0), make([]byte, 512)...), uint16(1), false)
	f.Add(blkRequest(blkFlush, 0), uint16(1), false)
	f.Add(blkRequest(blkGetID, 0), uint16(21), true)
	f.Add(blkRequest(13, 0), uint16(17), true)
	f.Add([]byte{0, 0, 0}, uint16(0), false)
	disk := newTestDisk(f).inFile()
	close(disk.arrive)
	f.Fuzz(func(t *testing.T, in []byte, room uint16, file bool) {
		disk := &testDisk{t: t, content: disk.content, arrive: disk.arrive, reading: make(chan int64, 1)}
		d, err := newBlkDevice(disk, "fuzz", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if file {
			d.fd = &testDisk{t: t, content: disk.content, file: os.Stdin}
		}
		req := &Request{In: in, size: int(room)}
		part, ok := d.InFile(0, req)
		if ok && (part.N+len(part.Tail) != int(room) || part.Off < 0 || part.Off+int64(part.N) > disk.Size()) {
			t.Errorf("answer for %d bytes: %+v", room, part)
		}
		blocks := d.MayBlock(0, req)
		if ok && !blocks {
			t.Error("a read that can't block")
		}
		req.makeOut()
		n := d.Handle(t.Context(), 0, req)
		if n != int(room) {
			t.Fatalf("answer of %d bytes for %d", n, room)
		}
		if n > 0 && req.Out[n-1] > blkUnsupported {
			t.Errorf("status %d", req.Out[n-1])
		}
		if ok && req.Out[n-1] != blkOK {
			t.Errorf("status %d of what is in the file", req.Out[n-1])
		}
	})
}

// benchBlock measures a read of 128 KiB, kick and interrupt included.
func benchBlock(b *testing.B, disk *testDisk) {
	disk.content = make([]byte, 1<<20)
	if disk.file != nil {
		disk.inFile()
	}
	_, d := serveBlockTest(b, benchDisk{disk})
	in := blkRequest(blkIn, 8)
	b.ReportAllocs()
	for b.Loop() {
		d.request(in, 128<<10+1)
	}
}

// benchDisk is a testDisk that is all there.
type benchDisk struct{ *testDisk }

func (d benchDisk) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, d.content[off:]), nil
}

func (d benchDisk) ReadFd(off int64, _ int) (uintptr, int64, bool) {
	if d.file == nil {
		return 0, 0, false
	}
	return d.file.Fd(), off, true
}

func BenchmarkBlockCopy(b *testing.B) { benchBlock(b, newTestDisk(b)) }
func BenchmarkBlockFile(b *testing.B) { benchBlock(b, newTestDisk(b).inFile()) }
