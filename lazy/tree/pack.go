package tree

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Part is a tree and where in another its root goes.
type Part struct {
	Prefix string // relative and clean: no empty component, none that is "." or ".."
	Tree   *Tree
}

// Pack makes one tree that has each part's tree below its prefix. The directories above the prefixes are as implied ones: 0755,
// root's, time 0. Contents keep their numbers but count layers over all parts, in their order; so do ambiguities. Hard links stay
// within their part.
//
// It is an error if a prefix is not clean, has a component longer than 255 bytes or one that begins as a whiteout does, has
// more than 4,096 bytes, or if two are equal or one is inside the other.
func Pack(parts []Part) (*Tree, error) {
	p := &packer{parts: parts, root: prefixDir{part: -1}, tree: &Tree{}}
	for i, part := range parts {
		if err := p.add(part, i); err != nil {
			return nil, fmt.Errorf("packing a tree below %.200q: %w", part.Prefix, err)
		}
	}
	p.number()
	return p.tree, nil
}

// prefixDir is a directory above the parts, or the place of a part's root.
type prefixDir struct {
	children map[string]*prefixDir
	part     int // -1 where no part's root goes
}

// place is a directory of the packed tree, as it is numbered: one above the parts, or one of a part.
type place struct {
	prefix *prefixDir // nil in a part
	part   int
	from   Ino // in the part
	to     Ino // in the packed tree
}

type packer struct {
	parts  []Part
	root   prefixDir
	tree   *Tree
	layers []int32 // of the parts before each part
	names  int
	inodes int
	moved  [][]Ino // of each part, the number of each inode in the packed tree; 0 while it has none
}

func (p *packer) add(part Part, n int) error {
	parts, climbs := split(nil, part.Prefix)
	if err := checkName(part.Prefix, parts); err != nil {
		return err
	}
	if climbs || len(parts) == 0 || strings.Join(parts, "/") != part.Prefix {
		return errors.New("the prefix is not a clean relative path")
	}
	if len(part.Prefix) > maxPath {
		return fmt.Errorf("a prefix of %d bytes, more than %d", len(part.Prefix), maxPath)
	}
	at := &p.root
	for _, c := range parts {
		if strings.HasPrefix(c, whiteout) {
			return fmt.Errorf("its component %.200q is a whiteout's name", c)
		}
		if at.part >= 0 {
			return fmt.Errorf("the prefix is inside %.200q, where another tree goes", p.parts[at.part].Prefix)
		}
		next := at.children[c]
		if next == nil {
			if at.children == nil {
				at.children = make(map[string]*prefixDir)
			}
			next = &prefixDir{part: -1}
			at.children[c] = next
			p.names++
			p.inodes++
		}
		at = next
	}
	switch {
	case at.part >= 0:
		return errors.New("another tree goes there too")
	case at.children != nil:
		return errors.New("another tree goes inside it")
	}
	at.part = n
	t, all := part.Tree, p.tree
	p.layers = append(p.layers, int32(all.layers))
	p.moved = append(p.moved, make([]Ino, len(t.inodes)))
	p.names += len(t.names)
	p.inodes += len(t.inodes) - 1
	if all.layers+t.layers > math.MaxInt32 || p.inodes >= math.MaxUint32 || p.names > math.MaxUint32 {
		return errors.New("together they have more layers, inodes or names than can be counted")
	}
	for _, a := range t.ambiguous[:min(len(t.ambiguous), maxAmbiguous-len(all.ambiguous))] {
		a.Layer += all.layers
		all.ambiguous = append(all.ambiguous, a)
	}
	all.ambiguities += t.ambiguities
	all.layers += t.layers
	return nil
}

// number makes the tree, breadth first as Builder.Build does.
func (p *packer) number() {
	t := p.tree
	t.inodes = make([]*inode, 1, p.inodes+1)
	t.names = make([]Dirent, 0, p.names)
	t.inodes[0] = &inode{attr: implied}
	queue := []place{{prefix: &p.root}}
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		if dir.prefix != nil && dir.prefix.part >= 0 {
			dir = place{part: dir.prefix.part, to: dir.to}
		}
		first := len(t.names)
		if dir.prefix != nil {
			queue = p.numberPrefix(queue, dir)
		} else {
			queue = p.numberPart(queue, dir)
		}
		in := t.inodes[dir.to]
		in.first, in.count = uint32(first), uint32(len(t.names)-first)
	}
}

// numberPrefix numbers what is in a directory above the parts.
func (p *packer) numberPrefix(queue []place, dir place) []place {
	t := p.tree
	names := make([]string, 0, len(dir.prefix.children))
	for name := range dir.prefix.children {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		child := dir.prefix.children[name]
		to := Ino(len(t.inodes))
		in := inode{attr: implied}
		if child.part >= 0 {
			in = *p.parts[child.part].Tree.inodes[0]
		}
		t.inodes = append(t.inodes, &in)
		t.names = append(t.names, Dirent{strings.Clone(name), to, Dir})
		queue = append(queue, place{prefix: child, to: to})
	}
	t.inodes[dir.to].attr.Nlink = 2 + uint32(len(names))
	return queue
}

// numberPart numbers what is in a directory of a part.
func (p *packer) numberPart(queue []place, dir place) []place {
	t, part, moved := p.tree, p.parts[dir.part].Tree, p.moved[dir.part]
	for d := range part.Children(dir.from) {
		if moved[d.Ino] == 0 {
			moved[d.Ino] = Ino(len(t.inodes))
			in := *part.inodes[d.Ino]
			if in.attr.Content.Layer >= 0 {
				in.attr.Content.Layer += p.layers[dir.part]
			}
			t.inodes = append(t.inodes, &in)
			if d.Type == Dir {
				queue = append(queue, place{part: dir.part, from: d.Ino, to: moved[d.Ino]})
			}
		}
		t.names = append(t.names, Dirent{d.Name, moved[d.Ino], d.Type})
	}
	return queue
}
