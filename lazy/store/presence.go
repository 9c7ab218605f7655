package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockSize is the unit of presence and of the Merkle tree, in bytes.
const BlockSize = 4096

// The map file: a header of 4,096 bytes (magic, then the number of blocks as 8 bytes little endian, then the identity of
// the boot it was written in), then a bit a block, in 64-bit words of the machine.
const (
	mapHeader  = 4096
	mapMagic   = "pexmap1\n"
	bootOff    = 16
	bootLen    = 36
	wordBytes  = 8
	wordBlocks = 64
)

// presence is the mapped map of an image: which blocks are there. Bits go from 0 to 1 while an image is in
// use (and back only where Forget or Seal finds damage), each by one atomic operation after the block's data and Merkle leaf were written, so that another process that
// sees the bit may read the block.
type presence struct {
	mem    []byte
	words  []uint64
	blocks int64
}

func mapSize(blocks int64) int64 {
	return mapHeader + (blocks+wordBlocks-1)/wordBlocks*wordBytes
}

// createMap makes a map file with no block present. Its blocks on disk are reserved, so that a full disk is an error
// here and not a fault later.
func createMap(name string, blocks int64, boot string) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	h := make([]byte, mapHeader)
	copy(h, mapMagic)
	binary.LittleEndian.PutUint64(h[8:], uint64(blocks))
	copy(h[bootOff:bootOff+bootLen], boot)
	_, err = f.Write(h)
	if err == nil {
		err = reserve(f, mapSize(blocks))
	}
	return errors.Join(err, f.Close())
}

// reserve gives a file its size with blocks on disk behind it.
func reserve(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(size)
	}
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil
}

// openMap maps a map file; size is the image's.
func openMap(name string, size int64, write bool) (*presence, error) {
	flag, prot := os.O_RDONLY, unix.PROT_READ
	if write {
		flag, prot = os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	f, err := os.OpenFile(name, flag, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size <= 0 || size%BlockSize != 0 {
		return nil, fmt.Errorf("map %s is for an image of %d bytes, which are not whole blocks", name, size)
	}
	blocks := size / BlockSize
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != mapSize(blocks) {
		return nil, fmt.Errorf("%w: map %s has %d bytes, %d blocks need %d", ErrDamaged, name, st.Size(), blocks, mapSize(blocks))
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", name, err)
	}
	if string(mem[:8]) != mapMagic || binary.LittleEndian.Uint64(mem[8:]) != uint64(blocks) {
		unix.Munmap(mem)
		return nil, fmt.Errorf("%w: map %s has a foreign header", ErrDamaged, name)
	}
	w := unsafe.Slice((*uint64)(unsafe.Pointer(&mem[mapHeader])), (len(mem)-mapHeader)/wordBytes)
	if rest := blocks % wordBlocks; rest > 0 && atomic.LoadUint64(&w[len(w)-1])>>rest != 0 {
		unix.Munmap(mem)
		return nil, fmt.Errorf("%w: map %s marks blocks behind the last of %d", ErrDamaged, name, blocks)
	}
	return &presence{mem: mem, words: w, blocks: blocks}, nil
}

func (p *presence) close() error { return unix.Munmap(p.mem) }

// boot is the identity of the boot that the map was written in.
func (p *presence) boot() string { return string(p.mem[bootOff : bootOff+bootLen]) }

func (p *presence) setBoot(id string) { copy(p.mem[bootOff:bootOff+bootLen], id) }

func (p *presence) sync() error { return unix.Msync(p.mem, unix.MS_SYNC) }

func (p *presence) has(block int64) bool {
	return atomic.LoadUint64(&p.words[block/wordBlocks])&(1<<uint(block%wordBlocks)) != 0
}

// hasAll tells whether blocks first to last, both included, are all present.
func (p *presence) hasAll(first, last int64) bool {
	for b := first; b <= last; {
		lo := uint(b % wordBlocks)
		n := min(wordBlocks-int64(lo), last-b+1)
		mask := ^uint64(0) >> (wordBlocks - uint(n)) << lo
		if atomic.LoadUint64(&p.words[b/wordBlocks])&mask != mask {
			return false
		}
		b += n
	}
	return true
}

// set marks n blocks from first on and returns how many of them were not marked before.
func (p *presence) set(first, n int64) (fresh int64) {
	for end := first + n; first < end; {
		lo := uint(first % wordBlocks)
		k := min(wordBlocks-int64(lo), end-first)
		mask := ^uint64(0) >> (wordBlocks - uint(k)) << lo
		old := atomic.OrUint64(&p.words[first/wordBlocks], mask)
		fresh += int64(bits.OnesCount64(mask &^ old))
		first += k
	}
	return fresh
}

func (p *presence) clear(block int64) {
	atomic.AndUint64(&p.words[block/wordBlocks], ^uint64(1<<uint(block%wordBlocks)))
}

func (p *presence) clearAll() {
	for i := range p.words {
		atomic.StoreUint64(&p.words[i], 0)
	}
}

// full tells whether no block is missing.
func (p *presence) full() bool { return p.hasAll(0, p.blocks-1) }

func (p *presence) count() (n int64) {
	for i := range p.words {
		n += int64(bits.OnesCount64(atomic.LoadUint64(&p.words[i])))
	}
	return n
}
