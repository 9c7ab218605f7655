package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/lazy/leaf"
)

// The Merkle file is a dm-verity hash device for the image (version 1, SHA-256, 4 KiB blocks, no salt): a superblock in
// its first block, then the levels of the tree, the top one first. See the kernel's
// Documentation/admin-guide/device-mapper/verity.rst and cryptsetup's on-disk format.
const (
	hashSize   = sha256.Size
	hashesPer  = BlockSize / hashSize
	verityName = "verity\x00\x00"
)

// levels gives the number of hash blocks of each level, leaves first.
func levels(blocks int64) (n []int64) {
	for {
		blocks = (blocks + hashesPer - 1) / hashesPer
		n = append(n, blocks)
		if blocks <= 1 {
			return n
		}
	}
}

// merkle is the mapped Merkle file. The leaf of a block is written by whoever wrote the block, before it is marked.
type merkle struct {
	mem    []byte
	leaves []byte
	blocks int64
}

func merkleSize(blocks int64) int64 {
	total := int64(1)
	for _, n := range levels(blocks) {
		total += n
	}
	return total * BlockSize
}

func createMerkle(name string, blocks int64, uuid [16]byte) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(veritySuper(blocks, uuid))
	if err == nil {
		err = reserve(f, merkleSize(blocks))
	}
	return errors.Join(err, f.Close())
}

// veritySuper is the superblock of a tree over an image of so many blocks.
func veritySuper(blocks int64, uuid [16]byte) []byte {
	sb := make([]byte, BlockSize)
	copy(sb, verityName)
	binary.LittleEndian.PutUint32(sb[8:], 1)  // version
	binary.LittleEndian.PutUint32(sb[12:], 1) // hash type: the salt comes first
	copy(sb[16:32], uuid[:])
	copy(sb[32:64], "sha256")
	binary.LittleEndian.PutUint32(sb[64:], BlockSize)
	binary.LittleEndian.PutUint32(sb[68:], BlockSize)
	binary.LittleEndian.PutUint64(sb[72:], uint64(blocks))
	return sb
}

func openMerkle(name string, size int64) (*merkle, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blocks := size / BlockSize
	want := merkleSize(blocks)
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.Size() != want {
		return nil, fmt.Errorf("%w: Merkle tree %s has %d bytes, not %d", ErrDamaged, name, st.Size(), want)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	lv := levels(blocks)
	off := want - lv[0]*BlockSize
	return &merkle{mem: mem, leaves: mem[off : off+blocks*hashSize], blocks: blocks}, nil
}

func (m *merkle) close() error { return unix.Munmap(m.mem) }

func (m *merkle) super() []byte { return m.mem[:BlockSize] }

func (m *merkle) leaf(block int64) []byte { return m.leaves[block*hashSize:][:hashSize] }

// hash writes the leaves of the blocks that p is the content of, the last one padded with zeros.
func (m *merkle) hash(first int64, p []byte) {
	whole := len(p) / BlockSize * BlockSize
	leaf.Sums(m.leaves[first*hashSize:], p[:whole])
	if p = p[whole:]; len(p) > 0 {
		var last [BlockSize]byte
		copy(last[:], p)
		h := sha256.Sum256(last[:])
		copy(m.leaf(first+int64(whole/BlockSize)), h[:])
	}
}

// finish computes the levels above the leaves and returns the root.
func (m *merkle) finish() [hashSize]byte {
	end := int64(len(m.mem))
	lv := levels(m.blocks)
	at := end - lv[0]*BlockSize
	clear(m.mem[at+m.blocks*hashSize : end]) // what no hash fills is zeros, whatever it was
	for i := 1; i < len(lv); i++ {
		up := at - lv[i]*BlockSize
		leaf.Sums(m.mem[up:], m.mem[at:at+lv[i-1]*BlockSize])
		clear(m.mem[up+lv[i-1]*hashSize : at])
		at = up
	}
	return sha256.Sum256(m.mem[at:][:BlockSize])
}

func (m *merkle) sync() error { return unix.Msync(m.mem, unix.MS_SYNC) }
