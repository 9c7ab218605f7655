package tree

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// DefaultMaxInodes bounds a tree where Options don't.
const DefaultMaxInodes = 20_000_000

// Options of a Builder.
type Options struct {
	MaxInodes int // inodes that all layers may make together; 0 is DefaultMaxInodes
}

// EntryError says which entry of which layer is at fault. Layers and entries count from 0.
type EntryError struct {
	Layer, Entry int
	Name         string
	Err          error
}

func (e *EntryError) Error() string { return at(e.Layer, e.Entry, e.Name) + e.Err.Error() }

func (e *EntryError) Unwrap() error { return e.Err }

// node is an inode while the tree is built.
type node struct {
	attr     Attr
	xattrs   []Xattr
	children map[string]dirent // of a directory; nil while it is empty
	parent   *node             // of a directory
	// The layer that last put something below this directory, and the last one whose markers hid what lower layers gave
	// here; both one more than the layer's number, so that 0 is none.
	touched, hidden int32
	number          Ino  // once built
	implied         bool // a directory that no entry described, or none that still counts
}

// dirent is a name in a directory. layer is the one that last gave it: a whiteout spares what its own layer gave.
type dirent struct {
	node  *node
	layer int32
}

// Builder applies layers. It is not for concurrent use.
type Builder struct {
	opt   Options
	root  *node
	nodes int
	err   error

	entries int // of all layers so far
	steps   int // components of symlink targets that were followed for them

	// of the entry being applied
	layer int32
	entry int
	name  string

	marked      map[mark]bool // whiteouts of the layer being applied
	ambiguous   []Ambiguity
	ambiguities int
}

// NewBuilder makes a Builder of an empty tree: a root of mode 0755 that belongs to root, time 0.
func NewBuilder(o Options) *Builder {
	if o.MaxInodes == 0 {
		o.MaxInodes = DefaultMaxInodes
	}
	b := &Builder{opt: o, layer: -1, nodes: 1, marked: make(map[mark]bool)}
	b.root = &node{}
	b.root.forget()
	b.root.parent = b.root
	return b
}

// AddLayer applies a layer on top of those before it. After an error the Builder is of no use any more; an error of an
// entry is an *EntryError.
func (b *Builder) AddLayer(entries iter.Seq2[Entry, error]) error {
	if b.err != nil {
		return b.err
	}
	b.layer++
	b.entry = -1
	clear(b.marked)
	for e, err := range entries {
		b.entry++
		b.entries++
		b.name = e.Name
		if err == nil {
			err = b.add(&e)
			if err != nil {
				err = &EntryError{int(b.layer), b.entry, e.Name, err}
			}
		}
		if err != nil {
			b.err = err
			return err
		}
	}
	return nil
}

func (b *Builder) add(e *Entry) error {
	parts, climbs, err := split(e.Name)
	if err != nil {
		return err
	}
	if climbs {
		b.note("the name climbs above the root")
	}
	if len(parts) == 0 {
		if e.Type != Dir {
			return errors.New("the root is not a directory")
		}
		b.setAttr(b.root, e)
		return nil
	}
	last, parts := parts[len(parts)-1], parts[:len(parts)-1]
	for _, p := range parts {
		if strings.HasPrefix(p, whiteout) {
			b.note("it is below the name %.200q and left out", p)
			return nil
		}
	}
	if strings.HasPrefix(last, whiteout) {
		return b.marker(parts, last)
	}
	dir, err := b.walk(parts, true)
	if err != nil {
		return err
	}
	if e.Type == HardLink {
		return b.link(dir, last, e)
	}
	if old, ok := dir.children[last]; ok && e.Type == Dir && old.node.attr.Type == Dir {
		b.setAttr(old.node, e)
		b.give(dir, last, old.node)
		return nil
	}
	n, err := b.newNode(e)
	if err != nil {
		return err
	}
	n.parent = dir
	b.give(dir, last, n)
	return nil
}

