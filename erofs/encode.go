package erofs

import (
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// encodeInodes writes what placeInodes made room for.
func (w *writer) encodeInodes() {
	for i := range tree.Ino(w.t.Len()) {
		a := w.t.Stat(i)
		in := disk.Inode{
			Extended: true, Mode: uint16(fileMode(a.Type) | a.Mode&0o7777), Ino: uint32(i) + 1, UID: a.UID, GID: a.GID,
			Nlink: a.Nlink, Mtime: uint64(a.Mtime.Sec), MtimeNsec: a.Mtime.Nsec,
		}
		at := int64(w.nid[i]) * disk.SlotSize
		xattrs := w.encodeXattrs(w.l.meta[at+disk.InodeExtended:], i)
		in.XattrCount = disk.XattrCountOf(xattrs)
		if w.inline[i] {
			in.Layout = disk.LayoutInline
		}
		tail := at + disk.InodeExtended + int64(xattrs)
		blocks := w.dataBase + int64(w.start[i])*blockSize
		switch a.Type {
		case tree.Regular:
			in.Size, in.Union = uint64(a.Size), w.start[i]
		case tree.Dir:
			size := w.dirSize(i)
			in.Size = uint64(size)
			if !w.inline[i] || size > blockSize {
				in.Union = uint32((w.l.metaOff + blocks) / blockSize)
			}
			w.encodeDir(i, blocks, tail)
		case tree.Symlink:
			in.Size = uint64(a.Size)
			if w.inline[i] {
				copy(w.l.meta[tail:], a.Target)
			} else {
				in.Union = uint32((w.l.metaOff + blocks) / blockSize)
				copy(w.l.meta[blocks:], a.Target)
			}
		case tree.Char, tree.Block:
			in.Union = disk.Dev(a.Major, a.Minor)
		}
		in.Encode(w.l.meta[at:])
	}
}

// encodeDir writes a directory: its blocks at blocks, the last one at tail if it is inline.
func (w *writer) encodeDir(dir tree.Ino, blocks, tail int64) {
	used := 0
	flush := func(to int64) {
		b := w.l.meta[to:]
		name := len(w.batch) * disk.DirentSize
		for k, d := range w.batch {
			e := disk.Dirent{Nid: uint64(w.nid[d.Ino]), NameOff: uint16(name), Type: direntType(d.Type)}
			e.Encode(b[k*disk.DirentSize:])
			name += copy(b[name:], d.Name)
		}
		w.batch, used = w.batch[:0], 0
	}
	for d := range w.names(dir) {
		need := disk.DirentSize + len(d.Name)
		if used+need > blockSize {
			flush(blocks)
			blocks += blockSize
		}
		w.batch = append(w.batch, d)
		used += need
	}
	if w.inline[dir] {
		flush(tail)
	} else {
		flush(blocks)
	}
}

func fileMode(t tree.Type) uint32 {
	switch t {
	case tree.Dir:
		return modeDir
	case tree.Symlink:
		return modeSymlink
	case tree.Char:
		return modeChar
	case tree.Block:
		return modeBlock
	case tree.Fifo:
		return modeFifo
	}
	return modeRegular
}

func direntType(t tree.Type) uint8 { return disk.TypeOfMode(fileMode(t)) }

func (w *writer) encodeSuper(uuid [16]byte) {
	w.l.super = make([]byte, blockSize)
	s := disk.Super{
		Magic: disk.Magic, FeatureCompat: disk.CompatChecksum | disk.CompatMtime, BlockBits: disk.BlockBits, RootNid: rootNid,
		Inodes: uint64(w.t.Len()), Blocks: uint32(w.l.size / blockSize), MetaBlock: uint32(w.l.metaOff / blockSize), UUID: uuid,
	}
	s.Seal(w.l.super)
}
