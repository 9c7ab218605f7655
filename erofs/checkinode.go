package erofs

import (
	"bytes"

	"github.com/pexfs/pex/erofs/disk"
)

// visit checks an inode at its first name. It tells whether the inode can be used further.
func (c *checker) visit(nid uint64) (in Inode, ok bool, err error) {
	if nid == 0 || nid >= uint64(c.metaSize()/disk.SlotSize) {
		return in, false, c.problem("nid %d", nid)
	}
	c.begun.set(int64(nid))
	c.inodes++
	in, err = c.im.Inode(nid)
	if err != nil {
		return in, false, c.problemError(err)
	}
	start := in.head - disk.InodeExtended
	if start != c.im.super.MetaOffset+int64(nid)*disk.SlotSize {
		return in, false, c.problem("inode %d is compact", nid)
	}
	end := in.head + in.xattrs + in.followSize()
	if !c.claim(start, end-start) {
		return in, false, c.problem("inode %d: bytes %d to %d are used by something else", nid, start, end)
	}
	for _, step := range []func(Inode) error{c.fields, c.xattrs, c.data} {
		if err := step(in); err != nil {
			return in, false, err
		}
	}
	return in, true, c.zeroUpTo(in.Nid, end, roundUp(end, disk.SlotSize))
}

// inlineSize is how many bytes of an inode's data follow it.
func (in Inode) inlineSize() int64 {
	if in.layout != disk.LayoutInline {
		return 0
	}
	return in.Size % blockSize
}

// fields checks what the inode says of itself.
func (c *checker) fields(in Inode) error {
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	b := buf[:disk.InodeExtended]
	if err := c.im.read(b, in.head-disk.InodeExtended); err != nil {
		return err
	}
	var d disk.Inode
	d.Decode(b)
	var again [disk.InodeExtended]byte
	d.Encode(again[:])
	if !bytes.Equal(b, again[:]) {
		if err := c.problem("inode %d: reserved bytes are not zero", in.Nid); err != nil {
			return err
		}
	}
	need := int64(disk.InodeExtended)
	if in.layout == disk.LayoutInline {
		need += in.xattrs + in.inlineSize()
	}
	if int64(in.Nid)*disk.SlotSize%blockSize+need > blockSize {
		if err := c.problem("inode %d: the inode, or with its inline data and attributes, crosses a block's end", in.Nid); err != nil {
			return err
		}
	}
	before := c.before
	c.before = in
	if in.Nid <= before.Nid {
		if err := c.problem("inode %d: its name comes behind that of inode %d", in.Nid, before.Nid); err != nil {
			return err
		}
	}
	if in.ino <= before.ino || uint64(in.ino) > c.im.super.Inodes {
		if err := c.problem("inode %d: i_ino %d is out of range or not above that of the inode before, %d", in.Nid, in.ino, before.ino); err != nil {
			return err
		}
	}
	if in.Nlink == 0 {
		return c.problem("inode %d: nlink is 0", in.Nid)
	}
	if !in.IsDir() && in.Nlink > 1 {
		c.links[in.Nid] = linkCount{want: in.Nlink}
	}
	return nil
}

// xattrs checks that the attributes are known, in their order, and packed as NewLayout packs them.
func (c *checker) xattrs(in Inode) error {
	if in.xattrs == 0 {
		return nil
	}
	again := make([]byte, in.xattrs)
	size, last, bad := disk.XattrHeaderSize, "", false
	err := c.im.eachXattr(in, func(index uint8, rest, value []byte) bool {
		name, ok := joinXattr(index, rest)
		bad = !ok || name <= last
		last = name
		size += encodeXattr(again[size:], index, rest, value)
		return !bad
	})
	if err != nil {
		return c.problemError(err)
	}
	if bad {
		return c.problem("inode %d: attribute %.300q is unknown, repeated or out of order", in.Nid, last)
	}
	b := make([]byte, in.xattrs)
	if err := c.im.read(b, in.head); err != nil {
		return err
	}
	if len(b) == disk.XattrHeaderSize || len(b) > maxXattrs || !bytes.Equal(b, again) {
		return c.problem("inode %d: attributes of %d bytes are none, too many, or have other bytes than zeros between them", in.Nid, len(b))
	}
	return nil
}

// data checks where an inode's data lies. Of a directory's blocks, directory does.
func (c *checker) data(in Inode) error {
	start := int64(in.start) * blockSize
	bad := func(what string) error {
		return c.problem("inode %d: mode %#o, layout %d, data at %d+%d: %s", in.Nid, in.Mode, in.layout, start, in.Size, what)
	}
	inline := in.layout == disk.LayoutInline
	packed := c.im.super.Compressed && in.IsRegular()
	switch {
	case in.compressed():
		return c.clusters(in)
	case in.IsDir():
		if in.Size == 0 {
			return bad("an empty directory has two names")
		}
	case in.IsSymlink():
		if err := c.symlink(in); err != nil {
			return err
		}
	case inline && !packed:
		return bad("only directories and symlinks have inline data")
	case in.IsRegular() && in.Size > in.inlineSize():
		size := in.Size - in.inlineSize()
		if start < c.dataFrom() || start > c.im.super.MetaOffset || size > c.im.super.MetaOffset-start {
			return bad("not between the superblock and the metadata")
		}
		if in.Size >= hugeSize && start%hugeSize != 0 && !packed {
			return bad("a big content is not aligned")
		}
		c.extents = append(c.extents, extent{start, size})
		return nil
	case in.Size != in.inlineSize():
		return bad("this type has no data")
	case in.Mode&modeFormat == modeChar || in.Mode&modeFormat == modeBlock:
		return nil // start is the device number
	}
	if in.start != 0 && in.Size-in.inlineSize() == 0 {
		return bad("a start without blocks")
	}
	return nil
}

// symlink checks a target and claims the block of one that isn't inline.
func (c *checker) symlink(in Inode) error {
	target, err := c.im.Readlink(in)
	if err != nil {
		return c.problemError(err)
	}
	if bytes.IndexByte(target, 0) >= 0 {
		if err := c.problem("inode %d: a symlink's target has a zero byte", in.Nid); err != nil {
			return err
		}
	}
	if in.layout == disk.LayoutInline {
		return nil
	}
	at := in.offset(0)
	if !c.claim(at, blockSize) {
		return c.problem("inode %d: the target's block at %d is used by something else", in.Nid, at)
	}
	return c.zeroUpTo(in.Nid, at+in.Size, at+blockSize)
}

// zeroUpTo checks that less than a block of bytes, which follow something of an inode, are zero.
func (c *checker) zeroUpTo(nid uint64, from, to int64) error {
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	b := buf[:to-from]
	if err := c.im.read(b, from); err != nil {
		return c.problemError(err)
	}
	if !isZero(b) {
		return c.problem("inode %d: bytes %d to %d behind its data are not zero", nid, from, to)
	}
	return nil
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
