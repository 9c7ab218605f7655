package tree

import (
	"fmt"
	"strings"
)

// Names of markers (OCI image-spec, layer.md, "Whiteouts"), and of AUFS's own files.
const (
	whiteout = ".wh."
	aufs     = ".wh..wh."
	opaque   = ".wh..wh..opq"
)

// mark is a name that a layer whited out. Its value in Builder.marked is whether it was a lower layer's directory.
type mark struct {
	dir  *node
	name string
}

// marker applies a whiteout or an opaque marker.
func (b *Builder) marker(parent []string, name string) error {
	hide := strings.TrimPrefix(name, whiteout)
	switch {
	case name == opaque:
	case strings.HasPrefix(name, aufs):
		b.note("it has a name of AUFS's own and is left out")
		return nil
	case hide == "" || hide == "." || hide == "..":
		return fmt.Errorf("a whiteout of %q", hide)
	}
	dir, err := b.walk(parent, true) // a marker implies its directory, as any entry does
	if err != nil {
		return err
	}
	b.touch(dir)
	if name == opaque {
		if b.hide(dir) {
			b.note("an opaque marker behind entries below directories that the layer doesn't list")
		}
		return nil
	}
	d, ok := dir.children[hide]
	if ok && b.spare(d) {
		b.note("a whiteout behind an entry of %.200q or below it", hide)
		return nil
	}
	delete(dir.children, hide)
	b.marked[mark{dir, strings.Clone(hide)}] = ok && d.node.attr.Type == Dir
	return nil
}

// spare tells whether a name stays although its directory or itself is hidden: this layer gave it, or something below it. Then
// only what lower layers gave below it goes, and a directory that only lower layers describe is as if implied.
func (b *Builder) spare(d dirent) bool {
	if d.node.attr.Type != Dir {
		return d.layer == b.layer
	}
	if d.layer != b.layer {
		if d.node.touched != b.layer+1 {
			return false
		}
		d.node.forget()
	}
	b.hide(d.node)
	return true
}

// hide takes everything that lower layers gave out of a directory, at any depth. It tells whether directories stay that this layer
// has something below of but doesn't list.
func (b *Builder) hide(dir *node) (unlisted bool) {
	for todo := []*node{dir}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if dir.hidden == b.layer+1 {
			continue // and nothing of a lower layer came back since
		}
		dir.hidden = b.layer + 1
		var kept map[string]dirent // not the old map, whose size would never shrink
		for name, d := range dir.children {
			isDir := d.node.attr.Type == Dir
			if d.layer != b.layer {
				if !isDir || d.node.touched != b.layer+1 {
					continue
				}
				d.node.forget()
			}
			if isDir {
				unlisted = unlisted || d.node.implied
				todo = append(todo, d.node)
			}
			if kept == nil {
				kept = make(map[string]dirent)
			}
			kept[name] = d
		}
		dir.children = kept
	}
	return unlisted
}
