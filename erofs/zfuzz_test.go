package erofs_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

const lyingNid = 5 // of the file in what lying makes

// lying makes an image of a directory and a compressed file in it: the superblock, blocks where clusters may be, and metadata that ends
// with what follows the file's inode.
func lying(algorithm, layout uint8, size uint64, blocks uint32, follows, data []byte) []byte {
	names := make([]byte, 3*disk.DirentSize, 40)
	for i, d := range []disk.Dirent{{Nid: 1, NameOff: 36, Type: disk.TypeDir}, {Nid: 1, NameOff: 37, Type: disk.TypeDir}, {Nid: lyingNid, NameOff: 39, Type: disk.TypeRegular}} {
		d.Encode(names[i*disk.DirentSize:])
	}
	names = append(names, "...f"...)
	root := disk.Inode{Extended: true, Layout: disk.LayoutInline, Mode: 0o40755, Size: uint64(len(names)), Ino: 1, Nlink: 2}
	file := disk.Inode{Extended: true, Layout: layout, Mode: 0o100644, Size: size, Union: blocks, Ino: 2, Nlink: 1}
	meta := make([]byte, lyingNid*disk.SlotSize+disk.InodeExtended)
	root.Encode(meta[disk.SlotSize:])
	copy(meta[disk.SlotSize+disk.InodeExtended:], names)
	file.Encode(meta[lyingNid*disk.SlotSize:])
	full := func(b []byte) []byte { return append(b, make([]byte, -len(b)&(disk.BlockSize-1))...) }
	b := full(append(make([]byte, disk.BlockSize), data...))
	s := disk.Super{
		Magic: disk.Magic, FeatureCompat: disk.CompatChecksum | disk.CompatMtime, BlockBits: disk.BlockBits, RootNid: 1, Inodes: 2, MetaBlock: uint32(len(b) / disk.BlockSize),
		FeatureIncompat: disk.IncompatZeroPadding | disk.IncompatConfigs, Algorithms: 1 << disk.AlgorithmLZ4,
	}
	if algorithm != disk.AlgorithmLZ4 {
		s.Algorithms = 1 << disk.AlgorithmZstd
	}
	b = full(append(append(b, meta...), follows...))
	s.Blocks = uint32(len(b) / disk.BlockSize)
	copy(b[s.ConfigOffset():], erofs.CompressionConfigs().Append(nil, s.Algorithms))
	s.Seal(b[:disk.BlockSize])
	return b
}

// lyingSeed is a cluster of 20,000 bytes in one block, and two indexes of it.
func lyingSeed(f *testing.F, algorithm uint8) (data, full, compact []byte) {
	f.Helper()
	contents := []byte(strings.Repeat("some words, ", 2000)[:20_000])
	var packed []byte
	if algorithm == disk.AlgorithmLZ4 {
		packed = make([]byte, disk.BlockSize)
		n, err := lz4.CompressBlock(contents, packed, nil)
		if err != nil {
			f.Fatal(err)
		}
		packed = packed[:n]
	} else {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
		if err != nil {
			f.Fatal(err)
		}
		packed = e.EncodeAll(contents, nil)
	}
	data = append(make([]byte, disk.BlockSize-len(packed)), packed...)
	header := disk.MapHeader{Advise: disk.AdviseBig1, Algorithms: algorithm}
	full = make([]byte, disk.MapHeaderSize+disk.FullIndexGap+5*disk.FullEntrySize)
	header.Encode(full)
	disk.ClusterEntries(full[disk.MapHeaderSize+disk.FullIndexGap:], true, 20_000, 1, 1)
	header.Advise = disk.AdviseBig1 | disk.AdviseBig2
	compact = make([]byte, disk.MapHeaderSize)
	header.Encode(compact)
	le := binary.LittleEndian
	for _, pack := range [][2]uint16{{disk.EntryHead1 << 12, disk.EntryTail<<12 | 1<<11 | 1}, {disk.EntryTail << 12, disk.EntryTail << 12}, {20_000 % disk.BlockSize, 0}} {
		compact = le.AppendUint32(le.AppendUint16(le.AppendUint16(compact, pack[0]), pack[1]), 1)
	}
	return data, full, compact
}

// FuzzIndex reads a compressed file with any index and any clusters: what can be read whole is the same in pieces, and what passes
// Check can be read.
func FuzzIndex(f *testing.F) {
	for _, algorithm := range []uint8{disk.AlgorithmLZ4, disk.AlgorithmZstd} {
		data, full, compact := lyingSeed(f, algorithm)
		f.Add(algorithm, uint8(disk.LayoutFull), uint64(20_000), uint32(1), full, data)
		f.Add(algorithm, uint8(disk.LayoutCompact), uint64(20_000), uint32(1), compact, data)
		f.Add(algorithm, uint8(disk.LayoutFull), uint64(1)<<62, uint32(0), full, data)
		if im := lying(algorithm, disk.LayoutFull, 20_000, 1, full, data); erofs.Check(bytes.NewReader(im), int64(len(im))) != nil {
			f.Fatal(erofs.Check(bytes.NewReader(im), int64(len(im))))
		}
	}
	f.Fuzz(func(t *testing.T, algorithm, layout uint8, size uint64, blocks uint32, follows, data []byte) {
		b := lying(algorithm, layout&7, size, blocks, follows, data)
		r := bytes.NewReader(b)
		passed := erofs.Check(r, r.Size()) == nil
		im, err := erofs.Open(r, r.Size())
		if err != nil {
			t.Fatal(err)
		}
		in, err := im.Inode(lyingNid)
		if err != nil || in.Size == 0 {
			return
		}
		if in.Size > 4096*(r.Size()+1) && layout&7 != disk.LayoutPlain {
			t.Fatalf("a file of %d bytes in an image of %d", in.Size, r.Size())
		}
		for _, from := range []int64{0, max(in.Size-300_000, 0)} {
			whole := make([]byte, min(in.Size-from, 300_000))
			n, err := im.ReadFileAt(in, whole, from)
			if err != nil && passed {
				t.Errorf("an image that Check passes, at %d: %v", from, err)
			}
			if err != nil || n != len(whole) {
				continue
			}
			for off := 0; off < n; off += 49_999 {
				part := make([]byte, min(50_000, n-off))
				if _, err := im.ReadFileAt(in, part, from+int64(off)); err != nil || !bytes.Equal(part, whole[off:off+len(part)]) {
					t.Errorf("%d bytes at %d differ when they are read alone: %v", len(part), from+int64(off), err)
				}
			}
		}
	})
}
