package tree

import (
	"fmt"
	"slices"
	"strings"
)

// maxLinks is how many symlinks Linux follows in one look-up.
const maxLinks = 40

// Bounds of the components of symlink targets that all look-ups of a Builder follow together: 40 links of 2,000 components for each of
// a million entries would take hours.
const (
	freeSteps  = 5_000_000
	entrySteps = 16 // more for each entry
)

// walk finds the directory that these components lead to, through symlinks, inside the root. With create, what is
// missing or is no directory becomes one; else it is nil. parts are in another order, or others, when walk returns.
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
		mine := ok && b.gave(d)
		if !foreign && (linked && !mine || ok && !mine && d.node.attr.Type == Symlink) {
			foreign = true
			b.note("a parent is a symlink of a lower layer, or one to what this layer doesn't have: %.200q", p)
		}
		switch {
		case ok && d.node.attr.Type == Dir:
			dir = d.node
		case ok && d.node.attr.Type == Symlink:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("more than %d symlinks lead to its directory", maxLinks)
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
			b.steps += 1 + strings.Count(target, "/")
			if most := freeSteps + entrySteps*b.entries; b.steps > most {
				return nil, fmt.Errorf("the symlinks among the parents of %d entries have more than %d components to follow", b.entries, most)
			}
		case !create:
			return nil, nil
		case strings.HasPrefix(p, whiteout):
			return nil, fmt.Errorf("a symlink among the parents to %.200q, a whiteout's name", p)
		case len(p) > maxName:
			return nil, fmt.Errorf("a symlink among the parents to a name of %d bytes, more than %d", len(p), maxName)
		default:
			if err := dir.fits(p); err != nil {
				return nil, err
			}
			if ok {
				b.note("the parent %.200q was no directory and becomes one", p)
			}
			if dir.attr.Mode&setgid != 0 {
				b.note("the parent %.200q is only implied, in a directory with setgid", p)
			}
			if err := b.count(); err != nil {
				return nil, err
			}
			n := new(node)
			n.below(dir, p)
			n.forget()
			b.put(dir, p, n)
			dir = n
		}
	}
	return dir, nil
}
