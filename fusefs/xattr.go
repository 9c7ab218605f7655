package fusefs

import (
	"errors"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/pexfs/pex/erofs"
)

// attributes knows whether an image has extended attributes at all. Most have none, and `ls -l` asks for the access list of every
// file: once that is known, the answer is ENOSYS, and the kernel asks no more.
type attributes struct {
	asked atomic.Uint64 // how often, without an answer being found
	none  atomic.Bool
}

const (
	// lookAfter is how many questions in vain are a reason to look through the image: more than a program's start asks.
	lookAfter = 64
	// maxLook is how many names are looked at. An image with more is taken for one that has attributes.
	maxLook = 1 << 20
)

// ask counts a question in vain, and tells whether all would be. One of them waits while the image is looked through, for about a
// microsecond a name.
func (a *attributes) ask(im *erofs.Image) (none bool) {
	if a.asked.Add(1) == lookAfter {
		a.none.Store(hasNone(im))
	}
	return a.none.Load()
}

// hasNone tells whether no inode of an image has attributes.
func hasNone(im *erofs.Image) bool {
	names := 0
	dirs := []uint64{im.Super().RootNid}
	for len(dirs) > 0 {
		dir, err := im.Inode(dirs[len(dirs)-1])
		dirs = dirs[:len(dirs)-1]
		none := err == nil
		look := func(in erofs.Inode) {
			xs, err := im.Xattrs(in)
			none = none && err == nil && len(xs) == 0
		}
		look(dir)
		err = im.ReadDir(dir, 0, func(d erofs.Dirent) bool {
			names++
			none = none && names <= maxLook
			if !none || string(d.Name) == "." || string(d.Name) == ".." {
				return none
			}
			in, err := im.Inode(d.Nid)
			if none = none && err == nil; !none {
				return false
			}
			if in.IsDir() {
				dirs = append(dirs, d.Nid)
			} else {
				look(in)
			}
			return none
		})
		if err != nil || !none {
			return false
		}
	}
	return true
}

func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	in, err := f.im.Inode(h.NodeId)
	if err != nil {
		return 0, f.errno("getxattr", h.NodeId, err)
	}
	v, err := f.im.Xattr(in, name)
	if errors.Is(err, erofs.ErrNoXattr) && f.attributes.ask(f.im) {
		return 0, fuse.ENOSYS
	}
	if err != nil {
		return 0, f.errno("getxattr", h.NodeId, err)
	}
	return answer(dest, v)
}

func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	in, err := f.im.Inode(h.NodeId)
	if err != nil {
		return 0, f.errno("listxattr", h.NodeId, err)
	}
	xs, err := f.im.Xattrs(in)
	if err != nil {
		return 0, f.errno("listxattr", h.NodeId, err)
	}
	var all []byte
	for _, x := range xs {
		all = append(append(all, x.Name...), 0)
	}
	return answer(dest, all)
}

// answer gives v's size to who asks with no room, and ERANGE with too little.
func answer(dest, v []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	copy(dest, v)
	return uint32(len(v)), fuse.OK
}
