package erofs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/erofs/disk"
)

var (
	// ErrInvalid is wrapped by every error that says an image's bytes are not EROFS.
	ErrInvalid = errors.New("invalid EROFS image")
	// ErrUnsupported is wrapped where an image uses what this package doesn't read: LZMA and DEFLATE, chunks, packed ends of files,
	// other block sizes.
	ErrUnsupported = errors.New("unsupported EROFS feature")
	// ErrNotDir and ErrNotSymlink say that an inode is of another type.
	ErrNotDir     = errors.New("not a directory")
	ErrNotSymlink = errors.New("not a symlink")
	// ErrNoXattr says that an inode has no attribute of that name.
	ErrNoXattr = errors.New("no such attribute")
)

// File types in a mode, as stat(2) has them.
const (
	modeFormat  = 0o170000
	modeFifo    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
)

// Super is what an image says of itself. Sizes are bytes.
type Super struct {
	UUID       [16]byte
	Inodes     uint64
	Size       int64 // of the file system
	MetaOffset int64
	RootNid    uint64
	Compressed bool // files may be compressed
}

// Image is an image open for reading. It may be used concurrently if its ReaderAt may, and keeps nothing of what it read but the
// superblock and, of compressed files, at most 16 MiB of what was read last.
type Image struct {
	r          io.ReaderAt
	super      Super
	incompat   uint32
	algorithms uint16 // a set
	configs    disk.Configs
	cache      clusterCache
	zstd       func() (*zstd.Decoder, error) // made when first needed
	// the time of compact inodes
	mtime     int64
	mtimeNsec uint32
}

// Open reads and checks the superblock of an image of size bytes.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	if size < blockSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrInvalid, size)
	}
	var b [blockSize]byte
	if err := readFull(r, b[:], 0); err != nil {
		return nil, fmt.Errorf("reading superblock: %w", err)
	}
	var s disk.Super
	s.Decode(b[disk.SuperOffset:])
	switch {
	case s.Magic != disk.Magic:
		return nil, fmt.Errorf("%w: magic %#x", ErrInvalid, s.Magic)
	case s.BlockBits != disk.BlockBits:
		return nil, fmt.Errorf("%w: blocks of 2^%d bytes", ErrUnsupported, s.BlockBits)
	case s.FeatureIncompat&^(disk.IncompatZeroPadding|disk.IncompatConfigs) != 0:
		return nil, fmt.Errorf("%w: incompatible features %#x", ErrUnsupported, s.FeatureIncompat)
	case s.FeatureCompat&disk.CompatChecksum != 0 && s.Checksum != disk.SuperChecksum(b[:]):
		return nil, fmt.Errorf("%w: superblock checksum %#x, its bytes have %#x", ErrInvalid, s.Checksum, disk.SuperChecksum(b[:]))
	case int64(s.Blocks) > size/blockSize || s.MetaBlock >= s.Blocks:
		return nil, fmt.Errorf("%w: %d blocks, metadata at %d, in %d bytes", ErrInvalid, s.Blocks, s.MetaBlock, size)
	}
	super := Super{UUID: s.UUID, Inodes: s.Inodes, Size: int64(s.Blocks) * blockSize, MetaOffset: int64(s.MetaBlock) * blockSize, RootNid: uint64(s.RootNid)}
	im := &Image{r: r, super: super, incompat: s.FeatureIncompat, mtime: int64(s.BuildTime), mtimeNsec: s.BuildTimeNsec}
	im.super.Compressed = s.FeatureIncompat != 0
	switch {
	case s.FeatureIncompat&disk.IncompatConfigs != 0:
		im.algorithms = s.Algorithms
		var ok bool
		if im.configs, ok = disk.DecodeConfigs(b[min(s.ConfigOffset(), blockSize):], s.Algorithms); !ok {
			return nil, fmt.Errorf("%w: configurations of compression algorithms %#x", ErrInvalid, s.Algorithms)
		}
		im.zstd = sync.OnceValues(func() (*zstd.Decoder, error) { return newUnzstd(im.configs.Zstd.WindowLog) })
	case s.FeatureIncompat != 0:
		im.algorithms = 1 << disk.AlgorithmLZ4
	}
	return im, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Super tells what the superblock says.
func (im *Image) Super() Super { return im.super }

// read reads within the file system.
func (im *Image) read(p []byte, off int64) error {
	if off < 0 || off > im.super.Size-int64(len(p)) {
		return fmt.Errorf("%w: bytes %d+%d of %d", ErrInvalid, off, len(p), im.super.Size)
	}
	return readFull(im.r, p, off)
}

// Inode is what an inode says. Mode is st_mode; Rdev is in Linux's encoding (see Device).
type Inode struct {
	Nid       uint64
	Mode      uint32
	UID, GID  uint32
	Nlink     uint32
	Size      int64
	Mtime     int64
	MtimeNsec uint32
	Rdev      uint32
	ino       uint32
	layout    uint8
	start     uint32
	xattrs    int64 // their size
	head      int64 // where xattrs begin in the image
}

// IsDir, IsRegular and IsSymlink tell the type.
func (i Inode) IsDir() bool     { return i.Mode&modeFormat == modeDir }
func (i Inode) IsRegular() bool { return i.Mode&modeFormat == modeRegular }
func (i Inode) IsSymlink() bool { return i.Mode&modeFormat == modeSymlink }

