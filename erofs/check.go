package erofs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/pexfs/pex/erofs/disk"
)

const maxProblems = 100 // that Check reports before it gives up

// errEnough ends a check that has found enough.
var errEnough = errors.New("more problems than are listed")

// Check tells whether r, size bytes long, is an image of layout version 1 with nothing wrong in its superblock and metadata: beside
// what makes it unreadable, that every inode is reached and counted, every name in its order and of its inode's type, "."
// and ".." right, link counts right, inodes and their i_ino in the order of their names, contents in range and apart but for exactly
// shared ones, nothing of the metadata used twice, and all unused bytes of it zero. It reads no contents and not what lies between
// them, so the image may be unfilled.
//
// Of an image of package compress it checks the same, but for alignment and padding to 2 MiB; that nothing lies between contents; and
// that every compressed cluster decompresses to its size, for which it reads all of these.
//
// The error joins all that was found, up to 100 problems, each wrapping ErrInvalid or ErrUnsupported; or it is the error of a read
// that failed. It takes no more memory than some dozens of bytes for each inode and 1/64 of the metadata's size, which may be up to
// 16 GiB, and reads the metadata a few times, whatever the image claims.
func Check(r io.ReaderAt, size int64) error {
	im, err := Open(r, size)
	if err != nil {
		return err
	}
	c := &checker{im: im}
	err = c.check(size)
	if errors.Is(err, errEnough) {
		err = nil
		c.problems = append(c.problems, fmt.Errorf("%w: %w", ErrInvalid, errEnough))
	}
	if err != nil {
		return fmt.Errorf("checking image: %w", err)
	}
	return errors.Join(c.problems...)
}

// checker walks an image once, breadth first. Its methods return an error only to end the check: that of a read, or errEnough.
type checker struct {
	im       *Image
	problems []error

	used   bits // by slot of the metadata
	begun  bits // slots at which an inode was visited
	inodes uint64
	before Inode // the inode visited last
	// names of the visited inodes that are no directories and have, by their nlink, several
	links   map[uint64]linkCount
	extents []extent
	dirs    []dirVisit // to be read
}

type linkCount struct{ want, got uint32 }

// extent is a content's place, in bytes.
type extent struct{ off, size int64 }

// dirVisit is the nid of a visited directory and of the one it is in. Nids of metadata that is checked have 29 bits.
type dirVisit struct{ nid, parent uint32 }

// bits is a set of numbers below a limit.
type bits []uint64

func newBits(n int64) bits         { return make(bits, (n+63)/64) }
func (b bits) has(i int64) bool    { return b[i/64]>>(i%64)&1 != 0 }
func (b bits) set(i int64)         { b[i/64] |= 1 << (i % 64) }
func (c *checker) metaSize() int64 { return c.im.super.Size - c.im.super.MetaOffset }

// problem takes down what is wrong.
func (c *checker) problem(format string, args ...any) error {
	return c.problemError(fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...))
}

// problemError takes down err if it is about the image's bytes; else it ends the check.
func (c *checker) problemError(err error) error {
	if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
		return err
	}
	if len(c.problems) == maxProblems {
		return errEnough
	}
	c.problems = append(c.problems, err)
	return nil
}

