package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A descriptor is one entry of a descriptor table, in private memory.
type descriptor struct {
	addr  uint64
	n     uint32
	flags uint16
	next  uint16
}

func parseDescriptor(b []byte) descriptor {
	return descriptor{
		addr:  binary.LittleEndian.Uint64(b[0:]),
		n:     binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}

var (
	errChainLoop     = fmt.Errorf("more than %d descriptors, or a loop", maxRing)
	errChainIndex    = errors.New("descriptor outside its table")
	errChainOrder    = errors.New("readable descriptor after a writable one")
	errChainIndirect = errors.New("indirect table that is not allowed here, or of a wrong size")
)

// readChain reads the chain that begins at req.head: the readable part is copied, the writable one checked and
// remembered (VIRTIO 1.2, sections 2.7.4 and 2.7.5). Each descriptor is copied before it is looked at. The gate is held.
func (r *ring) readChain(req *Request) error {
	table, inIndirect, writable := r.desc, false, false
	next := int(req.head)
	for left := maxRing; ; left-- {
		if left == 0 {
			return errChainLoop
		}
		if next >= len(table)/descSize {
			return errChainIndex
		}
		var raw [descSize]byte
		copy(raw[:], table[descSize*next:])
		d := parseDescriptor(raw[:])
		switch {
		case d.flags&descIndirect != 0:
			if inIndirect || r.s.features&featureIndirect == 0 || d.flags&descNext != 0 ||
				d.n == 0 || d.n%descSize != 0 || d.n > maxRing*descSize {
				return errChainIndirect
			}
			r.indirect = grow(r.indirect, int(d.n))
			if err := r.s.mem.read(r.indirect, d.addr); err != nil {
				return err
			}
			table, inIndirect, next = r.indirect, true, 0
			continue
		case d.flags&descWrite != 0:
			writable = true
			if err := r.addRoom(req, d); err != nil {
				return err
			}
		case writable:
			return errChainOrder
		default:
			if err := r.addInput(req, d); err != nil {
				return err
			}
		}
		if d.flags&descNext == 0 {
			break
		}
		next = int(d.next)
	}
	req.In = req.in
	return nil
}

func (r *ring) addInput(req *Request, d descriptor) error {
	have := len(req.in)
	if uint64(have)+uint64(d.n) > uint64(r.s.info.MaxIn) {
		return fmt.Errorf("request of more than %d bytes", r.s.info.MaxIn)
	}
	req.in = append(req.in, make([]byte, d.n)...)
	return r.s.mem.read(req.in[have:], d.addr)
}

func (r *ring) addRoom(req *Request, d descriptor) error {
	n := uint64(d.n)
	if !r.s.mem.contains(d.addr, n) {
		return fmt.Errorf("room for %d bytes at %#x: %w", n, d.addr, errNoMemory)
	}
	left := uint64(r.s.info.MaxOut - req.size)
	if n > left && r.s.info.WholeOut {
		return fmt.Errorf("room for more than %d bytes", r.s.info.MaxOut)
	}
	n = min(n, left)
	if n == 0 {
		return nil
	}
	req.size += int(n)
	if k := len(req.room); k > 0 && req.room[k-1].addr+req.room[k-1].n == d.addr {
		req.room[k-1].n += n
	} else {
		req.room = append(req.room, segment{d.addr, n})
	}
	return nil
}

// grow gives b the length n. What it held is not kept.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}
