package tree

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Limits of names, as Linux has them, and of symlinks followed in one look-up.
const (
	maxName  = 255
	maxPath  = 4096
	maxLinks = 40
)

// DefaultMaxInodes bounds a tree where Options don't.
const DefaultMaxInodes = 20_000_000

// Options of a Builder.
type Options struct {
	Strict    bool // refuse names that climb above the root
	MaxInodes int  // inodes that all layers may make together; 0 is DefaultMaxInodes
}

// EntryError says which entry of which layer is at fault. Layers and entries count from 0.
type EntryError struct {
	Layer, Entry int
	Name         string
	Err          error
}

func (e *EntryError) Error() string {
	return fmt.Sprintf("layer %d, entry %d %.200q: %v", e.Layer, e.Entry, e.Name, e.Err)
}

func (e *EntryError) Unwrap() error { return e.Err }

const whiteout, opaque = ".wh.", ".wh..wh."

// node is an inode while the tree is built.
type node struct {
	attr     Attr
	xattrs   []Xattr
	children map[string]dirent // of a directory; nil while it is empty
	parent   *node             // of a directory
	// The layer that last put something below this directory, and the last one whose markers hid what lower layers gave
	// here; both one more than the layer's number, so that 0 is none.
	touched, hidden int32
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
	layer int32 // the one being applied
	entry int
	nodes int
	err   error
}

// NewBuilder makes a Builder of an empty tree: a root of mode 0755 that belongs to root, time 0.
func NewBuilder(o Options) *Builder {
	if o.MaxInodes == 0 {
		o.MaxInodes = DefaultMaxInodes
	}
	b := &Builder{opt: o, layer: -1, nodes: 1}
	b.root = &node{attr: Attr{Type: Dir, Mode: 0o755, Content: noContent}}
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
	for e, err := range entries {
		b.entry++
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

// split cleans a name into its components. "." and empty ones go; ".." takes the one before away. climbs says that it
// would have left the root.
func split(name string) (parts []string, climbs bool, err error) {
	if len(name) >= maxPath {
		return nil, false, fmt.Errorf("the name has %d bytes, more than %d", len(name), maxPath-1)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, false, errors.New("the name has a zero byte")
	}
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			if len(parts) == 0 {
				climbs = true
			} else {
				parts = parts[:len(parts)-1]
			}
		case len(p) > maxName:
			return nil, false, fmt.Errorf("a component of the name has %d bytes, more than %d", len(p), maxName)
		default:
			parts = append(parts, p)
		}
	}
	return parts, climbs, nil
}

func (b *Builder) add(e *Entry) error {
	parts, climbs, err := split(e.Name)
	if err != nil {
		return err
	}
	if climbs && b.opt.Strict {
		return errors.New("the name climbs above the root")
	}
	if len(parts) == 0 {
		if e.Type != Dir {
			return errors.New("the root is not a directory")
		}
		b.setAttr(b.root, e)
		return nil
	}
	for _, p := range parts[:len(parts)-1] {
		if strings.HasPrefix(p, whiteout) {
			return nil // below a whiteout, or in AUFS's own folders, nothing is part of the tree
		}
	}
	last := parts[len(parts)-1]
	if strings.HasPrefix(last, whiteout) {
		return b.marker(parts[:len(parts)-1], last)
	}
	dir, err := b.parent(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	if e.Type == HardLink {
		return b.link(dir, last, e)
	}
	if old, ok := dir.children[last]; ok && e.Type == Dir && old.node.attr.Type == Dir {
		b.setAttr(old.node, e)
		b.put(dir, last, old.node)
		return nil
	}
	n, err := b.newNode(e)
	if err != nil {
		return err
	}
	n.parent = dir
	b.put(dir, last, n)
	return nil
}

func (b *Builder) newNode(e *Entry) (*node, error) {
	if b.nodes >= b.opt.MaxInodes {
		return nil, fmt.Errorf("the layers have more than %d inodes", b.opt.MaxInodes)
	}
	b.nodes++
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
	default:
		return nil, fmt.Errorf("unknown type %d", e.Type)
	}
	b.setAttr(n, e)
	return n, nil
}

