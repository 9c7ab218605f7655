package erofs

import (
	"fmt"

	"github.com/pexfs/pex/erofs/disk"
)

// cluster is a run of a file's bytes that is stored together: a physical cluster.
type cluster struct {
	off, size  int64 // in the file; size is 1 to disk.MaxClusterContents
	at, stored int64 // in the image, whole blocks; stored is at most disk.MaxCluster
	form       uint8
	head       int64 // number of the logical cluster it begins in
}

// Forms of clusters that are no algorithms: not compressed, and the same but rotated so that what is at a multiple of the block
// size in the file is at the block's beginning.
const (
	formPlain = 0xfe - iota
	formInterlaced
)

// clusterMap finds the clusters of a compressed file. It reads the index through one block of memory. Of the index it uses only what
// kind each entry is of, where in its logical cluster something begins, and numbers of blocks: to be found, a cluster must not
// be longer than the format's limit, so a search ends after some 3,000 entries in each direction. It is not for concurrent use.
type clusterMap struct {
	im     *Image
	in     Inode
	header disk.MapHeader
	index  int64 // where it begins
	head4  int64 // in a compact index: how many entries of 4 bytes come first
	count2 int64 // and how many of 2 bytes then

	buf   [blockSize]byte
	block int64 // what is in buf, -1 for nothing
}

// maxSearch is how many entries behind or before another one of the same cluster can be.
const maxSearch = disk.MaxClusterContents/blockSize + 1

func (im *Image) newClusterMap(in Inode) (*clusterMap, error) {
	m := &clusterMap{im: im, in: in, block: -1}
	end := in.head + in.xattrs
	b, err := m.bytes(disk.MapOffset(end), disk.MapHeaderSize)
	if err != nil {
		return nil, err
	}
	m.header.Decode(b)
	switch h := m.header; {
	case h.ClusterBits&disk.AdviseAllFragment != 0 || h.Advise&(disk.AdviseFragment|disk.AdviseInline) != 0:
		return nil, fmt.Errorf("%w: packed ends of files", ErrUnsupported)
	case h.ClusterBits != 0:
		return nil, fmt.Errorf("%w: logical clusters of 2^%d blocks", ErrUnsupported, h.ClusterBits)
	case in.layout == disk.LayoutFull && h.Advise&disk.AdviseCompact2 != 0:
		return nil, fmt.Errorf("%w: an index of extents", ErrUnsupported)
	case h.Advise&(disk.AdviseBig1|disk.AdviseBig2) != 0 && im.incompat&disk.IncompatConfigs == 0:
		return nil, fmt.Errorf("%w: big clusters in an image without", ErrInvalid)
	case in.layout == disk.LayoutCompact && h.Advise&disk.AdviseBig1 == 0 != (h.Advise&disk.AdviseBig2 == 0):
		return nil, fmt.Errorf("%w: big clusters of one kind only", ErrInvalid)
	}
	m.index = disk.FullIndexOffset(end)
	if in.layout == disk.LayoutCompact {
		m.index = disk.MapOffset(end) + disk.MapHeaderSize
		m.head4 = (disk.Pack2Size - m.index%disk.Pack2Size) % disk.Pack2Size / 4
		if n := in.clusters(); m.header.Advise&disk.AdviseCompact2 != 0 && n > m.head4 {
			m.count2 = (n - m.head4) / 16 * 16
		}
	}
	return m, nil
}

// clusters is how many logical clusters a file has.
func (in Inode) clusters() int64 { return (in.Size-1)/blockSize + 1 }

// compressed tells whether the data layout is one of the two.
func (in Inode) compressed() bool {
	return in.layout == disk.LayoutFull || in.layout == disk.LayoutCompact
}

// checkMap sees to it that the index of a compressed inode lies in the image, which bounds the inode's size.
func (im *Image) checkMap(in Inode) error {
	if !in.IsRegular() {
		return fmt.Errorf("inode %d: %w: mode %#o and compressed", in.Nid, ErrUnsupported, in.Mode)
	}
	end := disk.FullIndexOffset(in.head + in.xattrs)
	least := int64(disk.FullEntrySize)
	if in.layout == disk.LayoutCompact {
		end, least = end-disk.FullIndexGap, 2
	}
	if end > im.super.Size || in.Size > 0 && in.clusters() > (im.super.Size-end)/least {
		return fmt.Errorf("%w: inode %d: the index of %d bytes is not in the image", ErrInvalid, in.Nid, in.Size)
	}
	return nil
}

// bytes gives n bytes at off, which don't cross a block's end. They are valid until the next call.
func (m *clusterMap) bytes(off, n int64) ([]byte, error) {
	block := off / blockSize
	if off < 0 || off%blockSize+n > blockSize {
		return nil, fmt.Errorf("%w: index at %d", ErrInvalid, off)
	}
	if block != m.block {
		m.block = -1
		if err := m.im.read(m.buf[:], block*blockSize); err != nil {
			return nil, fmt.Errorf("reading index: %w", err)
		}
		m.block = block
	}
	return m.buf[off%blockSize:][:n], nil
}

