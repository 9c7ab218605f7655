package erofs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// LayoutVersion is that of the rules in the package comment. Images of different versions have different bytes.
const LayoutVersion = 1

const (
	blockSize = disk.BlockSize
	hugeSize  = 2 << 20 // data begins here, big contents are aligned to it, and so is the image's size
	rootNid   = 1
	maxBlocks = math.MaxUint32
)

// ErrTooBig is wrapped where a tree doesn't fit an image of 2^32 blocks.
var ErrTooBig = errors.New("too big for EROFS")

// Extent is the place of a content in the image; Off and Size are bytes.
type Extent struct {
	Content   tree.Content
	Off, Size int64
}

// Layout is the plan of an image and its metadata. It never changes and may be used concurrently.
type Layout struct {
	size, metaOff int64
	extents       []Extent
	super         []byte // block 0
	meta          []byte
	dropped       []string
}

// Size is the whole image's, in bytes: a multiple of 2 MiB.
func (l *Layout) Size() int64 { return l.size }

// MetaOffset is where metadata begins; from there to the end there is nothing else, but for zeros.
func (l *Layout) MetaOffset() int64 { return l.metaOff }

// Extents lists where contents go, by ascending offset, each distinct content once.
func (l *Layout) Extents() []Extent { return l.extents }

// Dropped lists attributes that EROFS has no place for, as "path: name"; at most 100 of them.
func (l *Layout) Dropped() []string { return l.dropped }

// WriteTo writes the superblock's block and the metadata, whole blocks each. All else of the file must read as zeros, but for
// the contents.
func (l *Layout) WriteTo(w io.WriterAt) error {
	if _, err := w.WriteAt(l.super, 0); err != nil {
		return fmt.Errorf("writing superblock: %w", err)
	}
	const step = 4 << 20
	for off := 0; off < len(l.meta); off += step {
		if _, err := w.WriteAt(l.meta[off:min(off+step, len(l.meta))], l.metaOff+int64(off)); err != nil {
			return fmt.Errorf("writing metadata: %w", err)
		}
	}
	return nil
}

// NewLayout lays out a tree. Contents with equal keys are the same bytes and are stored once. The result is a pure
// function of its arguments.
func NewLayout(t *tree.Tree, key func(tree.Content) [32]byte, uuid [16]byte) (*Layout, error) {
	w := &writer{t: t, l: &Layout{}}
	if err := w.placeContents(key); err != nil {
		return nil, err
	}
	if err := w.placeInodes(); err != nil {
		return nil, err
	}
	if err := w.encode(); err != nil {
		return nil, err
	}
	w.superblock(uuid)
	return w.l, nil
}

type writer struct {
	t      *tree.Tree
	l      *Layout
	start  []uint32 // first block of an inode's content or out-of-line tail, by ino
	nid    []uint32
	parent []tree.Ino // of directories
	xattrs map[tree.Ino][]byte
	inline []bool // the tail follows the inode
	slots  int64
}