// count takes one from the inodes that may be made.
func (b *Builder) count() error {
	if b.nodes >= b.opt.MaxInodes {
		return fmt.Errorf("the layers have more than %d inodes", b.opt.MaxInodes)
	}
	b.nodes++
	return nil
}

func (b *Builder) newNode(e *Entry) (*node, error) {
	if err := b.count(); err != nil {
		return nil, err
	}
	n := &node{attr: Attr{Type: e.Type, Content: noContent}}
	switch e.Type {
	case Dir, Fifo:
	case Regular:
		if e.Size < 0 {
			return nil, fmt.Errorf("size %d", e.Size)
		}
		if n.attr.Size = e.Size; e.Size > 0 {
			n.attr.Content = Content{b.layer, e.Content}
		}
	case Symlink:
		if e.Linkname == "" || len(e.Linkname) >= maxPath || strings.IndexByte(e.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("symlink target of %d bytes is empty, longer than %d or has a zero byte", len(e.Linkname), maxPath-1)
		}
		n.attr.Target = strings.Clone(e.Linkname)
		n.attr.Size = int64(len(e.Linkname))
	case Char, Block:
		n.attr.Major, n.attr.Minor = e.Major, e.Minor
		if e.Type == Char && e.Major == 0 && e.Minor == 0 {
			b.note("a character device 0:0, which is a whiteout to overlayfs")
		}
	default:
		return nil, fmt.Errorf("unknown type %d", e.Type)
	}
	b.setAttr(n, e)
	return n, nil
}

// setAttr gives an inode what an entry says of mode, owner, time and attributes.
func (b *Builder) setAttr(n *node, e *Entry) {
	n.setOwner(e)
	n.implied = false
	n.xattrs = nil
	if len(e.Xattrs) > 0 {
		n.xattrs = b.xattrs(e.Xattrs)
	}
}

func (n *node) setOwner(e *Entry) {
	n.attr.Mode, n.attr.UID, n.attr.GID, n.attr.Mtime = e.Mode&0o7777, e.UID, e.GID, e.Mtime
}

// xattrs are the attributes that are part of the tree, sorted; the first of a name counts.
func (b *Builder) xattrs(all []Xattr) []Xattr {
	var kept []Xattr
	for _, x := range all {
		if strings.HasPrefix(x.Name, "trusted.overlay.") {
			b.note("the attribute %.200q is overlayfs's own and left out", x.Name)
			continue
		}
		kept = append(kept, x)
	}
	slices.SortStableFunc(kept, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(kept, func(x, y Xattr) bool {
		if x.Name == y.Name && string(x.Value) != string(y.Value) {
			b.note("the attribute %.200q has two values", x.Name)
		}
		return x.Name == y.Name
	})
}

// give gives a name an inode because an entry says so.
func (b *Builder) give(dir *node, name string, n *node) {
	if old, ok := dir.children[name]; ok && old.layer == b.layer && (n.attr.Type != Dir || old.node.attr.Type != Dir) {
		b.note("the layer gave this name before")
	}
	b.put(dir, name, n)
}

// put gives a name an inode; whatever had the name goes.
func (b *Builder) put(dir *node, name string, n *node) {
	if dir.children == nil {
		dir.children = make(map[string]dirent)
	}
	if _, ok := dir.children[name]; !ok {
		name = strings.Clone(name) // it may be a part of a much longer one
	}
	if n.attr.Type == Dir && len(b.marked) > 0 {
		m := mark{dir, name}
		if wasDir, ok := b.marked[m]; ok && (wasDir || n.implied) {
			b.note("a whiteout of %.200q, which the layer makes a directory", name)
		}
		delete(b.marked, m)
	}
	dir.children[name] = dirent{n, b.layer}
	b.touch(dir)
}

// touch notes that this layer has something in dir.
func (b *Builder) touch(dir *node) {
	for d := dir; d.touched != b.layer+1; d = d.parent {
		d.touched = b.layer + 1
	}
}

// forget makes a directory as if implied.
func (n *node) forget() {
	n.attr = implied
	n.xattrs = nil
	n.implied = true
}
