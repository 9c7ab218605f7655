package tree

import (
	"errors"
	"iter"
	"slices"
	"strings"
)

// Ino is the number of an inode of a Tree: dense, from 0, the root, to Len()-1. The inodes of a directory's names follow
// each other, sorted by name, but for those that another directory named before; directories come breadth first.
type Ino uint32

// Content says which layer (0 is the bottom one) has a regular file's content, and the layer's number for it.
type Content struct{ Layer, Index int32 }

var noContent = Content{Layer: -1}

// implied is what a directory that no entry describes is.
var implied = Attr{Type: Dir, Mode: 0o755, Content: noContent}

// Attr is what an inode is.
type Attr struct {
	Type         Type
	Mode         uint32 // 12 bits
	UID, GID     uint32
	Size         int64 // of a regular file's content or a symlink's target, in bytes
	Mtime        Time
	Nlink        uint32 // names; of a directory 2 and one for each subdirectory
	Major, Minor uint32
	Target       string  // of a symlink
	Content      Content // Layer is -1 where there is none
}

// Dirent is a name in a directory.
type Dirent struct {
	Name string
	Ino  Ino
	Type Type
}

// Tree is a frozen directory tree. It may be read concurrently.
type Tree struct {
	inodes []*inode // those that a Builder made: a tree this large is not copied
	names  []Dirent // a directory's are together
	layers int

	ambiguous   []Ambiguity
	ambiguities int
}

type inode struct {
	attr         Attr
	xattrs       []Xattr
	first, count uint32 // of a directory: its part of names
}

// Build freezes what was added. The Builder is of no use afterwards.
func (b *Builder) Build() (*Tree, error) {
	if b.err != nil {
		return nil, b.err
	}
	b.err = errors.New("the tree was built already")
	names := b.names()
	t := &Tree{
		inodes: make([]*inode, 0, min(b.nodes, names+1)), names: make([]Dirent, 0, names), layers: int(b.layer) + 1,
		ambiguous: b.ambiguous, ambiguities: b.ambiguities,
	}
	number := func(n *node) {
		n.number = Ino(len(t.inodes))
		t.inodes = append(t.inodes, &n.inode)
	}
	number(b.root)
	queue := []*node{b.root}
	for len(queue) > 0 {
		dir := queue[0]
		queue[0] = nil
		queue = queue[1:]
		first, subdirs := len(t.names), uint32(0)
		for name, d := range dir.children {
			t.names = append(t.names, Dirent{Name: name, Type: d.node.attr.Type})
		}
		ds := t.names[first:]
		slices.SortFunc(ds, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
		for i := range ds {
			n := dir.children[ds[i].Name].node
			if n.number == 0 { // the root's, which has no name
				number(n)
				if n.attr.Type == Dir {
					queue = append(queue, n)
				}
			}
			ds[i].Ino = n.number
			if n.attr.Type == Dir {
				subdirs++
			} else {
				n.attr.Nlink++
			}
		}
		dir.dirState = nil
		dir.first, dir.count, dir.attr.Nlink = uint32(first), uint32(len(ds)), 2+subdirs
	}
	b.root, b.marked = nil, nil
	return t, nil
}

// names counts the names in all directories.
func (b *Builder) names() (n int) {
	for todo := []*node{b.root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		n += len(dir.children)
		for _, d := range dir.children {
			if d.node.attr.Type == Dir {
				todo = append(todo, d.node)
			}
		}
	}
	return n
}

// Len is the number of inodes.
func (t *Tree) Len() int { return len(t.inodes) }

// Layers is the number of layers that were added.
func (t *Tree) Layers() int { return t.layers }

// Stat tells what an inode is.
func (t *Tree) Stat(i Ino) Attr { return t.inodes[i].attr }

// Children yields the names of a directory, sorted by their bytes.
func (t *Tree) Children(i Ino) iter.Seq[Dirent] {
	n := t.inodes[i]
	return slices.Values(t.names[n.first:][:n.count])
}

// Xattrs yields the extended attributes of an inode, sorted by name.
func (t *Tree) Xattrs(i Ino) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for _, x := range t.inodes[i].xattrs {
			if !yield(x.Name, x.Value) {
				return
			}
		}
	}
}
