package erofs_test

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// patient is an image that a test damages.
type patient struct {
	*sparse
	t  *testing.T
	im *erofs.Image
}

// at gives the bytes of the metadata at a nid.
func (p *patient) at(nid uint64) []byte { return p.meta[nid*disk.SlotSize:] }

func (p *patient) nid(names ...string) uint64 { return find(p.t, p.im, names...).Nid }

// inode changes an inode.
func (p *patient) inode(nid uint64, change func(*disk.Inode)) {
	var d disk.Inode
	d.Decode(p.at(nid))
	change(&d)
	d.Encode(p.at(nid))
}

// super changes the superblock, and makes its checksum right.
func (p *patient) superblock(change func(*disk.Super)) {
	var s disk.Super
	s.Decode(p.super[disk.SuperOffset:])
	change(&s)
	s.Encode(p.super[disk.SuperOffset:])
	p.fixChecksum()
}

// dirent changes the i-th entry of a directory whose block b is.
func dirent(b []byte, i int, change func(*disk.Dirent)) {
	var d disk.Dirent
	d.Decode(b[i*disk.DirentSize:])
	change(&d)
	d.Encode(b[i*disk.DirentSize:])
}

// dirBlock is the inline block of a directory without attributes.
func (p *patient) dirBlock(names ...string) []byte {
	return p.at(p.nid(names...))[disk.InodeExtended:]
}

// blocks is where the blocks behind the inodes are that belong to an inode.
func (p *patient) blocks(nid uint64) []byte {
	var d disk.Inode
	d.Decode(p.at(nid))
	return p.meta[int64(d.Union)*disk.BlockSize-p.metaOff:]
}

