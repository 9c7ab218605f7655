package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// TestExtents pins the order and alignment of contents.
func TestExtents(t *testing.T) {
	content := func(layer, index int32) tree.Content { return tree.Content{Layer: layer, Index: index} }
	for _, c := range []struct {
		name   string
		layers [][]tree.Entry
		want   []erofs.Extent
		meta   int64
	}{
		{name: "none", want: []erofs.Extent{}, meta: 2 * mib, layers: [][]tree.Entry{{reg("empty", 0, 0)}}},
		{
			name:   "top layer first, then by number, not by name",
			layers: [][]tree.Entry{{reg("a", 1, 0)}, {reg("z", 4096, 1), reg("b", 4097, 2)}},
			want:   []erofs.Extent{{Content: content(1, 1), Off: 2 * mib, Size: 4096}, {Content: content(1, 2), Off: 2*mib + 4096, Size: 4097}, {Content: content(0, 0), Off: 2*mib + 3*4096, Size: 1}},
			meta:   2*mib + 4*4096,
		},
		{
			name:   "hidden contents have no place, equal ones the first's",
			layers: [][]tree.Entry{{reg("hidden", 9, 0), reg("low", 9, 1)}, {reg("hidden", 5, 2), reg("up", 9, 1), reg("up2", 9, 1001)}},
			want:   []erofs.Extent{{Content: content(1, 1), Off: 2 * mib, Size: 9}, {Content: content(1, 2), Off: 2*mib + 4096, Size: 5}},
			meta:   2*mib + 2*4096,
		},
		{
			name:   "2 MiB and more are aligned",
			layers: [][]tree.Entry{{reg("a", 1, 0), reg("b", 2*mib, 1), reg("c", 2*mib-1, 2), reg("d", 2*mib+1, 3)}},
			want: []erofs.Extent{{Content: content(0, 0), Off: 2 * mib, Size: 1}, {Content: content(0, 1), Off: 4 * mib, Size: 2 * mib},
				{Content: content(0, 2), Off: 6 * mib, Size: 2*mib - 1}, {Content: content(0, 3), Off: 8 * mib, Size: 2*mib + 1}},
			meta: 10*mib + 4096,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newFixture(t, c.layers...).layout
			if d := cmp.Diff(c.want, l.Extents()); d != "" {
				t.Errorf("extents (-want +got):\n%s", d)
			}
			if l.MetaOffset() != c.meta || l.Size()%(2*mib) != 0 || l.Size() <= c.meta {
				t.Errorf("metadata at %d, want %d; size %d", l.MetaOffset(), c.meta, l.Size())
			}
		})
	}
}

// TestRootStays sees to it that the root's nid is 1 however little room its tail has there.
func TestRootStays(t *testing.T) {
	for value := 0; value < 4200; value += 100 {
		for names := 3800; names < 4100; names += 20 {
			entries := []tree.Entry{with(dir(".", 0o755), tree.Xattr{Name: "user.x", Value: make([]byte, value)})}
			for left := names; left > 0; left -= 200 {
				entries = append(entries, reg(fmt.Sprintf("%04d%s", left, strings.Repeat("n", min(left, 184))), 0, 0))
			}
			s := newFixture(t, entries).sparse(t)
			if root := find(t, s.open(t)); root.Nid != 1 || !root.IsDir() {
				t.Fatalf("attribute of %d bytes, names of %d: root %+v", value, names, root)
			}
			if err := erofs.Check(s, s.size); err != nil {
				t.Fatalf("attribute of %d bytes, names of %d: %v", value, names, err)
			}
		}
	}
}

// TestRootWithoutRoom mounts what TestRootStays builds.
func TestRootWithoutRoom(t *testing.T) {
	var entries []tree.Entry
	for i := range 16 {
		entries = append(entries, reg(strings.Repeat(string(rune('a'+i)), 237), 0, 0)) // a tail of 4011 bytes
	}
	fx := newFixture(t, entries)
	name := fx.write(t)
	fsck(t, name)
	fx.compare(t, kernelView{mount(t, name)})
}

