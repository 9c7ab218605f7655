package compress

import (
	"context"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

// writeInodes writes all inodes with what follows them, up to the blocks behind.
func (t *transfer) writeInodes(ctx context.Context, out *output, meta int64) error {
	for i := range t.nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := out.zeros(meta + int64(t.nodes[i].to)*disk.SlotSize); err != nil {
			return err
		}
		b, err := t.encode(int32(i))
		if err != nil {
			return err
		}
		if err := out.write(b); err != nil {
			return err
		}
	}
	return out.zeros(t.dataFrom)
}

// encode gives an inode's bytes.
func (t *transfer) encode(i int32) ([]byte, error) {
	n := &t.nodes[i]
	from, err := t.im.Inode(n.nid)
	if err != nil {
		return nil, err
	}
	xattrs, err := t.xattrs(from)
	if err != nil {
		return nil, err
	}
	in := disk.Inode{
		Extended: true, XattrCount: disk.XattrCountOf(len(xattrs)), Mode: uint16(from.Mode), Ino: uint32(i) + 1, UID: from.UID, GID: from.GID,
		Mtime: uint64(from.Mtime), MtimeNsec: from.MtimeNsec, Nlink: from.Nlink,
	}
	if n.inline {
		in.Layout = disk.LayoutInline
	}
	switch n.kind {
	case disk.TypeChar, disk.TypeBlock:
		in.Union = from.Rdev
	case disk.TypeDir, disk.TypeSymlink:
		in.Size = uint64(n.size)
		if n.size >= blockSize || !n.inline {
			in.Union = uint32(t.dataFrom/blockSize) + n.start
		}
	case disk.TypeRegular:
		in.Size = uint64(n.size)
		if n.content < 0 {
			break
		}
		c := &t.contents[n.content]
		in.Union = c.start
		if c.clusters != nil {
			in.Layout, in.Union = disk.LayoutFull, c.blocks
		}
	}
	b := make([]byte, t.inodeLen(n))
	in.Encode(b)
	copy(b[disk.InodeExtended:], xattrs)
	end := disk.InodeExtended + len(xattrs)
	if in.Layout == disk.LayoutFull {
		header := disk.MapHeader{Advise: disk.AdviseBig1, Algorithms: t.algorithm}
		header.Encode(b[disk.MapOffset(int64(end)):])
		t.contents[n.content].encodeIndex(b[disk.FullIndexOffset(int64(end)):])
	} else if n.inline {
		return b, t.readTail(i, from, b[end:])
	}
	return b, nil
}

// encodeIndex writes a compressed content's index.
func (c *content) encodeIndex(b []byte) {
	block := c.start
	for k, blocks := range c.clusters {
		size := min(segmentSize, c.size-int64(k)*segmentSize)
		n := disk.ClusterEntries(b, blocks > 0, size, block, uint16(blocks))
		b = b[n*disk.FullEntrySize:]
		if blocks == 0 {
			block += uint32(n)
		}
		block += uint32(blocks)
	}
}

// readTail fills b with the end of an inode's data.
func (t *transfer) readTail(i int32, in erofs.Inode, b []byte) error {
	switch t.nodes[i].kind {
	case disk.TypeSymlink:
		target, err := t.im.Readlink(in)
		copy(b, target)
		return err
	case disk.TypeDir:
		return t.eachBlock(i, func(block []byte, last bool) error {
			if last {
				copy(b, block)
			}
			return nil
		})
	}
	return t.readContent(in, b, in.Size-int64(len(b)))
}

// writeBlocks writes the blocks of directories and symlinks that are not inline.
func (t *transfer) writeBlocks(ctx context.Context, out *output) error {
	write := func(b []byte) error {
		if err := out.write(b); err != nil {
			return err
		}
		return out.zeros(roundUp(out.at, blockSize))
	}
	for i := range t.nodes {
		n := &t.nodes[i]
		switch n.kind {
		case disk.TypeDir:
			if err := ctx.Err(); err != nil {
				return err
			}
			if n.inline && n.size < blockSize {
				continue
			}
			err := t.eachBlock(int32(i), func(block []byte, last bool) error {
				if last && n.inline {
					return nil
				}
				return write(block)
			})
			if err != nil {
				return err
			}
		case disk.TypeSymlink:
			if n.inline {
				continue
			}
			in, err := t.im.Inode(n.nid)
			if err != nil {
				return err
			}
			target, err := t.im.Readlink(in)
			if err != nil {
				return err
			}
			if err := write(target); err != nil {
				return err
			}
		}
	}
	return nil
}
