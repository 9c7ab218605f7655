package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// writer makes a Layout. Its slices are indexed by tree.Ino.
type writer struct {
	t      *tree.Tree
	l      *Layout
	start  []uint32   // first block: of the image for a content, of the area behind the inodes for other data
	nid    []uint32   // 0 is none yet
	parent []tree.Ino // of the first name
	inline []bool     // the tail follows the inode

	at       int64 // where in the metadata the next inode may go
	blocks   int64 // how many blocks behind the inodes are taken
	dropped  int
	dataBase int64 // where in the metadata these blocks begin

	batch []tree.Dirent // names of the directory block that is being encoded
}

// placeContents gives every visible content its place.
func (w *writer) placeContents(key func(tree.Content) [32]byte) error {
	w.start = make([]uint32, w.t.Len())
	type use struct {
		content tree.Content
		ino     tree.Ino
	}
	uses := make([]use, 0, w.t.Len())
	for i := range tree.Ino(w.t.Len()) {
		a := w.t.Stat(i)
		if a.Type != tree.Regular || a.Size == 0 {
			continue
		}
		if a.Size < 0 || a.Content.Layer < 0 {
			return fmt.Errorf("inode %d: %d bytes in layer %d", i, a.Size, a.Content.Layer)
		}
		uses = append(uses, use{a.Content, i})
	}
	slices.SortFunc(uses, func(a, b use) int {
		return cmp.Or(cmp.Compare(b.content.Layer, a.content.Layer), cmp.Compare(a.content.Index, b.content.Index), cmp.Compare(a.ino, b.ino))
	})
	placed := make(map[[32]byte]int32, len(uses)) // index of the extent
	w.l.extents = make([]Extent, 0, len(uses))
	at := int64(hugeSize)
	for _, u := range uses {
		size := w.t.Stat(u.ino).Size
		k := key(u.content)
		if x, ok := placed[k]; ok {
			e := w.l.extents[x]
			if e.Size != size {
				return fmt.Errorf("content %d of layer %d has %d bytes, content %d of layer %d has %d and the same key",
					u.content.Index, u.content.Layer, size, e.Content.Index, e.Content.Layer, e.Size)
			}
			w.start[u.ino] = uint32(e.Off / blockSize)
			continue
		}
		if size >= hugeSize {
			at = roundUp(at, hugeSize)
		}
		if size > maxBlocks*blockSize-at {
			return fmt.Errorf("content %d of layer %d, %d bytes: %w", u.content.Index, u.content.Layer, size, ErrTooBig)
		}
		w.start[u.ino] = uint32(at / blockSize)
		placed[k] = int32(len(w.l.extents))
		w.l.extents = append(w.l.extents, Extent{u.content, at, size})
		at = roundUp(at+size, blockSize)
	}
	w.l.metaOff = at
	return nil
}

// placeInodes walks the tree breadth first and gives each inode its slots. Data that doesn't go beside its inode gets blocks behind
// all inodes.
func (w *writer) placeInodes() error {
	n := w.t.Len()
	w.nid, w.parent, w.inline = make([]uint32, n), make([]tree.Ino, n), make([]bool, n)
	w.at = rootNid * disk.SlotSize
	if err := w.placeInode(0); err != nil {
		return err
	}
	dirs := []tree.Ino{0}
	for len(dirs) > 0 {
		dir := dirs[0]
		dirs = dirs[1:]
		for d := range w.t.Children(dir) {
			if w.nid[d.Ino] != 0 {
				continue // another name of it came first
			}
			if d.Type == tree.Dir {
				dirs = append(dirs, d.Ino)
			}
			w.parent[d.Ino] = dir
			if err := w.placeInode(d.Ino); err != nil {
				return fmt.Errorf("%.4096s: %w", w.path(d.Ino), err)
			}
		}
	}
	if w.dropped > maxDropped {
		w.l.dropped = append(w.l.dropped, fmt.Sprintf("and %d more", w.dropped-maxDropped))
	}
	w.dataBase = roundUp(w.at, blockSize)
	size := w.dataBase + w.blocks*blockSize
	w.l.size = roundUp(w.l.metaOff+size, hugeSize)
	if w.l.size/blockSize > maxBlocks || int64(int(size)) != size {
		return fmt.Errorf("an image of %d bytes: %w", w.l.size, ErrTooBig)
	}
	w.l.meta = make([]byte, size)
	return nil
}