func TestLayoutErrors(t *testing.T) {
	var many []tree.Xattr
	for i := range 40 {
		many = append(many, tree.Xattr{Name: fmt.Sprintf("user.%d", i), Value: make([]byte, 2000)})
	}
	for _, c := range []struct {
		name    string
		entries []tree.Entry
		is      error
		names   string
	}{
		{"one key, two sizes", []tree.Entry{reg("a", 1, 5), reg("b", 2, 1005)}, nil, "content 5 of layer 0"},
		{"more than 2^32 blocks", []tree.Entry{reg("a", 1<<44, 1)}, erofs.ErrTooBig, "content 1 of layer 0"},
		{"more than 2^32 blocks together", []tree.Entry{reg("a", 1<<43, 1), reg("b", 1<<43, 2)}, erofs.ErrTooBig, "content 2 of layer 0"},
		{"no room for metadata", []tree.Entry{reg("a", 1<<44-4*mib, 1)}, erofs.ErrTooBig, "image"},
		{"attribute's value", []tree.Entry{with(reg("d/e/a", 0, 0), tree.Xattr{Name: "user.x", Value: make([]byte, 65536)})}, erofs.ErrTooBig, `/d/e/a: attribute "user.x"`},
		{"attributes together", []tree.Entry{with(reg("d/a", 0, 0), many...)}, erofs.ErrTooBig, "/d/a: attributes"},
		{"nanoseconds", []tree.Entry{{Name: "f", Type: tree.Regular, Mtime: tree.Time{Nsec: 1e9}}}, nil, "/f: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := erofs.NewLayout(buildTree(t, c.entries), contentKey, [16]byte{})
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.names) {
				t.Errorf("error %v; want one that wraps %v and names %q", err, c.is, c.names)
			}
		})
	}
}

func TestDropped(t *testing.T) {
	entries := []tree.Entry{with(reg("d/a", 0, 0), tree.Xattr{Name: "foo.bar"}, tree.Xattr{Name: "system.nfs4_acl"}, tree.Xattr{Name: "user.kept"}, tree.Xattr{Name: "system.posix_acl_access.not"})}
	l := newFixture(t, entries).layout
	if d := cmp.Diff([]string{"/d/a: foo.bar", "/d/a: system.nfs4_acl", "/d/a: system.posix_acl_access.not"}, l.Dropped()); d != "" {
		t.Errorf("dropped (-want +got):\n%s", d)
	}
	for i := range 200 {
		entries = append(entries, with(reg(fmt.Sprintf("f%03d", i), 0, 0), tree.Xattr{Name: "foo.bar"}))
	}
	l = newFixture(t, entries).layout
	if d := l.Dropped(); len(d) != 101 || d[100] != "and 103 more" {
		t.Errorf("%d lines, the last is %q", len(d), d[len(d)-1])
	}
}

// TestDeterministic lays the cases out twice, with trees that were built twice.
func TestDeterministic(t *testing.T) {
	for _, c := range imageCases() {
		a, b := newFixture(t, c.layers...), newFixture(t, c.layers...)
		x, y := a.sparse(t), b.sparse(t)
		if !bytes.Equal(x.super, y.super) || !bytes.Equal(x.meta, y.meta) || !cmp.Equal(a.layout.Extents(), b.layout.Extents()) {
			t.Errorf("%s: two layouts differ", c.name)
		}
	}
}

// TestUUID has an image's identity in its superblock and nowhere else.
func TestUUID(t *testing.T) {
	tr := buildTree(t, goldenEntries()...)
	images := map[[16]byte][]byte{}
	for _, id := range [][16]byte{{1}, {2}} {
		l, err := erofs.NewLayout(tr, contentKey, id)
		if err != nil {
			t.Fatal(err)
		}
		s := &sparse{metaOff: l.MetaOffset(), size: l.Size()}
		if err := l.WriteTo(s); err != nil {
			t.Fatal(err)
		}
		if got := s.open(t).Super(); got.UUID != id || got.Inodes != uint64(tr.Len()) || got.Size != l.Size() || got.MetaOffset != l.MetaOffset() || got.RootNid != 1 {
			t.Errorf("superblock %+v", got)
		}
		images[id] = s.meta
	}
	if !bytes.Equal(images[[16]byte{1}], images[[16]byte{2}]) {
		t.Error("metadata depends on the UUID")
	}
}

// failingWriter fails at the n-th write.
type failingWriter struct {
	n   int
	err error
}

func (w *failingWriter) WriteAt(p []byte, off int64) (int, error) {
	if off%4096 != 0 || len(p)%4096 != 0 {
		return 0, fmt.Errorf("%d bytes at %d are not whole blocks", len(p), off)
	}
	if w.n--; w.n < 0 {
		return 0, w.err
	}
	return len(p), nil
}

func TestWriteTo(t *testing.T) {
	var wide []tree.Entry
	for i := range 60_000 { // more metadata than one write
		wide = append(wide, reg(fmt.Sprintf("f%d", i), 0, 0))
	}
	l := newFixture(t, wide).layout
	for n := range 3 {
		if err := l.WriteTo(&failingWriter{n, io.ErrShortWrite}); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("write %d fails: %v", n, err)
		}
	}
	if err := l.WriteTo(&failingWriter{3, io.ErrShortWrite}); err != nil {
		t.Error(err)
	}
}