// setAttr gives an inode what an entry says of mode, owner, time and attributes.
func (b *Builder) setAttr(n *node, e *Entry) {
	n.attr.Mode, n.attr.UID, n.attr.GID, n.attr.Mtime = e.Mode&0o7777, e.UID, e.GID, e.Mtime
	n.xattrs = nil
	for _, x := range e.Xattrs {
		if strings.HasPrefix(x.Name, "trusted.overlay.") {
			continue
		}
		n.xattrs = append(n.xattrs, x)
	}
	slices.SortStableFunc(n.xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	n.xattrs = slices.CompactFunc(n.xattrs, func(a, b Xattr) bool { return a.Name == b.Name })
}

// put gives a name an inode; whatever had the name goes.
func (b *Builder) put(dir *node, name string, n *node) {
	if dir.children == nil {
		dir.children = make(map[string]dirent)
	}
	if _, ok := dir.children[name]; !ok {
		name = strings.Clone(name) // it may be a part of a much longer one
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

// walk finds the directory that these components lead to, through symlinks, inside the root. With create, what is
// missing or is no directory becomes one.
func (b *Builder) walk(parts []string, create bool) (*node, error) {
	dir := b.root
	todo := slices.Clone(parts)
	slices.Reverse(todo)
	for links := 0; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if p == ".." {
			dir = dir.parent
			continue
		}
		d, ok := dir.children[p]
		switch {
		case ok && d.node.attr.Type == Dir:
			dir = d.node
		case ok && d.node.attr.Type == Symlink:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("more than %d symlinks lead to its folder", maxLinks)
			}
			target := d.node.attr.Target
			if target[0] == '/' {
				dir = b.root
			}
			all := strings.Split(target, "/")
			for _, t := range slices.Backward(all) {
				if t != "" && t != "." {
					todo = append(todo, t)
				}
			}
		case !create:
			return nil, nil
		case len(p) > maxName:
			return nil, fmt.Errorf("a component of a symlink's target has %d bytes", len(p))
		default:
			if b.nodes >= b.opt.MaxInodes {
				return nil, fmt.Errorf("the layers have more than %d inodes", b.opt.MaxInodes)
			}
			b.nodes++
			n := &node{attr: Attr{Type: Dir, Mode: 0o755, Content: noContent}, parent: dir}
			b.put(dir, p, n)
			dir = n
		}
	}
	return dir, nil
}

func (b *Builder) parent(parts []string) (*node, error) { return b.walk(parts, true) }

// marker applies a whiteout or an opaque marker.
func (b *Builder) marker(parent []string, name string) error {
	hide := strings.TrimPrefix(name, whiteout)
	switch {
	case name == ".wh..wh..opq":
	case strings.HasPrefix(name, opaque):
		return nil // AUFS's own
	case hide == "" || hide == "." || hide == "..":
		return fmt.Errorf("a whiteout of %q", hide)
	}
	dir, err := b.parent(parent) // a marker implies its directory, as any entry does
	if err != nil {
		return err
	}
	b.touch(dir)
	if name == ".wh..wh..opq" {
		b.hide(dir)
		return nil
	}
	if d, ok := dir.children[hide]; ok && !b.spare(d) {
		delete(dir.children, hide)
	}
	return nil
}

// spare tells whether a name stays although its directory or itself is hidden: this layer gave it, or something below it. Then
// only what lower layers gave below it goes, and a directory that only lower layers describe is as if implied.
func (b *Builder) spare(d dirent) bool {
	if d.layer == b.layer {
		if d.node.attr.Type == Dir {
			b.hide(d.node)
		}
		return true
	}
	if d.node.attr.Type != Dir || d.node.touched != b.layer+1 {
		return false
	}
	d.node.forget()
	b.hide(d.node)
	return true
}

// forget makes a directory as if implied.
func (n *node) forget() {
	n.attr = Attr{Type: Dir, Mode: 0o755, Content: noContent}
	n.xattrs = nil
}

// hide takes everything that lower layers gave out of a directory, at any depth.
func (b *Builder) hide(dir *node) {
	for todo := []*node{dir}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if dir.hidden == b.layer+1 {
			continue // and nothing of a lower layer came back since
		}
		dir.hidden = b.layer + 1
		for name, d := range dir.children {
			isDir := d.node.attr.Type == Dir
			switch {
			case d.layer == b.layer && isDir:
				todo = append(todo, d.node)
			case d.layer == b.layer:
			case isDir && d.node.touched == b.layer+1:
				d.node.forget()
				todo = append(todo, d.node)
			default:
				delete(dir.children, name)
			}
		}
	}
}

// link applies a hard link.
func (b *Builder) link(dir *node, name string, e *Entry) error {
	parts, climbs, err := split(e.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", e.Linkname, err)
	}
	if climbs && b.opt.Strict {
		return fmt.Errorf("hard link to %.200q: the name climbs above the root", e.Linkname)
	}
	if len(parts) == 0 {
		return fmt.Errorf("hard link to %.200q, which is the root", e.Linkname)
	}
	from, err := b.walk(parts[:len(parts)-1], false)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", e.Linkname, err)
	}
	var d dirent
	if from != nil {
		d = from.children[parts[len(parts)-1]]
	}
	switch {
	case d.node == nil:
		return fmt.Errorf("hard link to %.200q, which does not exist", e.Linkname)
	case d.node.attr.Type == Dir:
		return fmt.Errorf("hard link to %.200q, which is a directory", e.Linkname)
	}
	d.node.attr.Mode, d.node.attr.UID, d.node.attr.GID, d.node.attr.Mtime = e.Mode&0o7777, e.UID, e.GID, e.Mtime
	b.put(dir, name, d.node)
	return nil
}
