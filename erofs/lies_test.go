package erofs_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

// meter counts what is read.
type meter struct {
	io.ReaderAt
	bytes int64
}

func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	m.bytes += int64(len(p))
	return m.ReaderAt.ReadAt(p, off)
}

// cost gives the bytes that f reads of an image, and those it allocates, freed ones included.
func cost(s *sparse, f func(r io.ReaderAt) error) (read, allocated int64, err error) {
	m := &meter{ReaderAt: s}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = f(m)
	runtime.ReadMemStats(&after)
	return m.bytes, int64(after.TotalAlloc - before.TotalAlloc), err
}

// probe does with an inode what a reader does, a thousand names of a directory and the first 100 KiB of a file at most.
func probe(im *erofs.Image, nid uint64) {
	// whatever error there is: an image may be wrong in part
	in, err := im.Inode(nid)
	if err != nil {
		return
	}
	_, _ = im.Xattrs(in)
	_, _ = im.Xattr(in, "user.none")
	_, _ = im.Readlink(in)
	_, _ = im.Lookup(in, "no such name")
	_, _ = im.DataOff(in)
	_, _ = im.ReadFileAt(in, make([]byte, 100*kib), 0)
	names := 0
	_ = im.ReadDir(in, 0, func(erofs.Dirent) bool { names++; return names < 1000 })
}

// nidsOf lists the inodes of an image whose files have one name each.
func nidsOf(t *testing.T, im *erofs.Image) (dirs, others []uint64) {
	t.Helper()
	dirs = []uint64{im.Super().RootNid}
	for k := 0; k < len(dirs); k++ {
		dir, err := im.Inode(dirs[k])
		if err != nil {
			t.Fatal(err)
		}
		err = im.ReadDir(dir, 0, func(d erofs.Dirent) bool {
			switch name := string(d.Name); {
			case name == "." || name == "..":
			case d.Type == 4: // DT_DIR
				dirs = append(dirs, d.Nid)
			default:
				others = append(others, d.Nid)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return dirs, others
}

// TestMillionLies has an image of a million inodes that lie, all of them in the same way, and what that costs: Check reads a few times
// the metadata's size and allocates some bytes for each inode; a reader's calls for one inode take less than 1 MiB.
func TestMillionLies(t *testing.T) {
	const n = 980_392 // files, in directories of 50
	good := newFixture(t, manyEntries(n)).sparse(t)
	im := good.open(t)
	inodes := int64(im.Super().Inodes)
	dirs, files := nidsOf(t, im)
	each := func(nids []uint64, change func(k int, d *disk.Inode)) func(p *patient) {
		return func(p *patient) {
			for k, nid := range nids {
				p.inode(nid, func(d *disk.Inode) { change(k, d) })
			}
		}
	}
	var shared disk.Inode
	shared.Decode(good.meta[dirs[2]*disk.SlotSize:])
	for _, c := range []struct {
		name   string
		damage func(p *patient)
		want   string // in Check's error
	}{
		{"nothing", func(*patient) {}, ""},
		{"directories up to the image's end", each(dirs, func(_ int, d *disk.Inode) { d.Layout, d.Union, d.Size = disk.LayoutPlain, 0, uint64(good.size) }), "not in the metadata"},
		{"directories of 2^63 bytes", each(dirs[1:], func(_ int, d *disk.Inode) { d.Size = 1<<63 - 1 }), "data at"},
		{"directories that share their names", each(dirs[3:], func(_ int, d *disk.Inode) {
			d.Layout, d.Union, d.Size = disk.LayoutPlain, shared.Union, shared.Size&^4095
		}), "used by something else"},
		{"all names are one inode's", func(p *patient) {
			for _, nid := range dirs[3:] {
				b := p.at(nid)[disk.InodeExtended:]
				for i := range nameOff(b, 0) / disk.DirentSize {
					dirent(b, i, func(d *disk.Dirent) { d.Nid = files[0] })
				}
			}
		}, "which has another name"},
		{"all names are their directory", func(p *patient) {
			for _, nid := range dirs[3:] {
				b := p.at(nid)[disk.InodeExtended:]
				for i := range nameOff(b, 0) / disk.DirentSize {
					dirent(b, i, func(d *disk.Dirent) { d.Nid = nid })
				}
			}
		}, "which has another name"},
		{"more links than names", each(files, func(k int, d *disk.Inode) { d.Nlink = 1<<32 - 1 - uint32(k) }), "1 names, nlink is"},
		{"contents that overlap", each(files, func(k int, d *disk.Inode) { d.Union, d.Size = 512+uint32(k%4096), uint64(k%500*4096+1) }), "overlap"},
		{"contents of 2^63 bytes", each(files, func(_ int, d *disk.Inode) { d.Size = 1<<63 - 1 }), "data at"},
		{"attributes of 256 KiB each", each(files, func(_ int, d *disk.Inode) { d.XattrCount = 1<<16 - 1 }), "used by something else"},
		{"files that are symlinks to 4,095 bytes", each(files, func(_ int, d *disk.Inode) { d.Mode, d.Size = d.Mode&0o7777|0o120000, 4095 }), "has type"},
		{"files that are directories", each(files, func(_ int, d *disk.Inode) {
			d.Mode, d.Layout, d.Union, d.Size = d.Mode&0o7777|0o40000, disk.LayoutPlain, uint32(good.metaOff/4096), uint64(good.size-good.metaOff)
		}), "has type"},
		{"i_ino of another", each(files, func(_ int, d *disk.Inode) { d.Ino = 7 }), "i_ino"},
		{"2^64-1 inodes", func(p *patient) { p.superblock(func(s *disk.Super) { s.Inodes = 1<<64 - 1 }) }, "inodes in metadata"},
		{"as many inodes as slots", func(p *patient) {
			p.superblock(func(s *disk.Super) { s.Inodes = uint64(p.size-p.metaOff) / disk.SlotSize })
		}, "the superblock counts"},
		{"16 TiB, all of it metadata", func(p *patient) {
			p.size = (1<<32 - 512) * 4096
			p.superblock(func(s *disk.Super) { s.Blocks = 1<<32 - 512 })
		}, "metadata of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *good
			s.meta, s.super = bytes.Clone(good.meta), bytes.Clone(good.super)
			c.damage(&patient{&s, t, im})
			meta := int64(len(s.meta))

			read, allocated, err := cost(&s, func(r io.ReaderAt) error { return erofs.Check(r, s.size) })
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, erofs.ErrInvalid) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Check: %.300v; want an error that says %q", err, c.want)
			}
			if read > 4*meta || allocated > 300*inodes {
				t.Errorf("Check reads %.1f times the metadata, and allocates %d bytes for each inode", float64(read)/float64(meta), allocated/inodes)
			}

			for k := 0; k < len(files); k += 10_007 {
				for _, nid := range []uint64{dirs[k%len(dirs)], files[k]} {
					read, allocated, _ := cost(&s, func(r io.ReaderAt) error {
						im, err := erofs.Open(r, s.size)
						if err == nil {
							probe(im, nid)
						}
						return err
					})
					if read > mib || allocated > mib {
						t.Fatalf("reading inode %d: %d bytes are read, %d allocated", nid, read, allocated)
					}
				}
			}
		})
	}
}
