package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxRegions is the number of memory slots on offer.
const maxRegions = 64

// regionDesc is a memory region as the front end describes it.
type regionDesc struct {
	guest  uint64 // guest-physical address
	size   uint64 // bytes
	user   uint64 // address in the front end, which the rings are given in
	offset uint64 // in the file
}

const regionDescSize = 32

func parseRegionDesc(b []byte) regionDesc {
	return regionDesc{
		guest:  binary.LittleEndian.Uint64(b[0:]),
		size:   binary.LittleEndian.Uint64(b[8:]),
		user:   binary.LittleEndian.Uint64(b[16:]),
		offset: binary.LittleEndian.Uint64(b[24:]),
	}
}

// A region is a mapped piece of the guest's memory.
type region struct {
	regionDesc
	bytes   []byte // the region
	mapping []byte // what was mapped for it
}

// mapRegion maps a region. It doesn't close fd. The file must be sealed against shrinking and hold the whole region.
func mapRegion(fd int, d regionDesc) (*region, error) {
	if d.size == 0 || d.guest+d.size-1 < d.guest || d.user+d.size-1 < d.user || d.offset+d.size < d.offset {
		return nil, protocolError("memory region %#x+%#x (front end %#x, file %#x) is empty or wraps",
			d.guest, d.size, d.user, d.offset)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("reading seals of memory region %#x: %w", d.guest, err)
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return nil, protocolError("memory region %#x is not sealed against shrinking", d.guest)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("reading size of memory region %#x: %w", d.guest, err)
	}
	if d.offset+d.size > uint64(st.Size) {
		return nil, protocolError("memory region %#x+%#x at %#x of a file of %#x bytes", d.guest, d.size, d.offset, st.Size)
	}
	return mapFile(fd, d, uint64(st.Blksize))
}

// mapFile maps a region whose range is known to be in the file. block is the file's block size, which for huge pages is
// the alignment that mappings need and regions may lack.
func mapFile(fd int, d regionDesc, block uint64) (*region, error) {
	align := uint64(os.Getpagesize())
	if block > align && block&(block-1) == 0 {
		align = block
	}
	start := d.offset &^ (align - 1)
	length := (d.offset - start + d.size + align - 1) &^ (align - 1)
	m, err := unix.Mmap(fd, int64(start), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mapping memory region %#x+%#x: %w", d.guest, d.size, err)
	}
	// Guest memory has no place in a core dump of this process; where that can't be had nothing else is lost.
	_ = unix.Madvise(m, unix.MADV_DONTDUMP)
	return &region{regionDesc: d, bytes: m[d.offset-start:][:d.size:d.size], mapping: m}, nil
}

func (r *region) unmap() error { return unix.Munmap(r.mapping) }

// memory is the guest's memory as the front end has shared it.
type memory struct{ regions []*region }

var errNoMemory = errors.New("address outside guest memory")

// add takes a region in, unless there is no room or part of it is there already.
func (m *memory) add(r *region) error {
	if len(m.regions) >= maxRegions {
		return protocolError("more than %d memory regions", maxRegions)
	}
	for _, o := range m.regions {
		if overlap(r.guest, r.size, o.guest, o.size) || overlap(r.user, r.size, o.user, o.size) {
			return protocolError("memory regions %#x+%#x and %#x+%#x overlap", r.guest, r.size, o.guest, o.size)
		}
	}
	m.regions = append(m.regions, r)
	return nil
}

func overlap(a, an, b, bn uint64) bool { return a <= b+(bn-1) && b <= a+(an-1) }

// remove unmaps the region that has these addresses and this size.
func (m *memory) remove(d regionDesc) error {
	i := slices.IndexFunc(m.regions, func(r *region) bool {
		return r.guest == d.guest && r.user == d.user && r.size == d.size
	})
	if i < 0 {
		return protocolError("no memory region %#x+%#x to remove", d.guest, d.size)
	}
	r := m.regions[i]
	m.regions = slices.Delete(m.regions, i, i+1)
	return r.unmap()
}

func (m *memory) unmap() error {
	var errs []error
	for _, r := range m.regions {
		errs = append(errs, r.unmap())
	}
	m.regions = nil
	return errors.Join(errs...)
}

// at gives guest memory from addr on: at most n bytes, fewer where a region ends, nil where there is none.
func (m *memory) at(addr, n uint64) []byte {
	for _, r := range m.regions {
		if off := addr - r.guest; addr >= r.guest && off < r.size {
			return r.bytes[off:][:min(n, r.size-off)]
		}
	}
	return nil
}

// contains reports whether the n bytes at addr are guest memory, be it of several regions.
func (m *memory) contains(addr, n uint64) bool {
	for n > 0 {
		b := m.at(addr, n)
		if b == nil {
			return false
		}
		n -= uint64(len(b))
		if addr += uint64(len(b)); addr == 0 && n > 0 {
			return false // past the end of the address space
		}
	}
	return true
}

// read copies guest memory to private memory.
func (m *memory) read(p []byte, addr uint64) error {
	if !m.contains(addr, uint64(len(p))) {
		return fmt.Errorf("reading %d bytes at %#x: %w", len(p), addr, errNoMemory)
	}
	for len(p) > 0 {
		n := copy(p, m.at(addr, uint64(len(p))))
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// write copies private memory to the guest.
func (m *memory) write(addr uint64, p []byte) error {
	if !m.contains(addr, uint64(len(p))) {
		return fmt.Errorf("writing %d bytes at %#x: %w", len(p), addr, errNoMemory)
	}
	for len(p) > 0 {
		n := copy(m.at(addr, uint64(len(p))), p)
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// fill copies p to the beginning of room, which is at least as large.
func (m *memory) fill(room []segment, p []byte) error {
	for _, s := range room {
		k := min(uint64(len(p)), s.n)
		if k == 0 {
			break
		}
		if err := m.write(s.addr, p[:k]); err != nil {
			return err
		}
		p = p[k:]
	}
	return nil
}

// atUser gives the n > 0 bytes at an address of the front end, which must all be of one region, and here be aligned.
func (m *memory) atUser(addr, n uint64, align uintptr) ([]byte, error) {
	for _, r := range m.regions {
		if off := addr - r.user; addr >= r.user && off < r.size && n <= r.size-off {
			b := r.bytes[off:][:n:n]
			if uintptr(unsafe.Pointer(&b[0]))%align != 0 {
				return nil, protocolError("the front end's address %#x is not a multiple of %d", addr, align)
			}
			return b, nil
		}
	}
	return nil, protocolError("%d bytes at the front end's address %#x are not in one memory region", n, addr)
}
