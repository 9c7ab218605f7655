package compress

import (
	"fmt"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

const (
	slotsPerBlock  = blockSize / disk.SlotSize
	maxInodeBlocks = 4 << 20 // 16 GiB
)

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

// place gives each inode its slots behind meta, where metadata begins, and blocks behind all inodes to what is not inline of
// directories and symlinks. Inodes don't cross a block's end with what follows them; those that must, begin a block. Each goes to
// the block with the least room that it fits into.
func (t *transfer) place(meta int64) error {
	blocks := int64(0)
	var open [slotsPerBlock + 1][]uint32 // blocks by how many slots are free, which are the last ones
	data := int64(0)
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.kind == disk.TypeDir || n.kind == disk.TypeSymlink {
			tail := n.size % blockSize
			room := int64(blockSize)
			if i == 0 {
				room -= rootNid * disk.SlotSize
			}
			n.inline = tail > 0 && disk.InodeExtended+int64(n.xattrs)+tail <= room
			count := n.size / blockSize
			if tail > 0 && !n.inline {
				count++
			}
			n.start = uint32(data)
			data += count
		}
		slots := roundUp(t.inodeLen(n), disk.SlotSize) / disk.SlotSize
		at, end := int64(0), int64(0)
		if best := bestFit(&open, slots); best > 0 {
			last := len(open[best]) - 1
			block := open[best][last]
			open[best] = open[best][:last]
			end = (int64(block) + 1) * slotsPerBlock
			at = end - int64(best)
		} else {
			at = blocks * slotsPerBlock
			if i == 0 {
				at += rootNid
			}
			blocks = (at+slots-1)/slotsPerBlock + 1
			end = blocks * slotsPerBlock
		}
		n.to = uint32(at)
		if left := end - at - slots; left > 0 {
			open[left] = append(open[left], uint32(end/slotsPerBlock-1))
		}
		if blocks+data > maxInodeBlocks {
			return fmt.Errorf("placing inodes: metadata of more than %d bytes: %w", int64(maxInodeBlocks)*blockSize, erofs.ErrTooBig)
		}
	}
	t.dataFrom = meta + blocks*blockSize
	return nil
}

// bestFit gives the least number of free slots of an open block that is enough, or 0.
func bestFit(open *[slotsPerBlock + 1][]uint32, slots int64) int {
	for k := slots; k <= slotsPerBlock; k++ {
		if len(open[k]) > 0 {
			return int(k)
		}
	}
	return 0
}
