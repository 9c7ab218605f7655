package compress

import (
	"fmt"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

const maxMeta = 16 << 30 // bytes of metadata that erofs.Check reads

// inodeLen is how many bytes an inode has with its attributes and what else follows it.
func (t *transfer) inodeLen(n *node) int64 {
	head := disk.InodeExtended + int64(n.xattrs)
	switch {
	case n.content >= 0 && t.contents[n.content].clusters != nil:
		return disk.FullIndexOffset(head) + disk.FullEntrySize*(roundUp(n.size, blockSize)/blockSize)
	case n.inline:
		return head + n.size%blockSize
	}
	return head
}

// place gives each inode its slots behind meta, where metadata begins, one after the other, and blocks behind all inodes to what is not
// inline of directories and symlinks. An inode doesn't cross a block's end, nor does it with what is inline; an index may.
func (t *transfer) place(meta int64) error {
	at, data := int64(rootNid*disk.SlotSize), int64(0) // bytes of inodes, and blocks
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.kind == disk.TypeDir || n.kind == disk.TypeSymlink {
			tail := n.size % blockSize
			room := int64(blockSize)
			if i == 0 {
				room -= at
			}
			n.inline = tail > 0 && disk.InodeExtended+int64(n.xattrs)+tail <= room
			count := n.size / blockSize
			if tail > 0 && !n.inline {
				count++
			}
			n.start = uint32(data)
			data += count
		}
		together := int64(disk.InodeExtended)
		if n.inline {
			together = t.inodeLen(n)
		}
		if at%blockSize+together > blockSize {
			at = roundUp(at, blockSize)
		}
		n.to = uint32(at / disk.SlotSize)
		at = roundUp(at+t.inodeLen(n), disk.SlotSize)
		if at+data*blockSize > maxMeta {
			return fmt.Errorf("placing inodes: metadata of more than %d bytes: %w", int64(maxMeta), erofs.ErrTooBig)
		}
	}
	t.dataFrom = meta + roundUp(at, blockSize)
	return nil
}
