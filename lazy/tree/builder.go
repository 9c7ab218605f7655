package tree

import (
	"errors"
	"fmt"
	"iter"
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

	parts []string // components of the name being looked up
}

// NewBuilder makes a Builder of an empty tree: a root of mode 0755 that belongs to root, time 0.
func NewBuilder(o Options) *Builder {
	if o.MaxInodes == 0 {
		o.MaxInodes = DefaultMaxInodes
	}
	b := &Builder{opt: o, layer: -1, nodes: 1, marked: make(map[mark]bool)}
	b.root = &node{dirState: new(dirState)}
	b.root.forget()
	b.root.parent = b.root
	return b
}

// AddLayer applies a layer on top of those before it. The values of attributes are kept, not copied. After an error the Builder is of no use any more; an error of an
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
	parts, climbs := b.split(e.Name)
	if err := checkName(e.Name, parts); err != nil {
		return err
	}
	if climbs {
		b.note("the name climbs above the root")
	}
	if len(parts) == 0 {
		if e.Type != Dir {
			return errors.New("an entry of the root that is no directory")
		}
		return b.setAttr(b.root, e)
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
		b.give(dir, last, old.node)
		return b.setAttr(old.node, e)
	}
	if err := dir.fits(last); err != nil {
		return err
	}
	n, err := b.newNode(e)
	if err != nil {
		return err
	}
	if n.attr.Type == Dir {
		n.below(dir, last)
	}
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

// give gives a name an inode because an entry says so.
func (b *Builder) give(dir *node, name string, n *node) {
	if old, ok := dir.children[name]; ok && b.gave(old) && (n.attr.Type != Dir || old.node.attr.Type != Dir) {
		if old.layer == b.layer {
			b.note("the layer gave this name before")
		} else {
			b.note("the layer gave something below this name before")
		}
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

// gave tells whether the layer being applied gave a name, or something below it.
func (b *Builder) gave(d dirent) bool {
	return d.layer == b.layer || d.node.attr.Type == Dir && d.node.touched == b.layer+1
}

// touch notes that this layer has something in dir.
func (b *Builder) touch(dir *node) {
	for d := dir; d.touched != b.layer+1; d = d.parent {
		d.touched = b.layer + 1
	}
}
