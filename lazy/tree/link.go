package tree

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// link applies a hard link.
func (b *Builder) link(dir *node, name string, e *Entry) error {
	parts, climbs := b.split(e.Linkname)
	if climbs {
		b.note("the hard link's target %.200q climbs above the root", e.Linkname)
	}
	if len(parts) == 0 {
		return fmt.Errorf("a hard link to %.200q, which is the root", e.Linkname)
	}
	last := parts[len(parts)-1]
	from, err := b.walk(parts[:len(parts)-1], false)
	if err != nil {
		return fmt.Errorf("a hard link to %.200q: %w", e.Linkname, err)
	}
	var d dirent
	if from != nil {
		d = from.children[last]
	}
	switch {
	case d.node == nil:
		return fmt.Errorf("a hard link to %.200q, which does not exist", e.Linkname)
	case d.node.attr.Type == Dir:
		return fmt.Errorf("a hard link to %.200q, which is a directory", e.Linkname)
	}
	if err := dir.fits(name); err != nil {
		return err
	}
	if d.layer != b.layer {
		b.note("a hard link to %.200q, which this layer doesn't give", e.Linkname)
	}
	before := d.node.attr
	b.setOwner(d.node, e)
	if before != d.node.attr || d.node.lacks(e.Xattrs) {
		b.note("a hard link whose mode, owner, time or attributes aren't those of its target %.200q", e.Linkname)
	}
	if from == dir && last == name {
		b.note("a hard link to itself")
		b.put(dir, name, d.node)
		return nil
	}
	if within(from, dir.children[name].node) {
		b.note("a hard link to %.200q, which goes with the directory that it replaces", e.Linkname)
	}
	b.give(dir, name, d.node)
	return nil
}

// within tells whether dir is what or below it. It takes time only where a link replaces a directory.
func within(dir, what *node) bool {
	if what == nil || what.attr.Type != Dir {
		return false
	}
	for dir != what {
		if dir == dir.parent {
			return false
		}
		dir = dir.parent
	}
	return true
}

// lacks tells whether one of the attributes isn't an inode's.
func (n *node) lacks(xattrs []Xattr) bool {
	return slices.ContainsFunc(xattrs, func(x Xattr) bool {
		i, ok := slices.BinarySearchFunc(n.xattrs, x.Name, func(y Xattr, name string) int { return strings.Compare(y.Name, name) })
		return !ok || !bytes.Equal(n.xattrs[i].Value, x.Value)
	})
}