func TestCheckFinds(t *testing.T) {
	wide := []tree.Entry{dir("wide", 0o755), dir("wide2", 0o755)}
	for _, d := range []string{"wide/", "wide2/"} {
		for c := 'a'; c <= 'z'; c++ {
			wide = append(wide, reg(d+strings.Repeat(string(c), 250), 0, 0))
		}
	}
	entries := append(wide,
		dir("d", 0o755), reg("d/a", 10, 1), reg("d/b", 5000, 2), dir("d/sub", 0o755), reg("d/z", 8192, 3), reg("big", 3*mib, 4), reg("big2", 3*mib, 5),
		reg("once", 0, 0), reg("h1", 1, 6), hard("h2", "h1"), link("l", "target"), link("long", strings.Repeat("x", 4090)),
		tree.Entry{Name: "c", Type: tree.Char, Major: 1, Minor: 3}, tree.Entry{Name: "p", Type: tree.Fifo},
		with(reg("x", 1, 7), tree.Xattr{Name: "trusted.a", Value: []byte("1")}, tree.Xattr{Name: "user.b", Value: []byte("22")}),
		dir("empty", 0o755),
	)
	for _, c := range []struct {
		name   string
		damage func(p *patient)
		want   string // in the error
	}{
		{"nlink of a directory", func(p *patient) { p.inode(p.nid("d"), func(d *disk.Inode) { d.Nlink = 2 }) }, "1 subdirectories, nlink is 2"},
		{"nlink of the root", func(p *patient) { p.inode(1, func(d *disk.Inode) { d.Nlink++ }) }, "directory 1:"},
		{"nlink of a file", func(p *patient) { p.inode(p.nid("once"), func(d *disk.Inode) { d.Nlink = 2 }) }, "1 names, nlink is 2"},
		{"nlink 0", func(p *patient) { p.inode(p.nid("once"), func(d *disk.Inode) { d.Nlink = 0 }) }, "nlink is 0"},
		{"nlink of a hard link is 1", func(p *patient) { p.inode(p.nid("h1"), func(d *disk.Inode) { d.Nlink = 1 }) }, "has another name and nlink 1"},
		{"nlink of a hard link is 3", func(p *patient) { p.inode(p.nid("h1"), func(d *disk.Inode) { d.Nlink = 3 }) }, "2 names, nlink is 3"},
		{"type in a directory", func(p *patient) { dirent(p.dirBlock("d"), 2, func(d *disk.Dirent) { d.Type = disk.TypeSymlink }) }, `"a" has type 7`},
		{"order of names", func(p *patient) { swapNames(p.dirBlock("d"), 2, 3) }, `"a" follows "b"`},
		{"order of inodes", func(p *patient) {
			a, b, names := p.nid("d", "a"), p.nid("d", "b"), p.dirBlock("d")
			dirent(names, 2, func(d *disk.Dirent) { d.Nid = b })
			dirent(names, 3, func(d *disk.Dirent) { d.Nid = a })
		}, "its name comes behind that of inode"},
		{"a name twice", func(p *patient) {
			b := p.dirBlock("d")
			b[nameOff(b, 3)] = 'a'
		}, `"a" follows "a"`},
		{"a slash in a name", func(p *patient) { b := p.dirBlock("d"); b[nameOff(b, 2)] = '/' }, "directory"},
		{"a zero in a name", func(p *patient) { b := p.dirBlock("d"); b[nameOff(b, 2)] = 0 }, "directory"},
		{"no dot", func(p *patient) { b := p.dirBlock("d"); b[nameOff(b, 0)] = '!' }, `no "."`},
		{"nid of dot", func(p *patient) { dirent(p.dirBlock("d"), 0, func(d *disk.Dirent) { d.Nid = 1 }) }, `"." is nid 1`},
		{"nid of dot-dot", func(p *patient) { dirent(p.dirBlock("d", "sub"), 1, func(d *disk.Dirent) { d.Nid = 1 }) }, `".." is nid 1`},
		{"type of dot-dot", func(p *patient) { dirent(p.dirBlock("d", "sub"), 1, func(d *disk.Dirent) { d.Type = 1 }) }, `".." is nid`},
		{"reserved byte of an entry", func(p *patient) { p.dirBlock("d")[11] = 1 }, "reserved byte"},
		{"a directory of two names", func(p *patient) {
			nid := p.nid("empty")
			dirent(p.dirBlock("d"), 4, func(d *disk.Dirent) { d.Nid = nid })
		}, "which has another name"},
		{"a cycle", func(p *patient) { dirent(p.dirBlock("d"), 4, func(d *disk.Dirent) { d.Nid = 1 }) }, "which has another name"},
		{"a name of nid 0", func(p *patient) { dirent(p.dirBlock("d"), 2, func(d *disk.Dirent) { d.Nid = 0 }) }, "nid 0"},
		{"a name of a huge nid", func(p *patient) { dirent(p.dirBlock("d"), 2, func(d *disk.Dirent) { d.Nid = 1<<63 + 5 }) }, "nid 9223372036854775813"},
		{"a name inside another inode", func(p *patient) { dirent(p.dirBlock("d"), 2, func(d *disk.Dirent) { d.Nid = p.nid("d", "b") + 1 }) }, "inode"},
		{"directory blocks used twice", func(p *patient) {
			var from disk.Inode
			from.Decode(p.at(p.nid("wide")))
			p.inode(p.nid("wide2"), func(d *disk.Inode) { d.Union = from.Union })
		}, "used by something else"},
		{"directory blocks among the contents", func(p *patient) { p.inode(p.nid("wide"), func(d *disk.Inode) { d.Union = 600 }) }, "not in the metadata"},
		{"bytes behind a full block's names", func(p *patient) { p.blocks(p.nid("wide"))[4095] = 1 }, "directory"},
		{"an empty directory", func(p *patient) { p.inode(p.nid("empty"), func(d *disk.Inode) { d.Size = 0 }) }, "an empty directory"},
		{"a directory longer than its names", func(p *patient) { p.inode(p.nid("empty"), func(d *disk.Inode) { d.Size++ }) }, "the names end at"},
		{"i_ino twice", func(p *patient) { p.inode(p.nid("c"), func(d *disk.Inode) { d.Ino = 1 }) }, "i_ino 1 is"},
		{"i_ino 0", func(p *patient) { p.inode(p.nid("c"), func(d *disk.Inode) { d.Ino = 0 }) }, "i_ino 0 is"},
		{"i_ino too large", func(p *patient) { p.inode(p.nid("c"), func(d *disk.Inode) { d.Ino = 1 << 31 }) }, "i_ino 2147483648 is"},
		{"contents overlap", func(p *patient) { p.inode(p.nid("d", "z"), func(d *disk.Inode) { d.Union-- }) }, "overlap"},
		{"contents share a start only", func(p *patient) { p.inode(p.nid("d", "b"), func(d *disk.Inode) { d.Size += 4096 }) }, "overlap"},
		{"content over the superblock", func(p *patient) { p.inode(p.nid("d", "a"), func(d *disk.Inode) { d.Union = 0 }) }, "not between"},
		{"content in the metadata", func(p *patient) {
			p.inode(p.nid("d", "a"), func(d *disk.Inode) { d.Union = uint32(p.metaOff / 4096) })
		}, "not between"},
		{"content into the metadata", func(p *patient) { p.inode(p.nid("x"), func(d *disk.Inode) { d.Size = 1 * gib }) }, "data at"},
		{"content beyond the image", func(p *patient) { p.inode(p.nid("d", "a"), func(d *disk.Inode) { d.Union = 1<<32 - 1 }) }, "data at"},
		{"negative size", func(p *patient) { p.inode(p.nid("d", "a"), func(d *disk.Inode) { d.Size = 1 << 63 }) }, "size"},
		{"big content misaligned", func(p *patient) { p.inode(p.nid("big"), func(d *disk.Inode) { d.Union++ }) }, "not aligned"},
		{"inline content", func(p *patient) { p.inode(p.nid("once"), func(d *disk.Inode) { d.Layout = disk.LayoutInline }) }, "only directories and symlinks"},
		{"chunked content", func(p *patient) { p.inode(p.nid("once"), func(d *disk.Inode) { d.Layout = 4 }) }, "data layout 4"},
		{"unknown flags", func(p *patient) { p.inode(p.nid("once"), func(d *disk.Inode) { d.Flags = 1 }) }, "flags"},
		{"compact inode", func(p *patient) { p.at(p.nid("once"))[0] &^= 1 }, "inode"},
		{"reserved bytes of an inode", func(p *patient) { p.at(p.nid("once"))[50] = 1 }, "reserved bytes"},
		{"a start without blocks", func(p *patient) { p.inode(p.nid("p"), func(d *disk.Inode) { d.Union = 3 }) }, "a start without blocks"},
		{"size of a fifo", func(p *patient) { p.inode(p.nid("p"), func(d *disk.Inode) { d.Size = 3 }) }, "no data"},
		{"no file type", func(p *patient) { p.inode(p.nid("p"), func(d *disk.Inode) { d.Mode = 0o644 }) }, "mode 0644"},
		{"nanoseconds", func(p *patient) { p.inode(p.nid("p"), func(d *disk.Inode) { d.MtimeNsec = 1e9 }) }, "inode"},
		{"a zero in a target", func(p *patient) { p.at(p.nid("l"))[disk.InodeExtended+2] = 0 }, "zero byte"},
		{"bytes behind a target", func(p *patient) { p.at(p.nid("l"))[disk.InodeExtended+6] = 1 }, "are not zero"},
		{"bytes behind a target in its own block", func(p *patient) { p.blocks(p.nid("long"))[4095] = 1 }, "are not zero"},
		{"a target of 4096 bytes", func(p *patient) { p.inode(p.nid("long"), func(d *disk.Inode) { d.Size = 4096 }) }, "target of 4096"},
		{"an attribute's prefix", func(p *patient) { p.at(p.nid("x"))[disk.InodeExtended+12+1] = 9 }, "is unknown"},
		{"order of attributes", func(p *patient) {
			p.at(p.nid("x"))[disk.InodeExtended+12+1] = disk.XattrUser
			p.at(p.nid("x"))[disk.InodeExtended+12+4] = 'z'
		}, "out of order"},
		{"bytes behind an attribute", func(p *patient) { p.at(p.nid("x"))[disk.InodeExtended+12+4+2] = 1 }, "between them"},
		{"bytes in the attributes' header", func(p *patient) { p.at(p.nid("x"))[disk.InodeExtended+8] = 1 }, "between them"},
		{"shared attributes", func(p *patient) { p.at(p.nid("x"))[disk.InodeExtended+4] = 1 }, "shared attributes"},
		{"an attribute beyond the others", func(p *patient) { p.at(p.nid("x"))[disk.InodeExtended+12+3] = 9 }, "attributes of inode"},
		{"attributes into the next inode", func(p *patient) { p.inode(p.nid("x"), func(d *disk.Inode) { d.XattrCount += 40 }) }, "inode"},
		{"the slot before the root", func(p *patient) { p.meta[3] = 1 }, "metadata at nid 0 is not zero"},
		{"padding of the metadata", func(p *patient) { p.meta = append(p.meta, 0, 0, 1) }, "nothing leads there"},
		{"inode count", func(p *patient) { p.superblock(func(s *disk.Super) { s.Inodes++ }) }, "the superblock counts"},
		{"an inode that no name has", func(p *patient) {
			p.inode(p.nid("empty"), func(d *disk.Inode) {})
			b := p.dirBlock("d")
			p.superblock(func(s *disk.Super) { s.Inodes-- })
			dirent(b, 2, func(d *disk.Dirent) { d.Nid = p.nid("h1") })
		}, "nothing leads there"},
		{"checksum", func(p *patient) { p.super[disk.SuperOffset+48] ^= 1 }, "checksum"},
		{"checksum of the rest of block 0", func(p *patient) { p.super[4000] = 1 }, "checksum"},
		{"bytes before the superblock", func(p *patient) { p.super[5] = 1 }, "block 0"},
		{"bytes behind the superblock", func(p *patient) { p.super[4000] = 1; p.fixChecksum() }, "block 0"},
		{"no checksum", func(p *patient) {
			p.superblock(func(s *disk.Super) { s.FeatureCompat &^= disk.CompatChecksum })
		}, "not that of layout version 1"},
		{"magic", func(p *patient) { p.superblock(func(s *disk.Super) { s.Magic++ }) }, "magic"},
		{"block size", func(p *patient) { p.superblock(func(s *disk.Super) { s.BlockBits = 9 }) }, "2^9"},
		{"incompatible features", func(p *patient) { p.superblock(func(s *disk.Super) { s.FeatureIncompat = 4 }) }, "features 0x4"},
		{"root", func(p *patient) { nid := p.nid("d"); p.superblock(func(s *disk.Super) { s.RootNid = uint16(nid) }) }, "not that of layout version 1"},
		{"time", func(p *patient) { p.superblock(func(s *disk.Super) { s.BuildTime = 1 }) }, "not that of layout version 1"},
		{"blocks", func(p *patient) { p.superblock(func(s *disk.Super) { s.Blocks-- }) }, "multiple of 2 MiB"},
		{"more blocks than bytes", func(p *patient) { p.superblock(func(s *disk.Super) { s.Blocks++ }) }, "blocks"},
		{"place of the metadata", func(p *patient) { p.superblock(func(s *disk.Super) { s.MetaBlock = s.Blocks }) }, "metadata at"},
		{"metadata below 2 MiB", func(p *patient) { p.superblock(func(s *disk.Super) { s.MetaBlock = 3 }) }, "metadata at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFixture(t, entries).sparse(t)
			if err := erofs.Check(s, s.size); err != nil {
				t.Fatalf("before the damage: %v", err)
			}
			c.damage(&patient{s, t, s.open(t)})
			err := erofs.Check(s, s.size)
			if !errors.Is(err, erofs.ErrInvalid) && !errors.Is(err, erofs.ErrUnsupported) {
				t.Fatalf("error %v wraps neither ErrInvalid nor ErrUnsupported", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q doesn't say %q", err, c.want)
			}
		})
	}
}

