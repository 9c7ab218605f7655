// Package compress makes compressed EROFS images of images that are not: smaller files to store and to send. Linux mounts them as
// they are. They can't be mapped (DAX) where they are compressed, and a layout's promises on where contents lie don't hold for them.
//
// The tree is the same: names, attributes, extended attributes, hard links, identical contents stored once. So is the UUID.
//
// # Form
//
// The superblock in block 0, with the algorithm's configuration behind it; contents, in the order of the image that is read, without gaps;
// inodes, directories breadth first; blocks of directories and symlinks. Nothing is aligned to more than a block, and nothing is padded.
//
// A content is cut into segments of 128 KiB. A segment that is smaller by a block at least when compressed is stored as a big physical
// cluster, zeros before the compressed bytes; others are stored as they are. An inode whose content has a compressed segment has a full
// index; all others are flat. Ends of flat contents of one segment, of directories and of symlinks are inline where they fit into a block
// with their inode, and a content of one segment is compressed only where that makes it smaller than this.
//
// All of it follows Linux's fs/erofs/erofs_fs.h: erofs_super_block with EROFS_FEATURE_INCOMPAT_LZ4_0PADDING and _COMPR_CFGS, its
// available_compr_algs, and z_erofs_lz4_cfgs or z_erofs_zstd_cfgs; EROFS_INODE_COMPRESSED_FULL with z_erofs_map_header,
// Z_EROFS_ADVISE_BIG_PCLUSTER_1 and z_erofs_lcluster_index, of which zmap.c tells the rules; EROFS_INODE_FLAT_PLAIN and _INLINE. A
// cluster is an LZ4 block (lz4_Block_format.md) or one Zstandard frame (RFC 8878, section 3.1.1) of a single segment, without checksum.
//
// Segments of 128 KiB cost 6 % of the compressed size in ends of blocks where 64 KiB cost 9 %; 256 KiB would win another 2 % and double
// what is decompressed to read a byte. A full index costs 0.2 % of the uncompressed size, and no version of Linux reads it otherwise
// than another.
//
// # Who reads it
//
// LZ4 images need Linux 5.13, which brought clusters of more than a block; in those a byte of LZ4 is the same as in 5.4, but with
// clusters of one block they would be a quarter larger. Contents of several inodes are left uncompressed in them: before
// Linux 6.0, who reads a compressed one through two inodes in the same moment may get an error. So several images of one base, packed
// into one, hardly shrink with LZ4: take Zstandard for them. Zstandard images need Linux 6.10.
//
// # Same bytes
//
// The result depends on the image's contents, the algorithm, the level and the versions of the two compressing libraries (in go.mod), and
// on nothing else: not on the number of processors. A new version of a library may compress otherwise: then the image is another one of
// the same tree, and of the same UUID.
package compress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

// Algorithm is what contents are compressed with.
type Algorithm uint8

// Algorithms; their values are no part of a format.
const (
	LZ4 Algorithm = iota + 1
	Zstd
)

// ParseAlgorithm reads "lz4" or "zstd".
func ParseAlgorithm(name string) (Algorithm, error) {
	switch name {
	case "lz4":
		return LZ4, nil
	case "zstd":
		return Zstd, nil
	}
	return 0, fmt.Errorf("compression %.20q: it must be lz4 or zstd", name)
}

