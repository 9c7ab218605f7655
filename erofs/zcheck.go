package erofs

import (
	"bytes"

	"github.com/pexfs/pex/erofs/disk"
)

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

// maxBlocks is how many blocks a compressed cluster may have.
func (c *checker) maxBlocks() int64 {
	if c.im.algorithms == 1<<disk.AlgorithmLZ4 {
		return int64(c.im.configs.LZ4.MaxBlocks)
	}
	return disk.MaxCluster / blockSize
}

// clusters checks a compressed file: that its index is the one that package compress writes for its clusters, these follow each other
// in the image, each decompresses to its size, and uncompressed ones are zero behind their data.
func (c *checker) clusters(in Inode) error {
	if in.layout != disk.LayoutFull || in.Size == 0 {
		return c.problem("inode %d: %d bytes of data layout %d", in.Nid, in.Size, in.layout)
	}
	m, err := c.im.newClusterMap(in)
	if err != nil {
		return c.problemError(err)
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
	from, at := int64(0), int64(0)
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
		off += cl.size
		at += cl.stored
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
	if cl.off%blockSize != 0 || compressed && cl.size <= blockSize {
		return c.problem("inode %d: a cluster of %d bytes at %d", m.in.Nid, cl.size, cl.off)
	}
	blocks := cl.stored / blockSize
	if compressed && blocks > c.maxBlocks() {
		return c.problem("inode %d: a cluster of %d blocks, the superblock says at most %d", m.in.Nid, blocks, c.maxBlocks())
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
