package compress

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

// node is an inode on its way from one image to the other.
type node struct {
	nid     uint64 // there
	size    int64  // of the data here
	to      uint32 // nid here
	parent  int32  // of a directory
	xattrs  uint32 // bytes
	content int32  // of a regular file that isn't empty, else -1
	start   uint32 // of a directory or symlink: its first block behind the inodes, counted from the first of all these
	kind    uint8  // as in a directory entry
	inline  bool   // the last block's data follows the inode
}

// content is what one or several regular files have.
type content struct {
	off    int64 // where it is in the image that is read: the order
	size   int64
	node   int32  // one that has it
	shared bool   // by several inodes
	start  uint32 // first block here, 0 for none
	blocks uint32 // here
	// clusters is how many blocks each segment has, 0 for those that aren't compressed. It is nil if none is.
	clusters []uint8
}

// transfer is a tree that goes from one image to another.
type transfer struct {
	im        *erofs.Image
	algorithm uint8  // its number on disk
	nodes     []node // the root first, then directories breadth first
	byNid     map[uint64]int32
	contents  []content
	byPlace   map[[2]int64]int32 // contents by offset and size in the image that is read
	order     []int32            // of contents here: that of their places there
	total     int64              // bytes of contents
	dataFrom  int64              // where blocks behind the inodes begin
}

// scan walks the image that is read and finds all of its inodes and contents.
func scan(ctx context.Context, im *erofs.Image) (*transfer, error) {
	t := &transfer{im: im, byNid: map[uint64]int32{}, byPlace: map[[2]int64]int32{}}
	root := im.Super().RootNid
	if err := t.add(root, 0); err != nil {
		return nil, err
	}
	if t.nodes[0].kind != disk.TypeDir {
		return nil, fmt.Errorf("%w: the root is no directory", erofs.ErrInvalid)
	}
	for i := int32(0); int(i) < len(t.nodes); i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if t.nodes[i].kind != disk.TypeDir {
			continue
		}
		if err := t.scanDir(i); err != nil {
			return nil, err
		}
	}
	order := make([]int32, len(t.contents))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(t.contents[a].off, t.contents[b].off), cmp.Compare(a, b))
	})
	t.order = order
	return t, nil
}

// add takes an inode in, of which this is the first name.
func (t *transfer) add(nid uint64, parent int32) error {
	if len(t.nodes) == math.MaxInt32 {
		return fmt.Errorf("inodes: %w", erofs.ErrTooBig)
	}
	in, err := t.im.Inode(nid)
	if err != nil {
		return err
	}
	xattrs, err := t.xattrs(in)
	if err != nil {
		return err
	}
	i := int32(len(t.nodes))
	t.byNid[nid] = i
	t.nodes = append(t.nodes, node{nid: nid, size: in.Size, parent: parent, xattrs: uint32(len(xattrs)), content: -1, kind: disk.TypeOfMode(in.Mode)})
	if in.IsRegular() && in.Size > 0 {
		t.addContent(i, in)
	}
	return nil
}

// xattrs gives the bytes that an inode's attributes are here.
func (t *transfer) xattrs(in erofs.Inode) ([]byte, error) {
	xs, err := t.im.Xattrs(in)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(xs, func(a, b erofs.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return erofs.EncodeXattrs(xs)
}

// scanDir takes in the inodes of a directory's names.
func (t *transfer) scanDir(dir int32) error {
	in, err := t.im.Inode(t.nodes[dir].nid)
	if err != nil {
		return err
	}
	var bad error
	last := ""
	var size dirSize
	err = t.im.ReadDir(in, 0, func(d erofs.Dirent) bool {
		name := string(d.Name)
		if name <= last {
			bad = fmt.Errorf("%w: directory %d: %q follows %q", erofs.ErrInvalid, in.Nid, name, last)
			return false
		}
		last = name
		size.add(name)
		if name == "." || name == ".." {
			return true
		}
		if i, ok := t.byNid[d.Nid]; !ok {
			bad = t.add(d.Nid, dir)
		} else if t.nodes[i].kind == disk.TypeDir {
			bad = fmt.Errorf("%w: directory %d has several names", erofs.ErrInvalid, d.Nid)
		}
		return bad == nil
	})
	t.nodes[dir].size = size.full + size.used
	if err == nil {
		err = bad
	}
	return err
}

// addContent finds a regular file's content among those known, by its place, or takes it in.
func (t *transfer) addContent(i int32, in erofs.Inode) {
	c := content{off: math.MaxInt64, size: in.Size, node: i}
	if off, err := t.im.DataOff(in); err == nil {
		if known, ok := t.byPlace[[2]int64{off, in.Size}]; ok {
			t.contents[known].shared = true
			t.nodes[i].content = known
			return
		}
		t.byPlace[[2]int64{off, in.Size}] = int32(len(t.contents))
		c.off = off
	}
	t.nodes[i].content = int32(len(t.contents))
	t.contents = append(t.contents, c)
	t.total += in.Size
}