func (a Algorithm) String() string {
	switch a {
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("Algorithm(%d)", uint8(a))
}

// number is the algorithm's in the format.
func (a Algorithm) number() uint8 {
	if a == Zstd {
		return disk.AlgorithmZstd
	}
	return disk.AlgorithmLZ4
}

// Options say how to compress.
type Options struct {
	Algorithm Algorithm
	// Level is 0 for the algorithm's default, or how hard to try: 1 to 9 for LZ4, where the default is less than 1; 1 to 22 for Zstandard,
	// where it is 3.
	Level int
	// Progress, if set, is told how many bytes of how many have been compressed. It is called from one goroutine, some 100 times.
	Progress func(done, total int64)
}

const (
	blockSize   = disk.BlockSize
	segmentSize = erofs.SegmentSize
	rootNid     = 1
	maxBlocks   = math.MaxUint32
)

// Write writes the compressed form of an image to w, each byte at most once and the first block last, and gives its size in bytes. What
// was in w must be zeros or nothing.
//
// The image should have passed erofs.Check; what makes it unreadable, names out of order and directories of several names are
// errors that wrap erofs.ErrInvalid. Identical contents are recognized where they lie in one place of the image. Memory is some 100
// bytes for each inode, and a few MiB for each processor.
func Write(ctx context.Context, w io.WriterAt, im *erofs.Image, o Options) (size int64, err error) {
	if _, err := newEncoder(o); err != nil {
		return 0, err
	}
	t, err := scan(ctx, im)
	if err != nil {
		return 0, fmt.Errorf("reading image: %w", err)
	}
	t.algorithm = o.Algorithm.number()
	out := &output{w: w, at: blockSize}
	if err := t.writeContents(ctx, out, o); err != nil {
		return 0, fmt.Errorf("compressing contents: %w", err)
	}
	meta := out.at
	if err := t.place(meta); err != nil {
		return 0, err
	}
	if err := t.writeInodes(ctx, out, meta); err != nil {
		return 0, fmt.Errorf("writing inodes: %w", err)
	}
	if err := t.writeBlocks(ctx, out); err != nil {
		return 0, fmt.Errorf("writing directories: %w", err)
	}
	if err := out.flush(); err != nil {
		return 0, err
	}
	if _, err := w.WriteAt(superBlock(im.Super(), len(t.nodes), meta, out.at, o.Algorithm), 0); err != nil {
		return 0, fmt.Errorf("writing superblock: %w", err)
	}
	return out.at, nil
}

// superBlock is block 0.
func superBlock(from erofs.Super, inodes int, meta, size int64, a Algorithm) []byte {
	s := disk.Super{
		Magic: disk.Magic, FeatureCompat: disk.CompatChecksum | disk.CompatMtime, BlockBits: disk.BlockBits, RootNid: rootNid,
		Inodes: uint64(inodes), Blocks: uint32(size / blockSize), MetaBlock: uint32(meta / blockSize), UUID: from.UUID,
		FeatureIncompat: disk.IncompatZeroPadding | disk.IncompatConfigs, Algorithms: 1 << a.number(),
	}
	b := make([]byte, blockSize)
	copy(b[s.ConfigOffset():], erofs.CompressionConfigs().Append(nil, s.Algorithms))
	s.Seal(b)
	return b
}

// output writes one byte after the other, in big pieces.
type output struct {
	w   io.WriterAt
	at  int64 // where the next byte goes
	buf []byte
}

const outputSize = 1 << 20

func (o *output) write(p []byte) error {
	if int64(len(p)) > maxBlocks*blockSize-o.at {
		return fmt.Errorf("at %d: %w", o.at, erofs.ErrTooBig)
	}
	if o.buf == nil {
		o.buf = make([]byte, 0, outputSize)
	}
	for len(p) > 0 {
		n := min(len(p), outputSize-len(o.buf))
		o.buf = append(o.buf, p[:n]...)
		o.at += int64(n)
		p = p[n:]
		if len(o.buf) == outputSize {
			if err := o.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// zeros writes zeros up to an offset, less than a block away.
func (o *output) zeros(to int64) error {
	var zero [blockSize]byte
	if n := to - o.at; n < 0 || n > blockSize {
		return errors.New("places of inodes overlap")
	}
	return o.write(zero[:to-o.at])
}

// flush writes what is buffered.
func (o *output) flush() error {
	if _, err := o.w.WriteAt(o.buf, o.at-int64(len(o.buf))); err != nil {
		return fmt.Errorf("writing image: %w", err)
	}
	o.buf = o.buf[:0]
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
