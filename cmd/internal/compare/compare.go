// Package compare tells the first difference between two EROFS images: in names, types, modes, owners, times, link counts and which
// names are one inode, devices, targets, attributes, contents.
package compare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pexfs/pex/erofs"
)

// ErrDiffer is wrapped by an error that names a difference.
var ErrDiffer = errors.New("the images differ")

// Side is one of two images: its metadata, which also reads contents.
type Side struct {
	Name  string // for messages
	Image *erofs.Image
	// Rounded says that times may have been rounded to seconds, as tables of contents have them.
	Rounded bool
}

// pair is a directory in both.
type pair struct {
	path string
	a, b erofs.Inode
}

type comparer struct {
	ctx   context.Context
	a, b  Side
	links map[uint64]uint64 // nid in a of an inode of several names -> nid in b
	tell  func(bytes int64)
	done  int64
	bufA  []byte
	bufB  []byte
}

// Images compares all of a with all of b; it takes memory for the inodes of several names, not for others. progress, which may be nil,
// is told how many bytes of content were compared. Directories that are deeper than a path can be long are refused, so cycles of a
// hostile image end.
func Images(ctx context.Context, a, b Side, progress func(int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	c := &comparer{ctx: ctx, a: a, b: b, links: make(map[uint64]uint64), tell: progress, bufA: make([]byte, 1<<20), bufB: make([]byte, 1<<20)}
	ra, err := a.Image.Inode(a.Image.Super().RootNid)
	if err != nil {
		return fmt.Errorf("reading %s: %w", a.Name, err)
	}
	rb, err := b.Image.Inode(b.Image.Super().RootNid)
	if err != nil {
		return fmt.Errorf("reading %s: %w", b.Name, err)
	}
	if err := c.inode("/", ra, rb); err != nil {
		return err
	}
	for todo := []pair{{"", ra, rb}}; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if todo, err = c.directory(p, todo); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparer) differ(path, format string, args ...any) error {
	return fmt.Errorf("%w: %q: %s", ErrDiffer, path, fmt.Sprintf(format, args...))
}

// name is a name in a directory.
type name struct {
	name string
	nid  uint64
}

func names(s Side, dir erofs.Inode) (all []name, err error) {
	err = s.Image.ReadDir(dir, 0, func(d erofs.Dirent) bool {
		if n := string(d.Name); n != "." && n != ".." {
			all = append(all, name{n, d.Nid})
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.Name, err)
	}
	return all, nil
}

// directory compares the names of a directory, which are sorted in both, and adds its folders to todo.
func (c *comparer) directory(p pair, todo []pair) ([]pair, error) {
	as, err := names(c.a, p.a)
	if err != nil {
		return nil, err
	}
	bs, err := names(c.b, p.b)
	if err != nil {
		return nil, err
	}
	for i := 0; i < max(len(as), len(bs)); i++ {
		switch {
		case i >= len(as) || i < len(bs) && bs[i].name < as[i].name:
			return nil, c.differ(p.path+"/"+bs[i].name, "only %s has it", c.b.Name)
		case i >= len(bs) || as[i].name < bs[i].name:
			return nil, c.differ(p.path+"/"+as[i].name, "only %s has it", c.a.Name)
		}
		path := p.path + "/" + as[i].name
		if len(path) > 1<<16 {
			return nil, fmt.Errorf("comparing images: a path of %d bytes", len(path))
		}
		a, err := c.a.Image.Inode(as[i].nid)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %q: %w", c.a.Name, path, err)
		}
		b, err := c.b.Image.Inode(bs[i].nid)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %q: %w", c.b.Name, path, err)
		}
		if !a.IsDir() && a.Nlink > 1 {
			if other, seen := c.links[a.Nid]; seen {
				if other != b.Nid {
					return nil, c.differ(path, "it is one inode with another name in %s, not in %s", c.a.Name, c.b.Name)
				}
				continue
			}
			c.links[a.Nid] = b.Nid
		}
		if err := c.inode(path, a, b); err != nil {
			return nil, err
		}
		if a.IsDir() {
			todo = append(todo, pair{path, a, b})
		}
	}
	return todo, nil
}