func (c *checker) check(size int64) error {
	s := c.im.super
	if c.metaSize() > maxMeta {
		return c.problem("metadata of %d bytes", c.metaSize())
	}
	if s.MetaOffset < c.dataFrom() {
		return c.problem("metadata at %d", s.MetaOffset)
	}
	slots := c.metaSize() / disk.SlotSize
	if s.Inodes == 0 || s.Inodes > uint64(slots) {
		return c.problem("%d inodes in metadata of %d bytes", s.Inodes, c.metaSize())
	}
	c.used, c.begun = newBits(slots), newBits(slots)
	c.links = make(map[uint64]linkCount)
	for _, step := range []func() error{
		func() error { return c.superblock(size) },
		c.walk,
		c.linkCounts,
		c.overlaps,
		c.zeros,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// superblock checks what Open doesn't mind.
func (c *checker) superblock(size int64) error {
	var b, again [blockSize]byte
	if err := c.im.read(b[:], 0); err != nil {
		return err
	}
	var s disk.Super
	s.Decode(b[disk.SuperOffset:])
	s.Encode(again[disk.SuperOffset:])
	if c.im.super.Compressed {
		if a := s.Algorithms; s.FeatureIncompat != disk.IncompatZeroPadding|disk.IncompatConfigs || a != 1<<disk.AlgorithmLZ4 && a != 1<<disk.AlgorithmZstd {
			return c.problem("incompatible features %#x, algorithms %#x", s.FeatureIncompat, a)
		}
		copy(again[disk.SuperOffset+disk.SuperSize:], c.im.configs.Append(nil, s.Algorithms))
	} else if s.Algorithms != 0 {
		return c.problem("algorithms %#x without compression", s.Algorithms)
	}
	if !bytes.Equal(b[:], again[:]) {
		if err := c.problem("block 0 has other bytes than the superblock's"); err != nil {
			return err
		}
	}
	if s.FeatureCompat != disk.CompatChecksum|disk.CompatMtime || s.ExtSlots != 0 || s.RootNid != rootNid || s.BuildTime != 0 || s.BuildTimeNsec != 0 ||
		s.XattrBlock != 0 || s.VolumeName != [16]byte{} {
		if err := c.problem("the superblock is not that of layout version %d: %+v", LayoutVersion, s); err != nil {
			return err
		}
	}
	if c.im.super.Compressed {
		if c.im.super.Size != size {
			return c.problem("a file system of %d bytes in %d bytes", c.im.super.Size, size)
		}
	} else if c.im.super.Size != size || size%hugeSize != 0 {
		return c.problem("a file system of %d bytes in %d bytes, that must be the same multiple of 2 MiB", c.im.super.Size, size)
	}
	return nil
}

// walk visits every inode that the root leads to.
func (c *checker) walk() error {
	root, ok, err := c.visit(rootNid)
	if err != nil || !ok {
		return err
	}
	if !root.IsDir() {
		return c.problem("the root is no directory but has mode %#o", root.Mode)
	}
	c.dirs = append(c.dirs, dirVisit{rootNid, rootNid})
	for len(c.dirs) > 0 {
		d := c.dirs[0]
		c.dirs = c.dirs[1:]
		if err := c.directory(d); err != nil {
			return err
		}
	}
	if c.inodes != c.im.super.Inodes {
		return c.problem("%d inodes are reached, the superblock counts %d", c.inodes, c.im.super.Inodes)
	}
	return nil
}

// linkCounts compares, for inodes of several names, those that were met with nlink.
func (c *checker) linkCounts() error {
	for _, nid := range slices.Sorted(maps.Keys(c.links)) {
		if l := c.links[nid]; l.want != l.got {
			if err := c.problem("inode %d: %d names, nlink is %d", nid, l.got, l.want); err != nil {
				return err
			}
		}
	}
	return nil
}

// overlaps looks for contents that share blocks without being the same extent, and in a compressed image for blocks of none.
func (c *checker) overlaps() error {
	slices.SortFunc(c.extents, func(a, b extent) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.size, b.size)) })
	c.extents = slices.Compact(c.extents)
	end, by := c.dataFrom(), extent{}
	gap := func(to int64) error {
		if !c.im.super.Compressed || to <= end {
			return nil
		}
		return c.problem("the blocks from %d to %d are of no content", end, to)
	}
	for _, e := range c.extents {
		if err := gap(e.off); err != nil {
			return err
		}
		if e.off < end {
			if err := c.problem("contents at %d+%d and %d+%d overlap", by.off, by.size, e.off, e.size); err != nil {
				return err
			}
		}
		if to := roundUp(e.off+e.size, blockSize); to > end {
			end, by = to, e
		}
	}
	return gap(c.im.super.MetaOffset)
}

// zeros reads the metadata through and sees to it that slots that nothing uses are zero.
func (c *checker) zeros() error {
	buf := make([]byte, 1<<20)
	zero := make([]byte, disk.SlotSize)
	inRun := false // of slots that aren't zero: they are one problem
	for at := int64(0); at < c.metaSize(); at += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), c.metaSize()-at)]
		if err := c.im.read(b, c.im.super.MetaOffset+at); err != nil {
			return err
		}
		for k := 0; k < len(b); k += disk.SlotSize {
			slot := (at + int64(k)) / disk.SlotSize
			if c.used.has(slot) || bytes.Equal(b[k:k+disk.SlotSize], zero) {
				inRun = false
				continue
			}
			if !inRun {
				if err := c.problem("metadata at nid %d is not zero, and nothing leads there", slot); err != nil {
					return err
				}
			}
			inRun = true
		}
	}
	return nil
}

// claim marks n bytes at the image's offset off as used. It tells whether they lie in the metadata, in whole slots but for the
// end, and nothing used them before.
func (c *checker) claim(off, n int64) bool {
	off -= c.im.super.MetaOffset
	if off < 0 || n < 0 || n > c.metaSize() || off > c.metaSize()-n {
		return false
	}
	from, to := off/disk.SlotSize, roundUp(off+n, disk.SlotSize)/disk.SlotSize
	for i := from; i < to; i++ {
		if c.used.has(i) {
			return false
		}
	}
	for i := from; i < to; i++ {
		c.used.set(i)
	}
	return true
}
