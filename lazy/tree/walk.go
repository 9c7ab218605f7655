package tree

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits of names, as Linux has them, and of symlinks followed in one look-up.
const (
	maxName  = 255
	maxPath  = 4096
	maxLinks = 40
)

// Bounds of the components of symlink targets that all look-ups of a Builder follow together: 40 links of 2,000 components for each of
// a million entries would take hours.
const (
	freeSteps  = 5_000_000
	entrySteps = 16 // more for each entry
)

// split cleans a name into its components. "." and empty ones go; ".." takes the one before away. climbs says that it
// would have left the root. A whiteout may be longer than a file's name by its prefix.
func split(name string) (parts []string, climbs bool, err error) {
	if len(name) >= maxPath {
		return nil, false, fmt.Errorf("the name has %d bytes, more than %d", len(name), maxPath-1)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, false, errors.New("the name has a zero byte")
	}
	parts = make([]string, 0, strings.Count(name, "/")+1)
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			if len(parts) == 0 {
				climbs = true
			} else {
				parts = parts[:len(parts)-1]
			}
		case len(p) > maxName && !(strings.HasPrefix(p, whiteout) && len(p) <= maxName+len(whiteout)):
			return nil, false, fmt.Errorf("a component of the name has %d bytes, more than %d", len(p), maxName)
		default:
			parts = append(parts, p)
		}
	}
	return parts, climbs, nil
}

// walk finds the directory that these components lead to, through symlinks, inside the root. With create, what is
// missing or is no directory becomes one; else it is nil. The components of parts are in use no more when walk returns.
func (b *Builder) walk(parts []string, create bool) (*node, error) {
	dir := b.root
	todo := parts
	slices.Reverse(todo)
	own := len(todo) // those at the bottom of todo that are the name's own, not a symlink's
	links, foreign, climbed := 0, false, false
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		linked := len(todo) >= own // p came from a symlink
		own = min(own, len(todo))
		if p == ".." {
			if dir == b.root && !climbed {
				climbed = true
				b.note("a symlink among the parents climbs above the root")
			}
			dir = dir.parent
			continue
		}
		d, ok := dir.children[p]
		mine := ok && (d.layer == b.layer || d.node.attr.Type == Dir && d.node.touched == b.layer+1)
		if !foreign && (linked && !mine || ok && !mine && d.node.attr.Type == Symlink) {
			foreign = true
			b.note("a parent is a symlink of a lower layer, or one to what this layer doesn't have: %.200q", p)
		}
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
			n := len(todo)
			for t := range strings.SplitSeq(target, "/") {
				if t != "" && t != "." {
					todo = append(todo, t)
				}
			}
			slices.Reverse(todo[n:])
			if b.steps += 1 + strings.Count(target, "/"); b.steps > freeSteps+entrySteps*b.entries {
				return nil, fmt.Errorf("the parents of %d names lead through %d names of symlink targets", b.entries, b.steps)
			}
		case !create:
			return nil, nil
		case len(p) > maxName:
			return nil, fmt.Errorf("a component of a symlink's target has %d bytes", len(p))
		default:
			if ok {
				b.note("the parent %.200q was no directory and becomes one", p)
			}
			if err := b.count(); err != nil {
				return nil, err
			}
			n := &node{parent: dir}
			n.forget()
			b.put(dir, p, n)
			dir = n
		}
	}
	return dir, nil
}