// entry reads entry i. Its offset is below the size of a block.
func (m *clusterMap) entry(i int64) (e disk.Entry, err error) {
	if m.in.layout == disk.LayoutFull {
		b, err := m.bytes(m.index+i*disk.FullEntrySize, disk.FullEntrySize)
		if err != nil {
			return e, err
		}
		e.DecodeFull(b)
	} else if e, err = m.compactEntry(i); err != nil {
		return e, err
	}
	switch {
	case e.Offset >= blockSize:
		return e, fmt.Errorf("%w: logical cluster %d begins at %d", ErrInvalid, i, e.Offset)
	case e.Partial:
		return e, fmt.Errorf("%w: parts of clusters", ErrUnsupported)
	}
	return e, nil
}

// compactEntry reads entry i of an index in which packs of 4 bytes an entry enclose such of 2 bytes.
func (m *clusterMap) compactEntry(i int64) (disk.Entry, error) {
	off, size, each := m.index, int64(disk.Pack4Size), int64(4)
	switch {
	case i < m.head4:
		off += i * 4
	case i < m.head4+m.count2:
		off += m.head4*4 + (i-m.head4)*2
		size, each = disk.Pack2Size, 2
	default:
		off += m.head4*4 + m.count2*2 + (i-m.head4-m.count2)*4
	}
	pack := off / size * size
	b, err := m.bytes(pack, size)
	if err != nil {
		return disk.Entry{}, err
	}
	return disk.DecodePack(b).Entry(int((off-pack)/each), m.header.Advise&disk.AdviseBig1 != 0), nil
}

// find finds the cluster that byte off of the file, which it has, is in.
func (m *clusterMap) find(off int64) (cluster, error) {
	c, err := m.findHead(off)
	if err != nil {
		return c, err
	}
	e, err := m.entry(c.head)
	if err != nil {
		return c, err
	}
	end, err := m.end(c.head)
	if err != nil {
		return c, err
	}
	c.size, c.at = end-c.off, int64(e.Block)*blockSize
	if c.stored, err = m.stored(c.head, e.Kind); err != nil {
		return c, err
	}
	switch e.Kind {
	case disk.EntryHead1:
		c.form = m.header.Algorithms & 15
	case disk.EntryHead2:
		c.form = m.header.Algorithms >> 4
	default:
		c.form = formPlain
		if m.header.Advise&disk.AdviseInterlaced != 0 {
			c.form = formInterlaced
		}
		if c.size > c.stored || c.form == formInterlaced && c.stored != blockSize {
			return c, fmt.Errorf("%w: %d bytes are plain in %d", ErrInvalid, c.size, c.stored)
		}
	}
	switch {
	case off >= end || c.size > disk.MaxClusterContents || c.stored > disk.MaxCluster:
		return c, fmt.Errorf("%w: a cluster of %d bytes in %d", ErrInvalid, c.size, c.stored)
	case c.at == 0 || c.at > m.im.super.Size-c.stored:
		return c, fmt.Errorf("%w: a cluster at %d+%d", ErrInvalid, c.at, c.stored)
	}
	return c, nil
}

// findHead finds where the cluster begins that byte off of the file is in.
func (m *clusterMap) findHead(off int64) (c cluster, err error) {
	last := off / blockSize
	for i := last; i >= 0 && last-i <= maxSearch; i-- {
		e, err := m.entry(i)
		if err != nil {
			return c, err
		}
		if at := i*blockSize + int64(e.Offset); e.Kind != disk.EntryTail && at <= off {
			return cluster{off: at, head: i}, nil
		}
	}
	return c, fmt.Errorf("%w: nothing begins before byte %d", ErrInvalid, off)
}

// end finds where the cluster ends that begins in the logical cluster head: where the next one begins, or the file's end.
func (m *clusterMap) end(head int64) (int64, error) {
	n := m.in.clusters()
	for i := head + 1; i < n; i++ {
		if i-head > maxSearch {
			return 0, fmt.Errorf("%w: nothing ends what begins in logical cluster %d", ErrInvalid, head)
		}
		e, err := m.entry(i)
		if err != nil {
			return 0, err
		}
		if at := i*blockSize + int64(e.Offset); e.Kind != disk.EntryTail {
			if at > m.in.Size {
				return 0, fmt.Errorf("%w: a cluster ends at %d of %d bytes", ErrInvalid, at, m.in.Size)
			}
			return at, nil
		}
	}
	return m.in.Size, nil
}

// stored tells how many bytes of the image the cluster has that begins in the logical cluster head. Where they are of more than
// one block, the next entry says so.
func (m *clusterMap) stored(head int64, kind uint8) (int64, error) {
	big := uint16(disk.AdviseBig2)
	if kind == disk.EntryHead1 {
		big = disk.AdviseBig1
	}
	if m.header.Advise&big == 0 || head+1 >= m.in.clusters() {
		return blockSize, nil
	}
	e, err := m.entry(head + 1)
	switch {
	case err != nil:
		return 0, err
	case e.Kind != disk.EntryTail:
		return blockSize, nil
	case e.Blocks == 0:
		return 0, fmt.Errorf("%w: logical cluster %d doesn't tell the number of blocks", ErrInvalid, head+1)
	}
	return int64(e.Blocks) * blockSize, nil
}