func (c *comparer) inode(path string, a, b erofs.Inode) error {
	switch {
	case a.Mode != b.Mode:
		return c.differ(path, "mode %#o in %s, %#o in %s", a.Mode, c.a.Name, b.Mode, c.b.Name)
	case a.UID != b.UID || a.GID != b.GID:
		return c.differ(path, "owner %d:%d in %s, %d:%d in %s", a.UID, a.GID, c.a.Name, b.UID, b.GID, c.b.Name)
	case a.Nlink != b.Nlink:
		return c.differ(path, "%d links in %s, %d in %s", a.Nlink, c.a.Name, b.Nlink, c.b.Name)
	case a.Size != b.Size && !a.IsDir():
		return c.differ(path, "%d bytes in %s, %d in %s", a.Size, c.a.Name, b.Size, c.b.Name)
	case a.Rdev != b.Rdev:
		return c.differ(path, "device %#x in %s, %#x in %s", a.Rdev, c.a.Name, b.Rdev, c.b.Name)
	case !c.sameTime(a, b):
		return c.differ(path, "time %d.%09d in %s, %d.%09d in %s", a.Mtime, a.MtimeNsec, c.a.Name, b.Mtime, b.MtimeNsec, c.b.Name)
	}
	xa, err := c.a.Image.Xattrs(a)
	if err != nil {
		return fmt.Errorf("reading %s: %q: %w", c.a.Name, path, err)
	}
	xb, err := c.b.Image.Xattrs(b)
	if err != nil {
		return fmt.Errorf("reading %s: %q: %w", c.b.Name, path, err)
	}
	if !slices.EqualFunc(xa, xb, func(x, y erofs.Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }) {
		return c.differ(path, "attributes %.300q in %s, %.300q in %s", xa, c.a.Name, xb, c.b.Name)
	}
	switch {
	case a.IsSymlink():
		ta, err := c.a.Image.Readlink(a)
		if err != nil {
			return fmt.Errorf("reading %s: %q: %w", c.a.Name, path, err)
		}
		tb, err := c.b.Image.Readlink(b)
		if err != nil {
			return fmt.Errorf("reading %s: %q: %w", c.b.Name, path, err)
		}
		if !bytes.Equal(ta, tb) {
			return c.differ(path, "target %.200q in %s, %.200q in %s", ta, c.a.Name, tb, c.b.Name)
		}
	case a.IsRegular():
		return c.content(path, a, b)
	}
	return nil
}

// sameTime compares times; a rounded one may be up to a second away, on a whole second.
func (c *comparer) sameTime(a, b erofs.Inode) bool {
	if a.Mtime == b.Mtime && a.MtimeNsec == b.MtimeNsec {
		return true
	}
	near := func(r, exact erofs.Inode) bool {
		return r.MtimeNsec == 0 && exact.MtimeNsec != 0 && (r.Mtime == exact.Mtime || r.Mtime == exact.Mtime+1)
	}
	return c.a.Rounded && near(a, b) || c.b.Rounded && near(b, a)
}

func (c *comparer) content(path string, a, b erofs.Inode) error {
	for off := int64(0); off < a.Size; {
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		n := min(a.Size-off, int64(len(c.bufA)))
		pa, pb := c.bufA[:n], c.bufB[:n]
		if _, err := c.a.Image.ReadFileAt(a, pa, off); err != nil {
			return fmt.Errorf("reading %s: %q: %w", c.a.Name, path, err)
		}
		if _, err := c.b.Image.ReadFileAt(b, pb, off); err != nil {
			return fmt.Errorf("reading %s: %q: %w", c.b.Name, path, err)
		}
		if !bytes.Equal(pa, pb) {
			i := 0
			for pa[i] == pb[i] {
				i++
			}
			return c.differ(path, "byte %d is %#x in %s, %#x in %s", off+int64(i), pa[i], c.a.Name, pb[i], c.b.Name)
		}
		off += n
		c.done += n
		c.tell(c.done)
	}
	return nil
}