// placeContents gives every visible content its place.
func (w *writer) placeContents(key func(tree.Content) [32]byte) error {
	n := w.t.Len()
	w.start = make([]uint32, n)
	type occ struct {
		c   tree.Content
		ino tree.Ino
	}
	var all []occ
	for i := range tree.Ino(n) {
		if a := w.t.Stat(i); a.Type == tree.Regular && a.Size > 0 {
			all = append(all, occ{a.Content, i})
		}
	}
	slices.SortFunc(all, func(a, b occ) int {
		return cmp.Or(cmp.Compare(b.c.Layer, a.c.Layer), cmp.Compare(a.c.Index, b.c.Index), cmp.Compare(a.ino, b.ino))
	})
	type place struct {
		block uint32
		size  int64
	}
	placed := make(map[[32]byte]place)
	at := int64(hugeSize)
	for _, o := range all {
		size := w.t.Stat(o.ino).Size
		k := key(o.c)
		if p, ok := placed[k]; ok {
			if p.size != size {
				return fmt.Errorf("laying out contents: %d and %d bytes have one key", p.size, size)
			}
			w.start[o.ino] = p.block
			continue
		}
		if size >= hugeSize {
			at = roundUp(at, hugeSize)
		}
		if size > maxBlocks*blockSize-at {
			return fmt.Errorf("laying out contents: %w", ErrTooBig)
		}
		w.start[o.ino] = uint32(at / blockSize)
		placed[k] = place{w.start[o.ino], size}
		w.l.extents = append(w.l.extents, Extent{o.c, at, size})
		at = roundUp(at+size, blockSize)
	}
	w.l.metaOff = at
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// dirSize gives a directory's i_size: full blocks and the used part of the last.
func (w *writer) dirSize(dir tree.Ino) int64 {
	var full, used int64
	for name := range w.names(dir) {
		need := int64(disk.DirentSize + len(name))
		if used+need > blockSize {
			full += blockSize
			used = 0
		}
		used += need
	}
	return full + used
}

// names yields a directory's names, "." and ".." in their sorted places, with what they stand for.
func (w *writer) names(dir tree.Ino) func(yield func(string, tree.Dirent) bool) {
	return func(yield func(string, tree.Dirent) bool) {
		own := [2]tree.Dirent{{Name: ".", Ino: dir, Type: tree.Dir}, {Name: "..", Ino: w.parent[dir], Type: tree.Dir}}
		k := 0
		for d := range w.t.Children(dir) {
			for k < 2 && own[k].Name < d.Name {
				if !yield(own[k].Name, own[k]) {
					return
				}
				k++
			}
			if !yield(d.Name, d) {
				return
			}
		}
		for ; k < 2; k++ {
			if !yield(own[k].Name, own[k]) {
				return
			}
		}
	}
}

// placeInodes walks the tree breadth first, gives each inode its slots, and tails that don't fit beside their inode blocks behind all
// inodes.
func (w *writer) placeInodes() error {
	n := w.t.Len()
	w.nid, w.parent, w.inline = make([]uint32, n), make([]tree.Ino, n), make([]bool, n)
	w.xattrs = make(map[tree.Ino][]byte)
	order := make([]tree.Ino, 0, n)
	order = append(order, 0)
	at := int64(rootNid * disk.SlotSize)
	place := func(i tree.Ino) error {
		x, err := w.encodeXattrs(i)
		if err != nil {
			return err
		}
		if len(x) > 0 {
			w.xattrs[i] = x
		}
		head := disk.InodeExtended + int64(len(x))
		tail, err := w.tail(i)
		if err != nil {
			return err
		}
		w.inline[i] = tail > 0 && head+tail <= blockSize
		if w.inline[i] && (at+head)%blockSize+tail > blockSize {
			at = roundUp(at, blockSize) // the tail must not cross a block's end
		}
		if at/disk.SlotSize > math.MaxUint32 {
			return fmt.Errorf("laying out inodes: %w", ErrTooBig)
		}
		w.nid[i] = uint32(at / disk.SlotSize)
		at += head
		if w.inline[i] {
			at += tail
		}
		at = roundUp(at, disk.SlotSize)
		return nil
	}
	var paths []tree.Ino
	seen := make([]bool, n)
	seen[0] = true
	paths = append(paths, 0)
	if err := place(0); err != nil {
		return err
	}
	for len(paths) > 0 {
		dir := paths[0]
		paths = paths[1:]
		for d := range w.t.Children(dir) {
			if seen[d.Ino] {
				continue
			}
			seen[d.Ino] = true
			if d.Type == tree.Dir {
				w.parent[d.Ino] = dir
				paths = append(paths, d.Ino)
			}
			if err := place(d.Ino); err != nil {
				return err
			}
		}
	}
	at = roundUp(at, blockSize)
	for i := range tree.Ino(n) {
		a := w.t.Stat(i)
		if a.Type != tree.Dir && a.Type != tree.Symlink {
			continue
		}
		size := a.Size
		if a.Type == tree.Dir {
			size = w.dirSize(i)
		}
		blocks := size / blockSize
		if !w.inline[i] {
			blocks = (size + blockSize - 1) / blockSize
		}
		if blocks > 0 {
			w.start[i] = uint32((w.l.metaOff + at) / blockSize)
			at += blocks * blockSize
		}
	}
	w.l.size = roundUp(w.l.metaOff+at, hugeSize)
	if w.l.size/blockSize > maxBlocks || int64(int(at)) != at {
		return fmt.Errorf("laying out metadata: %w", ErrTooBig)
	}
	w.l.meta = make([]byte, at)
	return nil
}

// tail is how many bytes of an inode's data may follow it: what the last block would hold.
func (w *writer) tail(i tree.Ino) (int64, error) {
	switch a := w.t.Stat(i); a.Type {
	case tree.Dir:
		return w.dirSize(i) % blockSize, nil
	case tree.Symlink:
		if a.Size == 0 || a.Size >= blockSize {
			return 0, fmt.Errorf("laying out inodes: a symlink's target has %d bytes", a.Size)
		}
		return a.Size, nil
	}
	return 0, nil
}

func (w *writer) encode() error {
	for i := range tree.Ino(w.t.Len()) {
		a := w.t.Stat(i)
		in := disk.Inode{
			Extended: true, Ino: uint32(i) + 1, UID: a.UID, GID: a.GID, Nlink: a.Nlink,
			Mtime: uint64(a.Mtime.Sec), MtimeNsec: a.Mtime.Nsec, Size: uint64(a.Size), Union: w.start[i],
		}
		mode := uint16(a.Mode & 0o7777)
		switch a.Type {
		case tree.Dir:
			mode |= modeDir
			in.Size = uint64(w.dirSize(i))
		case tree.Regular:
			mode |= modeRegular
		case tree.Symlink:
			mode |= modeSymlink
		case tree.Char, tree.Block:
			mode |= modeChar
			if a.Type == tree.Block {
				mode = mode&^modeFormat | modeBlock
			}
			if a.Major > 0xfff || a.Minor > 0xfffff {
				return fmt.Errorf("encoding inodes: device %d:%d: %w", a.Major, a.Minor, ErrTooBig)
			}
			in.Union, in.Size = disk.Dev(a.Major, a.Minor), 0
		case tree.Fifo:
			mode |= modeFifo
			in.Size = 0
		}
		in.Mode = mode
		x := w.xattrs[i]
		if len(x) > 0 {
			in.XattrCount = uint16(1 + (len(x)-disk.XattrHeaderSize)/disk.XattrEntrySize)
		}
		if w.inline[i] {
			in.Layout = disk.LayoutInline
			if in.Size < blockSize {
				in.Union = 0
			}
		}
		at := int64(w.nid[i]) * disk.SlotSize
		in.Encode(w.l.meta[at:])
		copy(w.l.meta[at+disk.InodeExtended:], x)
		head := at + disk.InodeExtended + int64(len(x))
		// where the data's blocks lie in meta; a tail that is inline lies behind the head
		blocks := int64(w.start[i])*blockSize - w.l.metaOff
		switch a.Type {
		case tree.Dir:
			w.encodeDir(i, int64(in.Size), blocks, head)
		case tree.Symlink:
			if !w.inline[i] {
				head = blocks
			}
			copy(w.l.meta[head:], a.Target)
		}
	}
	return nil
}

// encodeDir writes a directory's blocks.
func (w *writer) encodeDir(dir tree.Ino, size, blocks, tail int64) {
	var batch []tree.Dirent
	var used int64
	at := int64(0)
	flush := func() {
		to := blocks + at
		if w.inline[dir] && at+blockSize > size {
			to = tail
		}
		b := w.l.meta[to:]
		name := len(batch) * disk.DirentSize
		for k, d := range batch {
			e := disk.Dirent{Nid: uint64(w.nid[d.Ino]), NameOff: uint16(name), Type: fileType(d.Type)}
			e.Encode(b[k*disk.DirentSize:])
			name += copy(b[name:], d.Name)
		}
		at += blockSize
		batch, used = batch[:0], 0
	}
	for name, d := range w.names(dir) {
		need := int64(disk.DirentSize + len(name))
		if used+need > blockSize {
			flush()
		}
		batch = append(batch, d)
		used += need
	}
	flush()
}

func fileType(t tree.Type) uint8 {
	switch t {
	case tree.Dir:
		return disk.TypeDir
	case tree.Symlink:
		return disk.TypeSymlink
	case tree.Char:
		return disk.TypeChar
	case tree.Block:
		return disk.TypeBlock
	case tree.Fifo:
		return disk.TypeFifo
	}
	return disk.TypeRegular
}

// xattrPrefixes are those that have an index; the whole name counts where rest is false.
var xattrPrefixes = [...]struct {
	name  string
	index uint8
	whole bool
}{
	{"user.", disk.XattrUser, false},
	{"system.posix_acl_access", disk.XattrACLAccess, true},
	{"system.posix_acl_default", disk.XattrACLDefault, true},
	{"trusted.", disk.XattrTrusted, false},
	{"security.", disk.XattrSecurity, false},
}

const maxDropped = 100

// encodeXattrs gives what follows an inode: the header, which has no shared attributes, and the entries.
func (w *writer) encodeXattrs(i tree.Ino) ([]byte, error) {
	var b []byte
	for name, value := range w.t.Xattrs(i) {
		index, rest, ok := splitXattr(name)
		if !ok {
			if len(w.l.dropped) < maxDropped {
				w.l.dropped = append(w.l.dropped, fmt.Sprintf("inode %d: %.300q", i, name))
			}
			continue
		}
		if len(rest) > math.MaxUint8 || len(value) > math.MaxUint16 {
			return nil, fmt.Errorf("attribute %.300q of %d bytes: %w", name, len(value), ErrTooBig)
		}
		if b == nil {
			b = make([]byte, disk.XattrHeaderSize)
		}
		b = append(b, uint8(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		for len(b)%disk.XattrEntrySize != 0 {
			b = append(b, 0)
		}
	}
	if len(b) > math.MaxUint16 {
		return nil, fmt.Errorf("attributes of %d bytes on one file: %w", len(b), ErrTooBig)
	}
	return b, nil
}

func splitXattr(name string) (index uint8, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if p.whole && name == p.name {
			return p.index, "", true
		}
		if rest, ok := strings.CutPrefix(name, p.name); ok && !p.whole && rest != "" {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

func (w *writer) superblock(uuid [16]byte) {
	w.l.super = make([]byte, blockSize)
	s := disk.Super{
		Magic: disk.Magic, FeatureCompat: disk.CompatChecksum | disk.CompatMtime, BlockBits: disk.BlockBits, RootNid: rootNid,
		Inodes: uint64(w.t.Len()), Blocks: uint32(w.l.size / blockSize), MetaBlock: uint32(w.l.metaOff / blockSize), UUID: uuid,
	}
	s.Encode(w.l.super[disk.SuperOffset:])
	s.Checksum = checksum(w.l.super)
	s.Encode(w.l.super[disk.SuperOffset:])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the superblock's: over the rest of its block, with a zero in its own place, not inverted at the end.
func checksum(block []byte) uint32 {
	h := crc32.Update(0, castagnoli, block[disk.SuperOffset:disk.SuperOffset+4])
	h = crc32.Update(h, castagnoli, make([]byte, 4))
	return ^crc32.Update(h, castagnoli, block[disk.SuperOffset+8:])
}