func nameOff(b []byte, i int) int {
	return int(binary.LittleEndian.Uint16(b[i*disk.DirentSize+8:]))
}

// swapNames swaps two names of one byte.
func swapNames(b []byte, i, k int) {
	x, y := nameOff(b, i), nameOff(b, k)
	b[x], b[y] = b[y], b[x]
}

// TestCheckBounds damages every inode and counts what is reported.
func TestCheckBounds(t *testing.T) {
	var entries []tree.Entry
	for c := range 500 {
		entries = append(entries, dir(strings.Repeat("d", c%200+1)+string(rune('a'+c%26))+strings.Repeat("e", c/26), 0o755))
	}
	s := newFixture(t, entries).sparse(t)
	im := s.open(t)
	err := im.ReadDir(find(t, im), 0, func(d erofs.Dirent) bool {
		if d.Nid != 1 {
			(&patient{s, t, im}).inode(d.Nid, func(in *disk.Inode) { in.Nlink = 9; in.Ino = 0 })
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	err = erofs.Check(s, s.size)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 101 || !strings.Contains(err.Error(), "more problems than are listed") {
		t.Errorf("error %.200v", err)
	}
}

// failingReader fails at an offset and beyond.
type failingReader struct {
	io.ReaderAt
	from int64
	err  error
}

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.from {
		return 0, r.err
	}
	return r.ReaderAt.ReadAt(p, off)
}

// TestReadErrors tells a read that fails from an image that is wrong.
func TestReadErrors(t *testing.T) {
	s := newFixture(t, goldenEntries()...).sparse(t)
	errDisk := errors.New("disk on fire")
	for _, from := range []int64{0, s.metaOff, s.metaOff + 200, s.metaOff + 600, s.metaOff + 4096, s.size - 1} {
		err := erofs.Check(failingReader{s, from, errDisk}, s.size)
		if !errors.Is(err, errDisk) || errors.Is(err, erofs.ErrInvalid) {
			t.Errorf("reads fail from %d on: %v", from, err)
		}
	}
	if _, err := erofs.Open(failingReader{s, 0, io.EOF}, s.size); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Open of a file that is shorter than its size: %v", err)
	}
	if _, err := erofs.Open(s, 100); !errors.Is(err, erofs.ErrInvalid) {
		t.Errorf("Open of 100 bytes: %v", err)
	}
}
