package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxID is the largest user or group id.
const maxID = noID - 1

// Shift makes a tree whose user and group ids are those of t and n: one for a user namespace that maps its 0 to n. It shifts the ids
// in POSIX access control lists too, and gives file capabilities the namespace that they count in: those that name none
// (capabilities(7), versions 1 and 2) become version 3 of root id n, those of version 3 have their root id shifted. Other attributes
// stay as they are. With n = 0 the tree is t.
//
// t stays as it is; the trees share memory. An id beyond 2^32-2, or such an attribute that the kernel would not read, is an
// error that names the path.
func Shift(t *Tree, n uint32) (*Tree, error) {
	if n == 0 {
		return t, nil
	}
	s := *t
	all := make([]inode, len(t.inodes))
	s.inodes = make([]*inode, len(all))
	for i := range all {
		all[i] = *t.inodes[i]
		s.inodes[i] = &all[i]
		if err := all[i].shift(n); err != nil {
			return nil, fmt.Errorf("shifting the ids of %.4096q by %d: %w", t.path(Ino(i)), n, err)
		}
	}
	return &s, nil
}

func (in *inode) shift(n uint32) (err error) {
	if in.attr.UID, err = shiftID("user id", in.attr.UID, n); err != nil {
		return err
	}
	if in.attr.GID, err = shiftID("group id", in.attr.GID, n); err != nil {
		return err
	}
	own := false // whether in.xattrs is no other tree's
	for i, x := range in.xattrs {
		var shifted []byte
		switch x.Name {
		case "system.posix_acl_access", "system.posix_acl_default":
			shifted, err = shiftACL(x.Value, n)
		case "security.capability":
			shifted, err = shiftCapability(x.Value, n)
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", x.Name, err)
		}
		if !own {
			in.xattrs, own = slices.Clone(in.xattrs), true
		}
		in.xattrs[i].Value = shifted
	}
	return nil
}

func shiftID(what string, id, n uint32) (uint32, error) {
	if uint64(id)+uint64(n) > maxID {
		return 0, fmt.Errorf("the %s %d would be beyond %d", what, id, uint32(maxID))
	}
	return id + n, nil
}

// The form of an access control list in an attribute (Linux, include/uapi/linux/posix_acl_xattr.h): a version, then entries of tag,
// permissions and id.
const (
	aclVersion  = 2
	aclHeader   = 4
	aclEntry    = 8
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

func shiftACL(value []byte, n uint32) ([]byte, error) {
	le := binary.LittleEndian
	if len(value) < aclHeader || (len(value)-aclHeader)%aclEntry != 0 {
		return nil, fmt.Errorf("an access control list of %d bytes", len(value))
	}
	if v := le.Uint32(value); v != aclVersion {
		return nil, fmt.Errorf("an access control list of version %d, not %d", v, aclVersion)
	}
	value = slices.Clone(value)
	for e := value[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		switch tag := le.Uint16(e); tag {
		case aclUserObj, aclGroupObj, aclMask, aclOther: // their id means nothing
		case aclUser, aclGroup:
			id, err := shiftID("id", le.Uint32(e[4:]), n)
			if err != nil {
				return nil, err
			}
			le.PutUint32(e[4:], id)
		default:
			return nil, fmt.Errorf("an access control list with the unknown tag %#x", tag)
		}
	}
	return value, nil
}

// The form of file capabilities in an attribute (Linux, include/uapi/linux/capability.h, struct vfs_ns_cap_data): a version and
// flags, a permitted and an inheritable set of 32 capabilities (versions 2 and 3: twice), then the root id (version 3).
const (
	capRevision = 0xff000000
	capFlags    = 0x00000001 // VFS_CAP_FLAGS_EFFECTIVE
	capSize1    = 12
	capSize2    = 20
	capSize3    = 24
)

func shiftCapability(value []byte, n uint32) ([]byte, error) {
	le := binary.LittleEndian
	if len(value) < 4 {
		return nil, fmt.Errorf("file capabilities of %d bytes", len(value))
	}
	magic := le.Uint32(value)
	version, want := magic&capRevision>>24, 0
	switch version {
	case 1:
		want = capSize1
	case 2:
		want = capSize2
	case 3:
		want = capSize3
	default:
		return nil, fmt.Errorf("file capabilities of the unknown version %d", version)
	}
	if len(value) != want {
		return nil, fmt.Errorf("file capabilities of version %d with %d bytes, not %d", version, len(value), want)
	}
	if magic&^(capRevision|capFlags) != 0 {
		return nil, errors.New("file capabilities with unknown flags")
	}
	shifted := make([]byte, capSize3)
	copy(shifted, value)
	root := uint32(0)
	if version == 3 {
		root = le.Uint32(value[capSize2:])
	}
	root, err := shiftID("root id", root, n)
	if err != nil {
		return nil, err
	}
	le.PutUint32(shifted, 3<<24|magic&capFlags)
	le.PutUint32(shifted[capSize2:], root)
	return shifted, nil
}

// path is a path of an inode: by its first name in the order of the directories' numbers. It looks through the whole tree.
func (t *Tree) path(i Ino) string {
	type name struct {
		dir  Ino
		name string
	}
	first := make([]name, len(t.inodes))
	for dir := range t.inodes {
		for d := range t.Children(Ino(dir)) {
			if first[d.Ino].name == "" {
				first[d.Ino] = name{Ino(dir), d.Name}
			}
		}
	}
	var up []string
	for ; i != 0; i = first[i].dir {
		up = append(up, first[i].name)
	}
	slices.Reverse(up)
	return "/" + strings.Join(up, "/")
}
