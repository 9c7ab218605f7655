package compress_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/compress"
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// mutated is an image in memory with what each byte of it is.
type mutated struct {
	b      []byte
	meta   int64
	strict []string // by byte: what it is, where Check must find every other value
}

func newMutated(t *testing.T, a compress.Algorithm) *mutated {
	t.Helper()
	f, size := plain(t, []file{
		{"a", text(20_000, 1)}, {"b", join(text(segment, 2), noise(segment, 3), text(9000, 4))}, {"c", noise(300, 5)}, {"d", noise(5000, 6)}, {"e", nil},
		{"same1", text(8000, 8)}, {"same2", text(8000, 8)},
	}, tree.Entry{Name: "l", Type: tree.Symlink, Linkname: "target"}, tree.Entry{Name: "hard", Type: tree.HardLink, Linkname: "a"},
		tree.Entry{Name: "h", Type: tree.Dir, Xattrs: []tree.Xattr{{Name: "user.x", Value: []byte("12345")}}})
	out, n := shrink(t, open(t, f, size), compress.Options{Algorithm: a})
	m := &mutated{b: make([]byte, n), strict: make([]string, n)}
	if _, err := out.ReadAt(m.b, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.check(); err != nil {
		t.Fatal(err)
	}
	m.mark(t)
	return m
}

// mark finds the bytes whose value Check knows.
func (m *mutated) mark(t *testing.T) {
	t.Helper()
	set := func(from, to int64, what string) {
		for i := from; i < to; i++ {
			m.strict[i] = what
		}
	}
	set(0, disk.BlockSize, "block 0")
	set(disk.SuperOffset+48, disk.SuperOffset+64, "") // the UUID
	im := open(t, bytes.NewReader(m.b), int64(len(m.b)))
	m.meta = im.Super().MetaOffset
	compressed := 0
	for todo, seen := []uint64{im.Super().RootNid}, map[uint64]bool{}; len(todo) > 0; todo = todo[1:] {
		if seen[todo[0]] {
			continue
		}
		seen[todo[0]] = true
		at := m.meta + int64(todo[0])*disk.SlotSize
		var d disk.Inode
		d.Decode(m.b[at:])
		set(at, at+4, "format, count of attributes")
		set(at+20, at+24, "i_ino")
		set(at+44, at+64, "nlink, reserved bytes")
		if d.Layout == disk.LayoutFull {
			compressed++
			set(at+8, at+20, "size, number of blocks")
			end := at + disk.InodeExtended + d.XattrLen()
			from := disk.FullIndexOffset(end)
			set(end, from, "head of an index")
			set(from, from+(int64(d.Size)+disk.BlockSize-1)/disk.BlockSize*disk.FullEntrySize, "index")
		}
		in, err := im.Inode(todo[0])
		if err != nil {
			t.Fatal(err)
		}
		if !in.IsDir() {
			continue
		}
		if err := im.ReadDir(in, 0, func(d erofs.Dirent) bool {
			todo = append(todo, d.Nid)
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	if compressed < 2 {
		t.Fatalf("%d inodes are compressed", compressed)
	}
}

func (m *mutated) check() error { return erofs.Check(bytes.NewReader(m.b), int64(len(m.b))) }

// read reads all that an image shows.
func (m *mutated) read() error {
	im, err := erofs.Open(bytes.NewReader(m.b), int64(len(m.b)))
	if err != nil {
		return err
	}
	buf := make([]byte, segment)
	for todo, seen := []uint64{im.Super().RootNid}, map[uint64]bool{}; len(todo) > 0; todo = todo[1:] {
		if seen[todo[0]] {
			continue
		}
		seen[todo[0]] = true
		in, err := im.Inode(todo[0])
		if err == nil {
			_, err = im.Xattrs(in)
		}
		switch {
		case err != nil:
		case in.IsDir():
			err = im.ReadDir(in, 0, func(d erofs.Dirent) bool {
				todo = append(todo, d.Nid)
				return true
			})
		case in.IsSymlink():
			_, err = im.Readlink(in)
		case in.IsRegular():
			for off := int64(0); off < in.Size && err == nil; off += int64(len(buf)) {
				_, err = im.ReadFileAt(in, buf[:min(int64(len(buf)), in.Size-off)], off)
			}
		}
		if err != nil {
			return fmt.Errorf("inode %d: %w", todo[0], err)
		}
	}
	return nil
}

// try changes the byte at off in several ways and checks. What Check passes must be readable and no other value of what it knows.
func (m *mutated) try(t *testing.T, off int, values ...byte) (tried, passed int) {
	t.Helper()
	was := m.b[off]
	for _, v := range values {
		if v == was {
			continue
		}
		tried++
		m.b[off] = v
		if off < disk.BlockSize && (off < disk.SuperOffset+4 || off >= disk.SuperOffset+8) {
			m.seal()
		}
		if m.check() == nil {
			passed++
			if what := m.strict[off]; what != "" {
				t.Errorf("byte %d (%s): Check passes %#02x for %#02x", off, what, v, was)
			}
			if err := m.read(); err != nil {
				t.Errorf("byte %d: %#02x for %#02x passes Check: %v", off, v, was, err)
			}
		}
		m.b[off] = was
	}
	if off < disk.BlockSize {
		m.seal()
	}
	return tried, passed
}

// seal sets the superblock's checksum right.
func (m *mutated) seal() {
	sum := disk.SuperChecksum(m.b[:disk.BlockSize])
	for i := range 4 {
		m.b[disk.SuperOffset+4+i] = byte(sum >> (8 * i))
	}
}

// TestMutations changes every byte of the superblock and of the metadata and some of all others, truncates and extends the image.
func TestMutations(t *testing.T) {
	for _, a := range []compress.Algorithm{compress.LZ4, compress.Zstd} {
		t.Run(a.String(), func(t *testing.T) {
			m := newMutated(t, a)
			tried, passed := 0, 0
			add := func(t, p int) { tried, passed = tried+t, passed+p }
			for off := range m.b {
				was := m.b[off]
				switch {
				case off < disk.SuperOffset:
					if off%16 == 0 {
						add(m.try(t, off, 1))
					}
				case off < disk.SuperOffset+disk.SuperSize+64:
					add(m.try(t, off, was^1, 0xff))
				case off < disk.BlockSize:
					if off%16 == 0 {
						add(m.try(t, off, 1))
					}
				case int64(off) >= m.meta:
					if m.strict[off] != "" {
						add(m.try(t, off, was^1, 0xff))
					} else {
						add(m.try(t, off, was^1))
					}
				case off%499 == 0:
					add(m.try(t, off, was^1, 0xff))
				}
			}
			whole := m.b
			for n := 0; n < len(whole); n += 509 {
				m.b = whole[:n]
				if m.check() == nil {
					t.Errorf("Check passes the first %d bytes of %d", n, len(whole))
				}
				tried++
			}
			m.b = append(whole, make([]byte, disk.BlockSize)...)
			if m.check() == nil {
				t.Error("Check passes a block more")
			}
			t.Logf("%d changes of an image of %d bytes, of which %d are metadata; Check passes %d, which can be read", tried, len(whole), len(whole)-int(m.meta), passed)
		})
	}
}

// TestGap shortens a content by blocks that nothing leads to then: between contents, and before the metadata.
func TestGap(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		t.Run(name, func(t *testing.T) {
			f, size := plain(t, []file{{"a", noise(5*disk.BlockSize, 1)}, {"b", noise(5*disk.BlockSize, 2)}})
			out, n := shrink(t, open(t, f, size), compress.Options{Algorithm: compress.Zstd})
			m := &mutated{b: make([]byte, n)}
			if _, err := out.ReadAt(m.b, 0); err != nil {
				t.Fatal(err)
			}
			im := open(t, bytes.NewReader(m.b), n)
			root, err := im.Inode(im.Super().RootNid)
			if err != nil {
				t.Fatal(err)
			}
			nid, err := im.Lookup(root, name)
			if err != nil {
				t.Fatal(err)
			}
			at := im.Super().MetaOffset + int64(nid)*disk.SlotSize
			var d disk.Inode
			d.Decode(m.b[at:])
			d.Size -= 2 * disk.BlockSize
			d.Encode(m.b[at:])
			if err := m.check(); err == nil || !strings.Contains(err.Error(), "are of no content") {
				t.Errorf("got %v", err)
			}
		})
	}
}
