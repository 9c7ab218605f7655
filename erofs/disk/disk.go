// Package disk is EROFS as it lies on disk: structures, constants and their encoding, and nothing else. It follows
// fs/erofs/erofs_fs.h of Linux and Documentation/filesystems/erofs.rst. All numbers are little endian.
package disk

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	SuperOffset = 1024
	SuperSize   = 128
	Magic       = 0xE0F5E1E2

	CompatChecksum = 1 << 0 // FeatureCompat: the checksum is set
	CompatMtime    = 1 << 1 // FeatureCompat: inodes have their own mtime

	BlockBits = 12
	BlockSize = 1 << BlockBits
	SlotSize  = 32 // an inode's address is its nid times this, from the start of the metadata

	InodeCompact  = 32
	InodeExtended = 64

	LayoutPlain  = 0 // data in consecutive blocks
	LayoutInline = 2 // the same, but what the last block would hold follows the inode

	DirentSize      = 12
	MaxName         = 255 // bytes of a name in a directory
	MaxTarget       = 4095
	XattrHeaderSize = 12
	XattrEntrySize  = 4 // also what entries are aligned to
	MaxXattrName    = 255
	MaxXattrValue   = 65535
)

// Prefixes of extended attributes' names by their index. An index of 0 has no prefix, and no kernel handler.
const (
	XattrUser       = 1
	XattrACLAccess  = 2
	XattrACLDefault = 3
	XattrTrusted    = 4
	XattrSecurity   = 6
)

// File types of directory entries.
const (
	TypeRegular = 1
	TypeDir     = 2
	TypeChar    = 3
	TypeBlock   = 4
	TypeFifo    = 5
	TypeSocket  = 6
	TypeSymlink = 7
)

// TypeOfMode is the type in a directory entry for a mode as stat(2) has it; 0 for a type that has none.
func TypeOfMode(mode uint32) uint8 {
	switch mode & 0o170000 {
	case 0o100000:
		return TypeRegular
	case 0o040000:
		return TypeDir
	case 0o020000:
		return TypeChar
	case 0o060000:
		return TypeBlock
	case 0o010000:
		return TypeFifo
	case 0o140000:
		return TypeSocket
	case 0o120000:
		return TypeSymlink
	}
	return 0
}

// Super is the superblock.
type Super struct {
	Magic, Checksum, FeatureCompat uint32
	BlockBits, ExtSlots            uint8
	RootNid                        uint16
	Inodes, BuildTime              uint64
	BuildTimeNsec, Blocks          uint32
	MetaBlock, XattrBlock          uint32
	UUID                           [16]byte
	VolumeName                     [16]byte
	FeatureIncompat                uint32
	Algorithms                     uint16 // bits of those in use, with IncompatConfigs; else the largest distance of LZ4
}

// Encode writes the superblock over the first SuperSize bytes of b.
func (s *Super) Encode(b []byte) {
	le := binary.LittleEndian
	clear(b[:SuperSize])
	le.PutUint32(b[0:], s.Magic)
	le.PutUint32(b[4:], s.Checksum)
	le.PutUint32(b[8:], s.FeatureCompat)
	b[12], b[13] = s.BlockBits, s.ExtSlots
	le.PutUint16(b[14:], s.RootNid)
	le.PutUint64(b[16:], s.Inodes)
	le.PutUint64(b[24:], s.BuildTime)
	le.PutUint32(b[32:], s.BuildTimeNsec)
	le.PutUint32(b[36:], s.Blocks)
	le.PutUint32(b[40:], s.MetaBlock)
	le.PutUint32(b[44:], s.XattrBlock)
	copy(b[48:], s.UUID[:])
	copy(b[64:], s.VolumeName[:])
	le.PutUint32(b[80:], s.FeatureIncompat)
	le.PutUint16(b[84:], s.Algorithms)
}

// Decode reads the superblock from the first SuperSize bytes of b.
func (s *Super) Decode(b []byte) {
	le := binary.LittleEndian
	s.Magic, s.Checksum, s.FeatureCompat = le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
	s.BlockBits, s.ExtSlots, s.RootNid = b[12], b[13], le.Uint16(b[14:])
	s.Inodes, s.BuildTime, s.BuildTimeNsec = le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint32(b[32:])
	s.Blocks, s.MetaBlock, s.XattrBlock = le.Uint32(b[36:]), le.Uint32(b[40:]), le.Uint32(b[44:])
	copy(s.UUID[:], b[48:])
	copy(s.VolumeName[:], b[64:])
	s.FeatureIncompat, s.Algorithms = le.Uint32(b[80:]), le.Uint16(b[84:])
}

// Seal writes the superblock into its block, which holds what follows it already, with the checksum set.
func (s *Super) Seal(block []byte) {
	s.Encode(block[SuperOffset:])
	s.Checksum = SuperChecksum(block)
	s.Encode(block[SuperOffset:])
}

// SuperChecksum is the superblock's in its block: CRC-32C over the rest of the block, with zeros in its own place, not inverted at
// the end.
func SuperChecksum(block []byte) uint32 {
	castagnoli := crc32.MakeTable(crc32.Castagnoli) // made once by the library
	h := crc32.Update(0, castagnoli, block[SuperOffset:SuperOffset+4])
	h = crc32.Update(h, castagnoli, make([]byte, 4))
	return ^crc32.Update(h, castagnoli, block[SuperOffset+8:])
}

