package erofs

import (
	"bytes"

	"github.com/pexfs/pex/erofs/disk"
)

// directory checks the names of a directory and visits their inodes.
func (c *checker) directory(v dirVisit) error {
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	dir, err := c.im.Inode(uint64(v.nid))
	if err != nil {
		return c.problemError(err)
	}
	self, parent := false, false
	subdirs := uint64(0)
	var last []byte
	for k := int64(0); k*blockSize < dir.Size; k++ {
		tail := (k+1)*blockSize > dir.Size
		if at := dir.offset(k * blockSize); (dir.layout != disk.LayoutInline || !tail) && !c.claim(at, blockSize) {
			return c.problem("directory %d: block %d at %d is used by something else or not in the metadata", dir.Nid, k, at)
		}
		b, err := c.im.dirBlock(dir, k, buf)
		if err != nil {
			return c.problemError(err)
		}
		if err := c.packing(dir, k, b); err != nil {
			return err
		}
		for i := range b.n {
			name, ok := b.name(i)
			if !ok {
				return c.problemError(badBlock(dir, k))
			}
			e := b.entry(i)
			if bytes.Compare(name, last) <= 0 {
				if err := c.problem("directory %d: %q follows %q", dir.Nid, name, last); err != nil {
					return err
				}
			}
			last = append(last[:0], name...)
			switch string(name) {
			case ".", "..":
				want := dir.Nid
				if len(name) == 2 {
					want, parent = uint64(v.parent), true
				} else {
					self = true
				}
				if e.Nid != want || e.Type != disk.TypeDir {
					if err := c.problem("directory %d: %q is nid %d of type %d, not %d", dir.Nid, name, e.Nid, e.Type, want); err != nil {
						return err
					}
				}
			default:
				isDir, err := c.name(dir, name, e)
				if err != nil {
					return err
				}
				if isDir {
					subdirs++
				}
			}
		}
	}
	if !self || !parent {
		if err := c.problem(`directory %d has no "." or no ".."`, dir.Nid); err != nil {
			return err
		}
	}
	if uint64(dir.Nlink) != subdirs+2 {
		return c.problem("directory %d: %d subdirectories, nlink is %d", dir.Nid, subdirs, dir.Nlink)
	}
	return nil
}

// packing checks that a block has nothing but its entries: zeros behind them in a full block, nothing in the last one, whose size
// the directory's tells.
func (c *checker) packing(dir Inode, k int64, b dirBlock) error {
	for i := range b.n {
		if b.b[i*disk.DirentSize+disk.DirentSize-1] != 0 {
			return c.problem("directory %d, block %d: a reserved byte is not zero", dir.Nid, k)
		}
	}
	name, ok := b.name(b.n - 1)
	if !ok {
		return c.problemError(badBlock(dir, k))
	}
	end := int(b.entry(b.n-1).NameOff) + len(name)
	if !isZero(b.b[end:]) {
		return c.problem("directory %d, block %d: bytes behind the names are not zero", dir.Nid, k)
	}
	if len(b.b) == blockSize {
		return nil
	}
	if end != len(b.b) {
		return c.problem("directory %d, block %d: its size is %d, the names end at %d", dir.Nid, k, len(b.b), end)
	}
	if dir.layout == disk.LayoutInline {
		return nil // visit has seen to what follows
	}
	at := dir.offset(k * blockSize)
	return c.zeroUpTo(dir.Nid, at+int64(end), at+blockSize)
}

// name checks a name's inode, visiting it if this is its first name, and tells whether it is a directory.
func (c *checker) name(dir Inode, name []byte, e disk.Dirent) (isDir bool, err error) {
	var in Inode
	again := e.Nid < uint64(c.metaSize()/disk.SlotSize) && c.begun.has(int64(e.Nid))
	if again {
		if in, err = c.im.Inode(e.Nid); err != nil {
			return false, c.problemError(err)
		}
	} else {
		ok := false
		if in, ok, err = c.visit(e.Nid); err != nil || !ok {
			return false, err
		}
	}
	if e.Type != disk.TypeOfMode(in.Mode) {
		if err := c.problem("directory %d: %q has type %d, its inode %d has mode %#o", dir.Nid, name, e.Type, e.Nid, in.Mode); err != nil {
			return false, err
		}
	}
	if in.IsDir() {
		if again {
			return true, c.problem("directory %d: %q is directory %d, which has another name", dir.Nid, name, e.Nid)
		}
		c.dirs = append(c.dirs, dirVisit{uint32(e.Nid), uint32(dir.Nid)})
		return true, nil
	}
	if l, ok := c.links[e.Nid]; ok {
		l.got++
		c.links[e.Nid] = l
	} else if again {
		return false, c.problem("directory %d: %q is inode %d, which has another name and nlink %d", dir.Nid, name, e.Nid, in.Nlink)
	}
	return false, nil
}
