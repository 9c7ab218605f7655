package tree

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What Linux takes; sizes are in bytes.
const (
	maxTarget    = 4095  // of a symlink
	maxXattrName = 255   // XATTR_NAME_MAX
	maxXattr     = 65536 // of an attribute's value (XATTR_SIZE_MAX)
	maxMajor     = 1<<12 - 1
	maxMinor     = 1<<20 - 1
)

const (
	noID   = 1<<32 - 1 // no user and no group
	setgid = 0o2000
)

// node is an inode while the tree is built.
type node struct {
	inode
	*dirState      // of a directory; nil of anything else
	number    Ino  // once built
	implied   bool // a directory that no entry described, or none that still counts
}

// dirState is what a directory is until it is built.
type dirState struct {
	children map[string]dirent // nil while it is empty
	parent   *node
	path     int32 // bytes of its path, a slash behind each name
	// The layer that last put something below this directory, and the last one whose markers hid what lower layers gave
	// here; both one more than the layer's number, so that 0 is none.
	touched, hidden int32
}

// dirent is a name in a directory. layer is the one that last gave it: a whiteout spares what its own layer gave.
type dirent struct {
	node  *node
	layer int32
}

// newNode makes the inode that an entry other than a hard link describes.
func (b *Builder) newNode(e *Entry) (*node, error) {
	if err := b.count(); err != nil {
		return nil, err
	}
	n := &node{inode: inode{attr: Attr{Type: e.Type, Content: noContent}}}
	switch e.Type {
	case Dir, Fifo:
	case Regular:
		if e.Size < 0 {
			return nil, fmt.Errorf("a size of %d bytes", e.Size)
		}
		if n.attr.Size = e.Size; e.Size > 0 {
			n.attr.Content = Content{b.layer, e.Content}
		}
	case Symlink:
		switch {
		case e.Linkname == "":
			return nil, errors.New("a symlink without a target")
		case len(e.Linkname) > maxTarget:
			return nil, fmt.Errorf("a symlink's target of %d bytes, more than %d", len(e.Linkname), maxTarget)
		case strings.IndexByte(e.Linkname, 0) >= 0:
			return nil, fmt.Errorf("a symlink's target with a zero byte, %.200q", e.Linkname)
		}
		n.attr.Target = strings.Clone(e.Linkname)
		n.attr.Size = int64(len(e.Linkname))
	case Char, Block:
		if e.Major > maxMajor || e.Minor > maxMinor {
			return nil, fmt.Errorf("a device %d:%d, beyond %d:%d", e.Major, e.Minor, maxMajor, maxMinor)
		}
		n.attr.Major, n.attr.Minor = e.Major, e.Minor
		if e.Type == Char && e.Major == 0 && e.Minor == 0 {
			b.note("a character device 0:0, which is a whiteout to overlayfs")
		}
	default:
		return nil, fmt.Errorf("an entry of the unknown type %d", e.Type)
	}
	return n, b.setAttr(n, e)
}

// setAttr gives an inode what an entry says of mode, owner, time and attributes.
func (b *Builder) setAttr(n *node, e *Entry) (err error) {
	b.setOwner(n, e)
	n.implied = false
	n.xattrs = nil
	if len(e.Xattrs) > 0 {
		n.xattrs, err = b.xattrs(e.Xattrs)
	}
	return err
}

// setOwner gives an inode what an entry says of mode, owner and time. A symlink's mode is 0777 whatever is said, as Linux has no other,
// and an id that is none changes nothing, as in chown(2).
func (b *Builder) setOwner(n *node, e *Entry) {
	n.attr.Mode, n.attr.Mtime = e.Mode&0o7777, e.Mtime
	if n.attr.Type == Symlink {
		n.attr.Mode = 0o777
	}
	if e.UID == noID || e.GID == noID {
		b.note("the owner %d:%d, where %d means none", e.UID, e.GID, uint32(noID))
	}
	if e.UID != noID {
		n.attr.UID = e.UID
	}
	if e.GID != noID {
		n.attr.GID = e.GID
	}
}

// xattrs are the attributes that are part of the tree, sorted; the first of a name counts.
func (b *Builder) xattrs(all []Xattr) ([]Xattr, error) {
	var kept []Xattr
	for _, x := range all {
		switch {
		case x.Name == "":
			return nil, errors.New("an attribute without a name")
		case len(x.Name) > maxXattrName:
			return nil, fmt.Errorf("an attribute's name of %d bytes, more than %d", len(x.Name), maxXattrName)
		case strings.IndexByte(x.Name, 0) >= 0:
			return nil, fmt.Errorf("an attribute's name with a zero byte, %q", x.Name)
		case len(x.Value) > maxXattr:
			return nil, fmt.Errorf("the attribute %q of %d bytes, more than %d", x.Name, len(x.Value), maxXattr)
		}
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
	}), nil
}

// fits checks the length of the path that a name in this directory has.
func (n *node) fits(name string) error {
	if size := int(n.path) + len(name); size > maxPath {
		return fmt.Errorf("a path of %d bytes when symlinks are followed, more than %d", size, maxPath)
	}
	return nil
}

// below makes a new directory one of dir.
func (n *node) below(dir *node, name string) {
	n.dirState = &dirState{parent: dir, path: dir.path + int32(len(name)) + 1}
}

// forget makes a directory as if implied.
func (n *node) forget() {
	n.attr = implied
	n.xattrs = nil
	n.implied = true
}