// Device gives the numbers of a device.
func (i Inode) Device() (major, minor uint32) { return disk.DevNumbers(i.Rdev) }

// Inode reads an inode. Any nid may be asked for.
func (im *Image) Inode(nid uint64) (Inode, error) {
	if nid > uint64(math.MaxInt64/disk.SlotSize) {
		return Inode{}, fmt.Errorf("%w: nid %d", ErrInvalid, nid)
	}
	off := im.super.MetaOffset + int64(nid)*disk.SlotSize
	if off < 0 || off > im.super.Size-disk.InodeCompact {
		return Inode{}, fmt.Errorf("%w: nid %d", ErrInvalid, nid)
	}
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	b := buf[:disk.InodeExtended]
	clear(b[disk.InodeCompact:]) // a compact inode may be the last of the image
	if err := im.read(b[:min(disk.InodeExtended, im.super.Size-off)], off); err != nil {
		return Inode{}, fmt.Errorf("reading inode %d: %w", nid, err)
	}
	var d disk.Inode
	d.Decode(b)
	in := Inode{
		Nid: nid, Mode: uint32(d.Mode), UID: d.UID, GID: d.GID, Nlink: d.Nlink, Size: int64(d.Size), Mtime: int64(d.Mtime), MtimeNsec: d.MtimeNsec,
		ino: d.Ino, layout: d.Layout, start: d.Union, xattrs: d.XattrLen(), head: off + d.Len(),
	}
	if !d.Extended {
		in.Mtime, in.MtimeNsec = im.mtime, im.mtimeNsec
	}
	if d.Layout > disk.LayoutCompact || d.Flags != 0 {
		return Inode{}, fmt.Errorf("inode %d: %w: data layout %d, flags %#x", nid, ErrUnsupported, d.Layout, d.Flags)
	}
	if in.Size < 0 || in.head+in.xattrs > im.super.Size || in.MtimeNsec >= 1e9 {
		return Inode{}, fmt.Errorf("%w: inode %d: size %d, xattrs of %d bytes", ErrInvalid, nid, d.Size, in.xattrs)
	}
	switch in.Mode & modeFormat {
	case modeDir, modeRegular, modeSymlink:
		if err := im.checkData(in); err != nil {
			return Inode{}, err
		}
	case modeChar, modeBlock:
		in.Rdev = d.Union
	case modeFifo, modeSocket:
	default:
		return Inode{}, fmt.Errorf("%w: inode %d: mode %#o", ErrInvalid, nid, in.Mode)
	}
	return in, nil
}

// checkData sees to it that an inode's data lies in the image.
func (im *Image) checkData(in Inode) error {
	if in.compressed() {
		return im.checkMap(in)
	}
	blocks := in.Size
	if in.layout == disk.LayoutInline {
		tail := in.Size % blockSize
		blocks -= tail
		at := in.head + in.xattrs
		if tail == 0 && in.Size > 0 || at%blockSize+tail > blockSize || at > im.super.Size-tail {
			return fmt.Errorf("%w: inode %d: its inline tail of %d bytes is none or crosses a block's end", ErrInvalid, in.Nid, tail)
		}
	}
	if off := int64(in.start) * blockSize; blocks > 0 && (off > im.super.Size || blocks > im.super.Size-off) {
		return fmt.Errorf("%w: inode %d: data at %d+%d of %d", ErrInvalid, in.Nid, off, blocks, im.super.Size)
	}
	return nil
}

// offset tells where byte off of an inode's data lies in the image, off within the data.
func (in Inode) offset(off int64) int64 {
	if in.layout == disk.LayoutInline && off >= in.Size-in.Size%blockSize {
		return in.head + in.xattrs + off%blockSize
	}
	return int64(in.start)*blockSize + off
}

// DataOff is where a regular file's content begins in the image, or 0 for one without content. It is in one piece there; the
// error is ErrUnsupported where another writer has put its end elsewhere.
func (im *Image) DataOff(in Inode) (int64, error) {
	switch {
	case !in.IsRegular():
		return 0, fmt.Errorf("inode %d: not a regular file: %w", in.Nid, fs.ErrInvalid)
	case in.Size == 0:
		return 0, nil
	case in.compressed():
		return 0, fmt.Errorf("inode %d: %w: a compressed content is nowhere as it is", in.Nid, ErrUnsupported)
	case in.layout == disk.LayoutInline && in.Size > blockSize:
		return 0, fmt.Errorf("inode %d: %w: a content with an inline tail", in.Nid, ErrUnsupported)
	}
	return in.offset(0), nil
}

// Readlink reads a symlink's target.
func (im *Image) Readlink(in Inode) ([]byte, error) {
	if !in.IsSymlink() {
		return nil, fmt.Errorf("inode %d: %w", in.Nid, ErrNotSymlink)
	}
	if in.Size <= 0 || in.Size > disk.MaxTarget {
		return nil, fmt.Errorf("%w: inode %d: a symlink's target of %d bytes", ErrInvalid, in.Nid, in.Size)
	}
	b := make([]byte, in.Size)
	if err := im.read(b, in.offset(0)); err != nil {
		return nil, fmt.Errorf("reading symlink %d: %w", in.Nid, err)
	}
	return b, nil
}

var blockPool = sync.Pool{New: func() any { return new([blockSize]byte) }}
