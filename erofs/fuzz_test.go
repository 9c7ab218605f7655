package erofs_test

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// hostile makes an image of a superblock and metadata. Beyond them, up to what the superblock says, it reads as zeros.
func hostile(super, meta []byte) *sparse {
	s := &sparse{super: make([]byte, disk.BlockSize), meta: meta}
	copy(s.super[disk.SuperOffset:], super)
	var d disk.Super
	d.Decode(s.super[disk.SuperOffset:])
	s.metaOff = int64(d.MetaBlock) * disk.BlockSize
	s.size = min(max(int64(d.Blocks)*disk.BlockSize, disk.BlockSize), 64*mib)
	s.fixChecksum()
	return s
}

// seeds gives what hostile makes good images of.
func seeds(f *testing.F) {
	for _, layers := range [][][]tree.Entry{
		nil,
		goldenEntries(),
		{{dir("a/b/c", 0o755), reg("a/f", 10, 1), hard("a/b/g", "a/f"), with(link("l", "t"), tree.Xattr{Name: "trusted.x", Value: []byte("y")})}},
	} {
		s := newFixture(f, layers...).sparse(f)
		f.Add(s.super[disk.SuperOffset:][:disk.SuperSize], bytes.TrimRight(s.meta, "\x00"))
	}
}

// walk reads an image breadth first, at most so many names of it, and gives the first error.
func walk(im *erofs.Image, steps int) error {
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	for todo := []uint64{im.Super().RootNid}; len(todo) > 0; todo = todo[1:] {
		in, err := im.Inode(todo[0])
		note(err)
		if err != nil {
			continue
		}
		xs, err := im.Xattrs(in)
		note(err)
		for _, x := range xs[:min(len(xs), 10)] {
			_, err := im.Xattr(in, x.Name)
			note(err)
		}
		switch {
		case in.IsSymlink():
			_, err := im.Readlink(in)
			note(err)
		case in.IsRegular():
			off, err := im.DataOff(in)
			note(err)
			if err == nil && (off < 0 || in.Size < 0 || off > im.Super().Size-in.Size) {
				panic("content beyond the image")
			}
		case in.IsDir():
			_, err := im.Lookup(in, "no such name")
			if !errors.Is(err, fs.ErrNotExist) {
				note(err)
			}
			err = im.ReadDir(in, 0, func(d erofs.Dirent) bool {
				steps--
				nid, err := im.Lookup(in, string(d.Name))
				if err == nil && nid != d.Nid {
					err = errors.New("look-up and listing differ")
				}
				note(err)
				if name := string(d.Name); name != "." && name != ".." {
					todo = append(todo, d.Nid)
				}
				return steps > 0
			})
			note(err)
		}
		if steps <= 0 {
			break
		}
	}
	return first
}

// FuzzOpen reads images of any bytes.
func FuzzOpen(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, super, meta []byte) {
		s := hostile(super, meta)
		im, err := erofs.Open(s, s.size)
		if err != nil {
			return
		}
		// its error doesn't matter: an image may be wrong in part
		_ = walk(im, 1000)
		for _, nid := range []uint64{0, 1, 2, 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			in, err := im.Inode(nid)
			if err != nil {
				continue
			}
			for _, off := range []uint64{1, 4095, 1 << 32, 1 << 63, 1<<64 - 1} {
				n := 0
				_ = im.ReadDir(in, off, func(erofs.Dirent) bool { n++; return n < 10 })
			}
		}
	})
}

// FuzzCheck checks images of any bytes: what passes can be read without an error.
func FuzzCheck(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, super, meta []byte) {
		s := hostile(super, meta)
		if err := erofs.Check(s, s.size); err != nil {
			return
		}
		if err := walk(s.open(t), 1<<30); err != nil {
			t.Errorf("an image that Check passes: %v", err)
		}
	})
}
