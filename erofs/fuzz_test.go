package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/compress"
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
			if !im.Super().Compressed || !errors.Is(err, erofs.ErrUnsupported) {
				note(err)
			}
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

// filled is an image without contents, whose files read as words.
type filled struct{ *sparse }

func (s filled) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.sparse.ReadAt(p, off)
	for i := range p[:n] {
		if at := off + int64(i); at >= 2*mib && at < s.metaOff {
			p[i] = "some words, and others "[(at+at>>15)%23]
		}
	}
	return n, err
}

// block1 makes an image of a superblock, with whatever is behind it, and of what begins in block 1. Beyond that it reads as zeros.
func block1(super, rest []byte) *sparse {
	s := hostile(super, rest)
	s.metaOff = disk.BlockSize
	return s
}

// FuzzCompressed reads and checks compressed images of any bytes. A file reads the same in whatever pieces, and what passes the check
// reads without an error.
func FuzzCompressed(f *testing.F) {
	s := newFixture(f, []tree.Entry{dir("d", 0o755), reg("d/long", 140_000, 1), reg("short", 6000, 2), reg("shortest", 10, 3), link("l", "d/long")}).sparse(f)
	plain, err := erofs.Open(filled{s}, s.size)
	if err != nil {
		f.Fatal(err)
	}
	for _, a := range []compress.Algorithm{compress.LZ4, compress.Zstd} {
		out := &sparse{metaOff: disk.BlockSize}
		if _, err := compress.Write(context.Background(), out, plain, compress.Options{Algorithm: a}); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimRight(out.super[disk.SuperOffset:], "\x00"), bytes.TrimRight(out.meta, "\x00"))
	}
	f.Fuzz(func(t *testing.T, super, rest []byte) {
		s := block1(super[:min(len(super), disk.BlockSize-disk.SuperOffset)], rest)
		im, err := erofs.Open(s, s.size)
		if err != nil {
			return
		}
		right := erofs.Check(s, s.size) == nil
		if err := walk(im, 100); err != nil && right {
			t.Errorf("an image that Check passes: %v", err)
		}
		for n, nid := range reachable(im, 100) {
			in, err := im.Inode(nid)
			if err != nil || !in.IsRegular() {
				continue
			}
			if err := readPieces(t, im, in, int64(n)); err != nil && right {
				t.Errorf("an image that Check passes: inode %d: %v", nid, err)
			}
		}
	})
}

// reachable gives the numbers of inodes that the root leads to, at most so many.
func reachable(im *erofs.Image, most int) []uint64 {
	all := []uint64{im.Super().RootNid}
	for i := 0; i < min(len(all), most); i++ {
		in, err := im.Inode(all[i])
		if err != nil || !in.IsDir() {
			continue
		}
		_ = im.ReadDir(in, 0, func(d erofs.Dirent) bool { // what comes before an error is enough
			if name := string(d.Name); name != "." && name != ".." {
				all = append(all, d.Nid)
			}
			return len(all) < most
		})
	}
	return all
}

// readPieces reads up to 256 KiB of a file at once, then in pieces from the end to the beginning.
func readPieces(t *testing.T, im *erofs.Image, in erofs.Inode, odd int64) error {
	t.Helper()
	whole := make([]byte, min(in.Size, 256*kib))
	n, err := im.ReadFileAt(in, whole, 0)
	if n < 0 || n > len(whole) || err == nil && n != len(whole) {
		t.Fatalf("%d bytes of %d, %v", n, len(whole), err)
	}
	if err != nil && err != io.EOF {
		return err
	}
	const piece = 40_000
	for at := (int64(len(whole)) - 1 + odd) / piece * piece; at >= 0; at -= piece {
		p := make([]byte, min(piece, max(int64(len(whole))-at, 0)))
		if n, err := im.ReadFileAt(in, p, at); n != len(p) || err != nil && err != io.EOF {
			t.Fatalf("inode %d can be read whole; %d bytes at %d: got %d, %v", in.Nid, len(p), at, n, err)
		}
		if !bytes.Equal(p, whole[at:][:len(p)]) {
			t.Fatalf("inode %d: %d bytes at %d are not those of the whole", in.Nid, len(p), at)
		}
	}
	return nil
}
