package erofs_test

import (
	"cmp"
	"fmt"
	"os"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// placement is a layout beside what an image of it shows.
type placement struct {
	*fixture
	s       *sparse
	im      *erofs.Image
	extents []erofs.Extent
	files   []tree.Ino                // visible, not empty
	where   map[tree.Ino]int64        // of their contents, by the image
	first   map[[32]byte]tree.Content // by key: what comes first of the visible contents of it
}

func newPlacement(t *testing.T, fx *fixture) *placement {
	t.Helper()
	p := &placement{fixture: fx, s: fx.sparse(t), extents: fx.layout.Extents(), where: map[tree.Ino]int64{}, first: map[[32]byte]tree.Content{}}
	p.im = p.s.open(t)
	nids := map[tree.Ino]uint64{0: 1}
	for todo := []tree.Ino{0}; len(todo) > 0; todo = todo[1:] {
		parent, err := p.im.Inode(nids[todo[0]])
		if err != nil {
			t.Fatal(err)
		}
		for d := range fx.tree.Children(todo[0]) {
			nid, err := p.im.Lookup(parent, d.Name)
			if err != nil {
				t.Fatal(err)
			}
			if known, ok := nids[d.Ino]; ok && known != nid {
				t.Fatalf("%q is inode %d, another name of it has %d", d.Name, nid, known)
			} else if ok {
				continue
			}
			nids[d.Ino] = nid
			a := fx.tree.Stat(d.Ino)
			if d.Type == tree.Dir {
				todo = append(todo, d.Ino)
			}
			if a.Type != tree.Regular || a.Size == 0 {
				continue
			}
			in, err := p.im.Inode(nid)
			if err != nil {
				t.Fatal(err)
			}
			if p.where[d.Ino], err = p.im.DataOff(in); err != nil {
				t.Fatal(err)
			}
			p.files = append(p.files, d.Ino)
			key := fx.key(a.Content)
			if c, ok := p.first[key]; !ok || before(a.Content, c) {
				p.first[key] = a.Content
			}
		}
	}
	return p
}

// before tells which content has the first place: the one of the upper layer, and in a layer the lower number.
func before(a, b tree.Content) bool {
	return cmp.Or(cmp.Compare(b.Layer, a.Layer), cmp.Compare(a.Index, b.Index)) < 0
}

// rules are the sentences of layout version 1 on where things lie.
func rules() []struct {
	says  string
	holds func(p *placement) error
} {
	type rule = struct {
		says  string
		holds func(p *placement) error
	}
	each := func(f func(p *placement, k int, e erofs.Extent) bool) func(p *placement) error {
		return func(p *placement) error {
			for k, e := range p.extents {
				if !f(p, k, e) {
					return fmt.Errorf("extent %d: %+v", k, e)
				}
			}
			return nil
		}
	}
	return []rule{
		{"contents from 2 MiB on", each(func(_ *placement, _ int, e erofs.Extent) bool { return e.Off >= 2*mib })},
		{"on 4 KiB", each(func(_ *placement, _ int, e erofs.Extent) bool { return e.Off%(4*kib) == 0 })},
		{"those of 2 MiB and more on 2 MiB", each(func(_ *placement, _ int, e erofs.Extent) bool { return e.Size < 2*mib || e.Off%(2*mib) == 0 })},
		{"top layer first, then by number", each(func(p *placement, k int, e erofs.Extent) bool {
			return k == 0 || before(p.extents[k-1].Content, e.Content)
		})},
		{"at their first visible occurrence", each(func(p *placement, _ int, e erofs.Extent) bool { return p.first[p.key(e.Content)] == e.Content })},
		{"each at the first place behind the one before it", each(func(p *placement, k int, e erofs.Extent) bool {
			end, unit := int64(2*mib), int64(4*kib)
			if k > 0 {
				end = p.extents[k-1].Off + p.extents[k-1].Size
			}
			if e.Size >= 2*mib {
				unit = 2 * mib
			}
			return e.Off >= end && e.Off-end < unit
		})},
		{"identical ones once", func(p *placement) error {
			if len(p.extents) != len(p.first) {
				return fmt.Errorf("%d extents of %d different contents", len(p.extents), len(p.first))
			}
			return nil
		}},
		{"where the image's inodes say", func(p *placement) error {
			at := map[[32]byte]int64{}
			for _, e := range p.extents {
				at[p.key(e.Content)] = e.Off
			}
			for _, i := range p.files {
				if a := p.tree.Stat(i); p.where[i] != at[p.key(a.Content)] {
					return fmt.Errorf("content %+v is at %d, and by its inode at %d", a.Content, at[p.key(a.Content)], p.where[i])
				}
			}
			return nil
		}},
		{"then the metadata", func(p *placement) error {
			end := int64(2 * mib)
			if n := len(p.extents); n > 0 {
				end = p.extents[n-1].Off + p.extents[n-1].Size
			}
			if off := p.layout.MetaOffset(); off < end || off-end >= 4*kib || off%(4*kib) != 0 || off != p.im.Super().MetaOffset {
				return fmt.Errorf("contents end at %d, the metadata is at %d, by the superblock at %d", end, off, p.im.Super().MetaOffset)
			}
			return nil
		}},
		{"padded to a multiple of 2 MiB", func(p *placement) error {
			end := p.layout.MetaOffset() + int64(len(p.s.meta))
			if size := p.layout.Size(); size%(2*mib) != 0 || size < end || size-end >= 2*mib || size != p.im.Super().Size {
				return fmt.Errorf("the metadata ends at %d, the image has %d bytes, by the superblock %d", end, size, p.im.Super().Size)
			}
			return nil
		}},
		{"the root's nid is 1", func(p *placement) error {
			if nid := p.im.Super().RootNid; nid != 1 {
				return fmt.Errorf("it is %d", nid)
			}
			return nil
		}},
		{"what Check accepts", func(p *placement) error { return erofs.Check(p.s, p.s.size) }},
	}
}

// TestPlacement holds layouts, and images by what a reader sees of them, against the rules one by one.
func TestPlacement(t *testing.T) {
	try := func(name string, layers [][]tree.Entry) {
		t.Run(name, func(t *testing.T) {
			p := newPlacement(t, newFixture(t, layers...))
			for _, r := range rules() {
				if err := r.holds(p); err != nil {
					t.Errorf("%s: %v", r.says, err)
				}
			}
		})
	}
	for _, c := range append(imageCases(), goldenCases()...) {
		try(c.name, c.layers)
	}
	for seed := range uint64(200) {
		try(fmt.Sprintf("tree %d", seed), randomLayers(seed))
	}
}

// TestGapsAreZero reads what lies between the superblock's block, contents and metadata of an image file.
func TestGapsAreZero(t *testing.T) {
	fx := newFixture(t, []tree.Entry{reg("a", 1, 1), reg("b", 2*mib, 2), reg("c", 2*mib+1, 3), reg("d", 5, 4), reg("e", 4*mib, 5)})
	f, err := os.Open(fx.write(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	owned := append([]erofs.Extent{{Off: 0, Size: 4 * kib}}, fx.layout.Extents()...)
	owned = append(owned, erofs.Extent{Off: fx.layout.MetaOffset(), Size: fx.layout.Size() - fx.layout.MetaOffset()})
	end := int64(0)
	for _, o := range owned {
		for b := make([]byte, 4*kib); end < o.Off; end += int64(len(b)) {
			b = b[:min(int64(len(b)), o.Off-end)]
			if _, err := f.ReadAt(b, end); err != nil {
				t.Fatal(err)
			}
			for k, x := range b {
				if x != 0 {
					t.Fatalf("byte %d is %#x", end+int64(k), x)
				}
			}
		}
		end = o.Off + o.Size
	}
}
