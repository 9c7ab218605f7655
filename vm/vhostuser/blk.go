package vhostuser

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
)

// A Disk is what a block device reads. Its methods are called concurrently.
type Disk interface {
	// Size is the number of bytes: a multiple of 512 that doesn't change.
	Size() int64

	// ReadAt reads len(p) bytes at off, which lie in the disk, and waits for those that are missing until ctx ends. An
	// error, like a read of fewer bytes, is an I/O error to the guest.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// An FdDisk is a Disk that can name a file where bytes that are present lie, so that they are read straight into guest
// memory.
type FdDisk interface {
	Disk

	// ReadFd gives a descriptor and an offset in it for n bytes at off; ok is false where they aren't all present.
	ReadFd(off int64, n int) (fd uintptr, fdOff int64, ok bool)
}

// Of a block device (VIRTIO 1.2, section 5.2).
const (
	blkSizeMax  = 1 << 1 // feature bits
	blkSegMax   = 1 << 2
	blkReadOnly = 1 << 5

	blkIn    = 0 // kinds of requests
	blkOut   = 1
	blkFlush = 4
	blkGetID = 8

	blkOK          = 0 // statuses
	blkIOError     = 1
	blkUnsupported = 2

	blkSector     = 512
	blkHeader     = 16 // bytes of a request's type, a reserved field and the sector
	blkIDSize     = 20
	blkConfigSize = 60

	// A request takes at most 126 segments, the most that a queue of 128 entries holds without indirect tables, of 16 KiB.
	// A guest can make this process hold as much for each of blkInFlight requests.
	blkSegments    = 126
	blkSegmentSize = 16 << 10
	blkMaxData     = blkSegments * blkSegmentSize
	blkInFlight    = 32
)

// ServeBlock is Serve for a virtio-blk device (VIRTIO 1.2, section 5.2) that is read-only: writes fail, flushes are
// answered, and the rest that a driver may ask for is unsupported. id is what the device says it is, of which 20 bytes
// count. The device has one queue, o.RequestQueues notwithstanding, and o.InFlight is 32 unless it is given.
//
// What disk, an FdDisk, has present and the host has in memory is answered on the queue's goroutine with no copy between.
// Other reads run concurrently. One that waits for what is missing holds up only itself and what the guest orders behind
// it; one that fails is logged.
func ServeBlock(ctx context.Context, conn *net.UnixConn, disk Disk, id string, o Options) error {
	defer conn.Close()
	if o.InFlight == 0 {
		o.InFlight = blkInFlight
	}
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	dev, err := newBlkDevice(disk, id, o.Logger)
	if err != nil {
		return err
	}
	return Serve(ctx, conn, dev, o)
}

// blkDevice is the virtio-blk device.
type blkDevice struct {
	disk   Disk
	fd     FdDisk // disk, if it is one
	size   uint64
	id     [blkIDSize]byte
	config []byte
	log    *slog.Logger
}

func newBlkDevice(disk Disk, id string, log *slog.Logger) (*blkDevice, error) {
	size := disk.Size()
	if size < 0 || size%blkSector != 0 {
		return nil, fmt.Errorf("a disk of %d bytes: want a multiple of %d", size, blkSector)
	}
	d := &blkDevice{disk: disk, size: uint64(size), log: log, config: make([]byte, blkConfigSize)}
	d.fd, _ = disk.(FdDisk)
	copy(d.id[:], id)
	binary.LittleEndian.PutUint64(d.config[0:], d.size/blkSector)
	binary.LittleEndian.PutUint32(d.config[8:], blkSegmentSize)
	binary.LittleEndian.PutUint32(d.config[12:], blkSegments)
	return d, nil
}

func (d *blkDevice) Info() Info {
	return Info{
		Features:    blkSizeMax | blkSegMax | blkReadOnly,
		Config:      d.config,
		OfferConfig: true,
		Queues:      1,
		MaxIn:       blkHeader + blkMaxData,
		MaxOut:      blkMaxData + 1,
		WholeOut:    true,
	}
}

// InFile finds a read's data in the disk's file.
func (d *blkDevice) InFile(_ int, req *Request) (FilePart, bool) {
	if d.fd == nil {
		return FilePart{}, false
	}
	kind, sector, ok := parseBlk(req.In)
	n := req.Room() - 1
	if !ok || kind != blkIn || n <= 0 || !d.contains(sector, n) {
		return FilePart{}, false
	}
	fd, off, ok := d.fd.ReadFd(int64(sector)*blkSector, n)
	return FilePart{FD: fd, Off: off, N: n, Tail: []byte{blkOK}}, ok
}

// MayBlock is true for reads: they wait for a network or a disk.
func (d *blkDevice) MayBlock(_ int, req *Request) bool {
	kind, _, ok := parseBlk(req.In)
	return ok && kind == blkIn
}

// Handle answers one request. The last byte of its room is for the status.
func (d *blkDevice) Handle(ctx context.Context, _ int, req *Request) int {
	if len(req.Out) == 0 {
		return 0
	}
	data := req.Out[:len(req.Out)-1]
	status := d.serve(ctx, req.In, data)
	if status != blkOK {
		clear(data)
	}
	req.Out[len(data)] = status
	return len(req.Out)
}

func (d *blkDevice) serve(ctx context.Context, in, data []byte) (status byte) {
	kind, sector, ok := parseBlk(in)
	if !ok {
		return blkIOError
	}
	switch kind {
	case blkIn:
		if !d.contains(sector, len(data)) {
			return blkIOError
		}
		if len(data) == 0 {
			return blkOK
		}
		off := int64(sector) * blkSector
		if n, err := d.disk.ReadAt(ctx, data, off); n < len(data) {
			if ctx.Err() == nil {
				d.log.Warn("reading disk", "offset", off, "bytes", len(data), "read", n, "error", err)
			}
			return blkIOError
		}
		return blkOK
	case blkFlush:
		clear(data)
		return blkOK
	case blkGetID:
		if len(data) < blkIDSize {
			return blkIOError
		}
		clear(data[copy(data, d.id[:]):])
		return blkOK
	case blkOut:
		return blkIOError
	}
	return blkUnsupported
}

// contains reports whether n bytes from a sector on lie in the disk, and are whole sectors.
func (d *blkDevice) contains(sector uint64, n int) bool {
	return n%blkSector == 0 && sector <= d.size/blkSector && uint64(n) <= d.size-sector*blkSector
}

// parseBlk reads a request's header.
func parseBlk(in []byte) (kind uint32, sector uint64, ok bool) {
	if len(in) < blkHeader {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint32(in), binary.LittleEndian.Uint64(in[8:]), true
}
