package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// fixture is a tree, its layout, and what contents have which key.
type fixture struct {
	tree   *tree.Tree
	layout *erofs.Layout
	key    func(tree.Content) [32]byte
}

// contentKey makes contents of equal numbers, modulo 1000, equal.
func contentKey(c tree.Content) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(c.Index%1000)))
}

// contentByte is what content of a key has at an offset. Contents of more than 64 MiB are zero but for their first and last 4 KiB.
func contentByte(key [32]byte, size, off int64) byte {
	if size > 64*mib && off >= 4*kib && off < size-4*kib {
		return 0
	}
	return key[off%32] ^ byte(off>>5) ^ byte(off>>13)
}

func buildTree(t testing.TB, layers ...[]tree.Entry) *tree.Tree {
	t.Helper()
	b := tree.NewBuilder(tree.Options{})
	for _, entries := range layers {
		err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	tr, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func newFixture(t testing.TB, layers ...[]tree.Entry) *fixture {
	t.Helper()
	return fixtureOf(t, buildTree(t, layers...))
}

func fixtureOf(t testing.TB, tr *tree.Tree) *fixture {
	t.Helper()
	fx := &fixture{tree: tr, key: contentKey}
	var err error
	if fx.layout, err = erofs.NewLayout(fx.tree, fx.key, [16]byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	return fx
}

// write makes a complete, sparse image file.
func (fx *fixture) write(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.erofs")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(fx.layout.Size()); err != nil {
		t.Fatal(err)
	}
	if err := fx.layout.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	for _, e := range fx.layout.Extents() {
		parts := [][2]int64{{0, e.Size}}
		if e.Size > 64*mib {
			parts = [][2]int64{{0, 4 * kib}, {e.Size - 4*kib, e.Size}}
		}
		for _, p := range parts {
			b := make([]byte, p[1]-p[0])
			for i := range b {
				b[i] = contentByte(fx.key(e.Content), e.Size, p[0]+int64(i))
			}
			if _, err := f.WriteAt(b, e.Off+p[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return name
}

// checkContent compares what r gives with what content c should be: all of it, or 64 KiB at the ends and around 4 GiB.
func (fx *fixture) checkContent(r io.ReaderAt, c tree.Content, size int64) error {
	parts := [][2]int64{{0, size}}
	if size > 64*mib {
		parts = [][2]int64{{0, 64 * kib}, {4*gib - 32*kib, 4*gib + 32*kib}, {size - 64*kib, size}}
	}
	key := fx.key(c)
	for _, p := range parts {
		from, to := max(p[0], 0), min(p[1], size)
		if from >= to {
			continue
		}
		b := make([]byte, to-from)
		if n, err := r.ReadAt(b, from); n != len(b) {
			return fmt.Errorf("reading %d bytes at %d: got %d: %w", len(b), from, n, err)
		}
		for i, got := range b {
			if want := contentByte(key, size, from+int64(i)); got != want {
				return fmt.Errorf("byte %d is %#x, want %#x", from+int64(i), got, want)
			}
		}
	}
	return nil
}

// sparse is an image in memory without contents: what isn't in its two parts is zero.
type sparse struct {
	super   []byte // block 0
	metaOff int64
	meta    []byte
	size    int64
}

func (s *sparse) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 {
		s.super = bytes.Clone(p)
		return len(p), nil
	}
	at := off - s.metaOff
	if need := at + int64(len(p)); need > int64(len(s.meta)) {
		s.meta = append(s.meta, make([]byte, need-int64(len(s.meta)))...)
	}
	copy(s.meta[at:], p)
	return len(p), nil
}

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	overlay(p[:n], off, s.super, 0)
	overlay(p[:n], off, s.meta, s.metaOff)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// overlay copies to p, which is at off, the bytes of b, which is at at.
func overlay(p []byte, off int64, b []byte, at int64) {
	if at < off {
		if off-at >= int64(len(b)) {
			return
		}
		b = b[off-at:]
		at = off
	}
	if at-off < int64(len(p)) {
		copy(p[at-off:], b)
	}
}

func (fx *fixture) sparse(t testing.TB) *sparse {
	t.Helper()
	s := &sparse{metaOff: fx.layout.MetaOffset(), size: fx.layout.Size()}
	if err := fx.layout.WriteTo(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// fixChecksum makes the superblock's checksum right again: CRC-32C by the bit, as the format describes it.
func (s *sparse) fixChecksum() {
	b := bytes.Clone(s.super[disk.SuperOffset:])
	clear(b[4:8])
	crc := ^uint32(0)
	for _, x := range b {
		crc ^= uint32(x)
		for range 8 {
			crc = crc>>1 ^ 0x82f63b78*(crc&1)
		}
	}
	binary.LittleEndian.PutUint32(s.super[disk.SuperOffset+4:], crc)
}

func (s *sparse) open(t testing.TB) *erofs.Image {
	t.Helper()
	im, err := erofs.Open(s, s.size)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// find gives the inode of a path.
func find(t testing.TB, im *erofs.Image, names ...string) erofs.Inode {
	t.Helper()
	in, err := im.Inode(im.Super().RootNid)
	for _, name := range names {
		var nid uint64
		if err == nil {
			nid, err = im.Lookup(in, name)
		}
		if err == nil {
			in, err = im.Inode(nid)
		}
	}
	if err != nil {
		t.Fatalf("finding %q: %v", names, err)
	}
	return in
}