// placeInode gives an inode the next slots, or the first of the next block: an inode does not cross a block's end, and where
// its tail is inline, inode, attributes and tail are in one block. (Kernels without the fix of September 2024 call an image
// corrupted where a symlink's inline target is elsewhere.) The root never moves; its tail goes to a block of its own instead.
func (w *writer) placeInode(i tree.Ino) error {
	a := w.t.Stat(i)
	size := int64(0)
	switch a.Type {
	case tree.Dir:
		size = w.dirSize(i)
	case tree.Symlink:
		size = a.Size
		if size < 1 || size > disk.MaxTarget || size != int64(len(a.Target)) || strings.IndexByte(a.Target, 0) >= 0 {
			return fmt.Errorf("a symlink's target of %d bytes is empty, has more than %d or a zero among them", size, disk.MaxTarget)
		}
	case tree.Char, tree.Block:
		if a.Major > disk.MaxMajor || a.Minor > disk.MaxMinor {
			return fmt.Errorf("device %d:%d: %w", a.Major, a.Minor, ErrTooBig)
		}
	case tree.Regular, tree.Fifo:
	default:
		return fmt.Errorf("an inode of type %d", a.Type)
	}
	if a.Mtime.Nsec >= 1e9 {
		return errors.New("a time of more than 999,999,999 nanoseconds")
	}
	xattrs, err := w.measureXattrs(i)
	if err != nil {
		return err
	}
	head := disk.InodeExtended + int64(xattrs)
	tail, room := size%blockSize, blockSize-w.at%blockSize
	w.inline[i] = tail > 0 && (head+tail <= room || head+tail <= blockSize && i != 0)
	if w.inline[i] && head+tail > room || disk.InodeExtended > room {
		w.at = roundUp(w.at, blockSize)
	}
	w.nid[i] = uint32(w.at / disk.SlotSize)
	w.at += head
	blocks := roundUp(size, blockSize) / blockSize
	if w.inline[i] {
		w.at += tail
		blocks--
	}
	w.at = roundUp(w.at, disk.SlotSize)
	if blocks > 0 {
		w.start[i] = uint32(w.blocks)
		w.blocks += blocks
	}
	if w.at+w.blocks*blockSize > maxMeta-blockSize {
		return fmt.Errorf("metadata of more than %d bytes: %w", int64(maxMeta), ErrTooBig)
	}
	return nil
}

// path is the first name of an inode, from the root, for messages.
func (w *writer) path(i tree.Ino) string {
	var parts []string
	for ; i != 0; i = w.parent[i] {
		for d := range w.t.Children(w.parent[i]) {
			if d.Ino == i {
				parts = append(parts, d.Name)
				break
			}
		}
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

// names yields a directory's names, "." and ".." in their sorted places, with what they stand for.
func (w *writer) names(dir tree.Ino) func(yield func(tree.Dirent) bool) {
	return func(yield func(tree.Dirent) bool) {
		own := []tree.Dirent{{Name: ".", Ino: dir, Type: tree.Dir}, {Name: "..", Ino: w.parent[dir], Type: tree.Dir}}
		for d := range w.t.Children(dir) {
			for len(own) > 0 && own[0].Name < d.Name {
				if !yield(own[0]) {
					return
				}
				own = own[1:]
			}
			if !yield(d) {
				return
			}
		}
		for _, d := range own {
			if !yield(d) {
				return
			}
		}
	}
}

// dirSize gives a directory's i_size: full blocks and the used part of the last.
func (w *writer) dirSize(dir tree.Ino) int64 {
	var full, used int64
	for d := range w.names(dir) {
		need := int64(disk.DirentSize + len(d.Name))
		if used+need > blockSize {
			full += blockSize
			used = 0
		}
		used += need
	}
	return full + used
}
