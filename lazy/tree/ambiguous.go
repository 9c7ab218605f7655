package tree

import "fmt"

// maxAmbiguous is how many ambiguities are kept; all are counted.
const maxAmbiguous = 100

// Ambiguity is something in a layer that was decided although unpackers that people use decide it in different ways, or
// the specification says nothing of it. Layers and entries count from 0. Name is as the entry has it, What a sentence.
//
// These are ambiguous, because in brackets:
//
//   - a name, a hard link's target or a symlink among the parents that climbs above the root (clamped or refused)
//   - a name that the layer gave before, or something below it, but for a directory listed again (the first wins, the last wins,
//     refused)
//   - a parent that is a symlink of a lower layer, or a symlink to a directory that this layer doesn't have (followed; or, where
//     each layer is unpacked to a folder of its own that overlayfs stacks, replaced by a directory or refused)
//   - a parent that was something else and becomes a directory (replaced or refused)
//   - a directory that is only implied, in one with setgid (root's; or of that one's group, or with setgid, too)
//   - a whiteout behind an entry of its name or below it, of the same layer (the entry stays or goes)
//   - a whiteout, and a directory of its name that the same layer gives in place of a lower directory, or that it only implies (with
//     overlayfs the lower one shines through, or refused)
//   - an opaque marker behind entries below directories that the layer doesn't list (they stay or go)
//   - an entry below a whiteout's or AUFS's name, and AUFS's own names (left out, made, or used as link targets)
//   - a hard link to a name that its layer doesn't give, to itself, or to something that it replaces (made or refused)
//   - a hard link with another mode, owner or time than its target, or with an attribute that the target doesn't have
//     (applied or not)
//   - an attribute given twice with different values, and overlayfs's own attributes (dropped, or they change the tree)
//   - an owner of 2^32-1 (none, as to chown(2); or that number)
//   - a character device 0:0 (a device, or overlayfs's form of a whiteout)
//
// These are not, as every unpacker or nearly every image would be at fault: names with "./", "/" or ".." in them
// that stay inside the root; directories listed again; an entry of the root; parents that no layer or only a lower one lists;
// symlinked parents that the same layer gives, whatever way the link is written; whiteouts and opaque markers of nothing, or
// ahead of what else their layer gives.
type Ambiguity struct {
	Layer, Entry int
	Name, What   string
}

// String reads as the text of an EntryError does.
func (a Ambiguity) String() string { return at(a.Layer, a.Entry, a.Name) + a.What }

func at(layer, entry int, name string) string {
	return fmt.Sprintf("layer %d, entry %d %.200q: ", layer, entry, name)
}

// Ambiguous are the first 100 ambiguities that were met while the tree was built, in the order of the entries. The caller
// must not change them.
func (t *Tree) Ambiguous() []Ambiguity { return t.ambiguous }

// AmbiguousCount is how many ambiguities were met, those that Ambiguous leaves out included.
func (t *Tree) AmbiguousCount() int { return t.ambiguities }

// note records an ambiguity of the entry that is being applied.
func (b *Builder) note(format string, args ...any) {
	b.ambiguities++
	if len(b.ambiguous) < maxAmbiguous {
		b.ambiguous = append(b.ambiguous, Ambiguity{int(b.layer), b.entry, b.name, fmt.Sprintf(format, args...)})
	}
}
