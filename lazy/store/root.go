package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// WriteMerkle makes the file name a dm-verity hash device for size bytes of r, a multiple of 4,096, as the cache has one beside each
// image, and returns the root in hex. A file of that name must not exist.
func WriteMerkle(name string, r io.Reader, size int64, uuid [16]byte) (root string, err error) {
	if size <= 0 || size%BlockSize != 0 {
		return "", fmt.Errorf("hashing: size %d is not a multiple of %d", size, BlockSize)
	}
	if err := createMerkle(name, size/BlockSize, uuid); err != nil {
		return "", fmt.Errorf("hashing: %w", err)
	}
	m, err := openMerkle(name, size)
	if err != nil {
		return "", fmt.Errorf("hashing: %w", err)
	}
	defer func() { err = errors.Join(err, m.close()) }()
	err = eachBlock(r, size, func(first int64, p []byte) { m.hash(first, p) })
	if err != nil {
		return "", err
	}
	h := m.finish()
	return hex.EncodeToString(h[:]), m.sync()
}

// MerkleRoot computes the root in hex of size bytes of r, a multiple of 4,096.
func MerkleRoot(r io.Reader, size int64) (string, error) {
	if size <= 0 || size%BlockSize != 0 {
		return "", fmt.Errorf("hashing: size %d is not a multiple of %d", size, BlockSize)
	}
	t := newTreeHash()
	if err := eachBlock(r, size, t.addBlocks); err != nil {
		return "", err
	}
	h := t.root()
	return hex.EncodeToString(h[:]), nil
}

func eachBlock(r io.Reader, size int64, f func(first int64, p []byte)) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := io.ReadFull(r, p); err != nil {
			return fmt.Errorf("hashing at %d: %w", off, err)
		}
		f(off/BlockSize, p)
	}
	return nil
}
