package erofs

import (
	"bytes"
	"math"

	"github.com/pexfs/pex/erofs/disk"
)

// What package compress makes, and Check insists on.
const (
	// SegmentSize is how many bytes of a content are compressed at a time, but for the last ones.
	SegmentSize = 128 << 10
	// SegmentBlocks is how many blocks those have at most: one is saved, or they aren't compressed.
	SegmentBlocks = SegmentSize/blockSize - 1
)

// CompressionConfigs are the configurations of algorithms in the superblocks that package compress writes: for LZ4 all distances that it
// has, for Zstandard a window of a segment.
func CompressionConfigs() disk.Configs {
	return disk.Configs{LZ4: disk.LZ4Config{MaxDistance: math.MaxUint16, MaxBlocks: SegmentBlocks}, Zstd: disk.ZstdConfig{WindowLog: 17}}
}

// followSize is how many bytes follow an inode and its attributes: inline data, or what maps compressed data.
func (in Inode) followSize() int64 {
	if !in.compressed() {
		return in.inlineSize()
	}
	end := in.head + in.xattrs
	if in.layout == disk.LayoutCompact || in.Size == 0 {
		return disk.MapOffset(end) + disk.MapHeaderSize - end // at least; Check doesn't go further
	}
	return disk.FullIndexOffset(end) + in.clusters()*disk.FullEntrySize - end
}

// dataFrom is where contents may begin.
func (c *checker) dataFrom() int64 {
	if c.im.super.Compressed {
		return blockSize
	}
	return hugeSize
}

// clusters checks that a compressed file is as package compress writes it: the configuration of its algorithm, the index; its clusters are
// segments or, not compressed, blocks, and follow each other in the image; at least one is compressed, and each that is decompresses to
// its size; a last block that isn't is zero behind its data. That decompresses no more than 512 bytes for each of the index.
func (c *checker) clusters(in Inode) error {
	if in.layout != disk.LayoutFull || in.Size == 0 {
		return c.problem("inode %d: %d bytes of data layout %d", in.Nid, in.Size, in.layout)
	}
	m, err := c.im.newClusterMap(in)
	if err != nil {
		return c.problemError(err)
	}
	if set := c.im.algorithms; !bytes.Equal(c.im.configs.Append(nil, set), CompressionConfigs().Append(nil, set)) {
		return c.problem("inode %d: it is compressed with the configuration %+v", in.Nid, c.im.configs)
	}
	end := in.head + in.xattrs
	head := make([]byte, disk.FullIndexOffset(end)-end)
	want := bytes.Clone(head)
	header := disk.MapHeader{Advise: disk.AdviseBig1, Algorithms: disk.AlgorithmLZ4}
	if c.im.algorithms == 1<<disk.AlgorithmZstd {
		header.Algorithms = disk.AlgorithmZstd
	}
	header.Encode(want[disk.MapOffset(end)-end:])
	if err := c.im.read(head, end); err != nil {
		return c.problemError(err)
	}
	if !bytes.Equal(head, want) {
		return c.problem("inode %d: the head of its index is %x, want %x", in.Nid, head, want)
	}
	from, at, compressed := int64(0), int64(0), false
	for off := int64(0); off < in.Size; {
		cl, err := m.find(off)
		if err == nil {
			err = c.cluster(m, cl)
		}
		if err != nil {
			return c.problemError(err)
		}
		if off == 0 {
			from, at = cl.at, cl.at
		}
		if cl.off != off || cl.at != at {
			return c.problem("inode %d: the cluster of byte %d begins at %d and lies at %d, want %d", in.Nid, off, cl.off, cl.at, at)
		}
		compressed = compressed || cl.form != formPlain
		off += cl.size
		at += cl.stored
	}
	if !compressed {
		return c.problem("inode %d: it has an index, and nothing is compressed", in.Nid)
	}
	if from < c.dataFrom() || at > c.im.super.MetaOffset || at-from != int64(in.start)*blockSize {
		return c.problem("inode %d: compressed data at %d to %d, %d blocks, not between the superblock and the metadata", in.Nid, from, at, in.start)
	}
	c.extents = append(c.extents, extent{from, at - from})
	return nil
}

// cluster checks one cluster.
func (c *checker) cluster(m *clusterMap, cl cluster) error {
	compressed := cl.form != formPlain
	blocks, unit := cl.stored/blockSize, int64(blockSize)
	if compressed {
		unit = SegmentSize
	}
	if cl.off%unit != 0 || cl.size != min(unit, m.in.Size-cl.off) || compressed && blocks*blockSize >= cl.size {
		return c.problem("inode %d: a cluster of %d bytes at %d in %d blocks", m.in.Nid, cl.size, cl.off, blocks)
	}
	n := roundUp(cl.size, blockSize) / blockSize
	got, want := make([]byte, n*disk.FullEntrySize), make([]byte, n*disk.FullEntrySize)
	disk.ClusterEntries(want, compressed, cl.size, uint32(cl.at/blockSize), uint16(blocks))
	if err := c.im.read(got, m.index+cl.head*disk.FullEntrySize); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return c.problem("inode %d: the index of the cluster at %d is %.100x, want %.100x", m.in.Nid, cl.off, got, want)
	}
	if !compressed {
		if cl.size == cl.stored {
			return nil
		}
		return c.zeroUpTo(m.in.Nid, cl.at+cl.size, cl.at+cl.stored)
	}
	return c.im.decompress(cl, make([]byte, cl.size))
}