// Inode is an inode of either size.
type Inode struct {
	Extended   bool
	Flags      uint16 // bits of i_format that are neither version nor layout
	Layout     uint8
	XattrCount uint16 // 0, or 1 and the number of 4-byte units behind the xattr header
	Mode       uint16
	Size       uint64
	Union      uint32 // first block, or the device number
	Ino        uint32 // for 32-bit stat
	UID, GID   uint32
	Mtime      uint64
	MtimeNsec  uint32
	Nlink      uint32
}

// Encode writes an extended inode over the first InodeExtended bytes of b.
func (i *Inode) Encode(b []byte) {
	le := binary.LittleEndian
	clear(b[:InodeExtended])
	le.PutUint16(b[0:], 1|uint16(i.Layout)<<1|i.Flags<<4)
	le.PutUint16(b[2:], i.XattrCount)
	le.PutUint16(b[4:], i.Mode)
	le.PutUint64(b[8:], i.Size)
	le.PutUint32(b[16:], i.Union)
	le.PutUint32(b[20:], i.Ino)
	le.PutUint32(b[24:], i.UID)
	le.PutUint32(b[28:], i.GID)
	le.PutUint64(b[32:], i.Mtime)
	le.PutUint32(b[40:], i.MtimeNsec)
	le.PutUint32(b[44:], i.Nlink)
}

// Decode reads an inode; b has InodeExtended bytes.
func (i *Inode) Decode(b []byte) {
	le := binary.LittleEndian
	f := le.Uint16(b)
	*i = Inode{Extended: f&1 != 0, Layout: uint8(f >> 1 & 7), Flags: f >> 4, XattrCount: le.Uint16(b[2:]), Mode: le.Uint16(b[4:])}
	if !i.Extended {
		i.Nlink, i.Size = uint32(le.Uint16(b[6:])), uint64(le.Uint32(b[8:]))
		i.Union, i.Ino = le.Uint32(b[16:]), le.Uint32(b[20:])
		i.UID, i.GID = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
		return
	}
	i.Size, i.Union, i.Ino = le.Uint64(b[8:]), le.Uint32(b[16:]), le.Uint32(b[20:])
	i.UID, i.GID = le.Uint32(b[24:]), le.Uint32(b[28:])
	i.Mtime, i.MtimeNsec, i.Nlink = le.Uint64(b[32:]), le.Uint32(b[40:]), le.Uint32(b[44:])
}

// Len is the inode's size on disk without its xattrs.
func (i *Inode) Len() int64 {
	if i.Extended {
		return InodeExtended
	}
	return InodeCompact
}

// XattrLen is the size of the xattrs that follow the inode.
func (i *Inode) XattrLen() int64 {
	if i.XattrCount == 0 {
		return 0
	}
	return XattrHeaderSize + XattrEntrySize*int64(i.XattrCount-1)
}

// XattrCountOf is the XattrCount of attributes of n bytes, header included. n is a multiple of 4; 0 stands for none.
func XattrCountOf(n int) uint16 {
	if n == 0 {
		return 0
	}
	return uint16(1 + (n-XattrHeaderSize)/XattrEntrySize)
}

// XattrEntry is the head of an extended attribute. The name without its prefix, the value and zeros up to a multiple of 4
// follow.
type XattrEntry struct {
	NameLen, Index uint8
	ValueLen       uint16
}

// Encode writes the head over the first XattrEntrySize bytes of b.
func (x *XattrEntry) Encode(b []byte) {
	b[0], b[1] = x.NameLen, x.Index
	binary.LittleEndian.PutUint16(b[2:], x.ValueLen)
}

// Decode reads a head from the first XattrEntrySize bytes of b.
func (x *XattrEntry) Decode(b []byte) {
	x.NameLen, x.Index, x.ValueLen = b[0], b[1], binary.LittleEndian.Uint16(b[2:])
}

// Len is the size of the whole attribute, padding included.
func (x *XattrEntry) Len() int {
	n := XattrEntrySize + int(x.NameLen) + int(x.ValueLen)
	return (n + XattrEntrySize - 1) / XattrEntrySize * XattrEntrySize
}

// Dirent is the head of a directory entry. Names lie behind the last head of a block, in the same order.
type Dirent struct {
	Nid     uint64
	NameOff uint16 // from the start of the block
	Type    uint8
}

// Encode writes the head over the first DirentSize bytes of b.
func (d *Dirent) Encode(b []byte) {
	binary.LittleEndian.PutUint64(b, d.Nid)
	binary.LittleEndian.PutUint16(b[8:], d.NameOff)
	b[10], b[11] = d.Type, 0
}

// Decode reads a head from the first DirentSize bytes of b.
func (d *Dirent) Decode(b []byte) {
	d.Nid, d.NameOff, d.Type = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint16(b[8:]), b[10]
}

// MaxMajor and MaxMinor are the largest numbers that Dev takes.
const (
	MaxMajor = 1<<12 - 1
	MaxMinor = 1<<20 - 1
)

// Dev packs a device number as Linux's new_encode_dev does.
func Dev(major, minor uint32) uint32 { return minor&0xff | major<<8 | minor&^0xff<<12 }

// DevNumbers unpacks what Dev packed.
func DevNumbers(d uint32) (major, minor uint32) { return d >> 8 & 0xfff, d&0xff | d>>12&0xfff00 }
