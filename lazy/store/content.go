package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Clone puts n bytes of another file of the cache at off, sharing their blocks on disk where the file system can. leaves
// are the Merkle leaves of these blocks; from is a multiple of 4,096.
func (im *Image) Clone(off int64, src *os.File, from, n int64, leaves []byte) error {
	n = (n + BlockSize - 1) / BlockSize * BlockSize
	if int64(len(leaves)) != n/BlockSize*hashSize {
		return fmt.Errorf("cloning into image %s: %d bytes of leaves for %d of data", im.Info.Key, len(leaves), n)
	}
	if err := copyRange(im.f, off, src, from, n); err != nil {
		return fmt.Errorf("cloning into image %s: %w", im.Info.Key, unwritable(err))
	}
	return im.Adopt(off, leaves)
}

// Adopt marks blocks from off on that were written whole, by PutPart, and whose Merkle leaves these are.
func (im *Image) Adopt(off int64, leaves []byte) error {
	return im.marked(func() {
		copy(im.tree.leaves[off/BlockSize*hashSize:], leaves)
		im.mark(off/BlockSize, int64(len(leaves)/hashSize))
	})
}

// Leaves are the Merkle leaves of the n bytes from off on, which are present. They may be read until Close.
func (im *Image) Leaves(off, n int64) []byte {
	return im.tree.leaves[off/BlockSize*hashSize : (off+n+BlockSize-1)/BlockSize*hashSize]
}

// Intact tells whether the n bytes from off on, which are present, can be read and are what their leaves say. It doesn't know when ctx
// has ended.
func (im *Image) Intact(ctx context.Context, off, n int64) bool {
	b, end := off/BlockSize, (off+n+BlockSize-1)/BlockSize
	buf := make([]byte, min(1<<20, (end-b)*BlockSize)) // most contents are small
	for b < end {
		p := buf[:min(int64(len(buf)), (end-b)*BlockSize)]
		if _, err := im.f.ReadAt(p, b*BlockSize); err != nil || ctx.Err() != nil {
			return false
		}
		for ; len(p) > 0; p = p[BlockSize:] {
			if h := sha256.Sum256(p[:BlockSize]); !bytes.Equal(h[:], im.tree.leaf(b)) {
				return false
			}
			b++
		}
	}
	return true
}

func copyRange(dst *os.File, to int64, src *os.File, from, n int64) error {
	err := unix.IoctlFileCloneRange(int(dst.Fd()), &unix.FileCloneRange{
		Src_fd: int64(src.Fd()), Src_offset: uint64(from), Src_length: uint64(n), Dest_offset: uint64(to)})
	if err == nil {
		return nil
	}
	for n > 0 {
		k, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(min(n, 1<<30)), 0)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			_, err := io.Copy(io.NewOffsetWriter(dst, to), io.NewSectionReader(src, from, n))
			return err
		}
		if err != nil {
			return err
		}
		if k == 0 {
			return io.ErrUnexpectedEOF
		}
		n -= int64(k)
	}
	return nil
}
