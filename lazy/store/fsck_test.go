package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sealed makes a sealed image of that many blocks and gives its root.
func sealed(t *testing.T, s *Store, blocks int) (root string) {
	t.Helper()
	b := sealedContent(blocks)
	im := create(t, s, len(b))
	if err := im.Put(0, b); err != nil {
		t.Fatal(err)
	}
	if err := im.Seal(); err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	return im.Root()
}

// sealedContent has the image's identity where EROFS has it.
func sealedContent(blocks int) []byte {
	b := content(blocks)
	copy(b[erofsSuper+erofsUUIDOff:], []byte{1, 15: 0})
	return b
}

// flip changes one bit of a file.
func flip(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func fsck(t *testing.T, s *Store) (*Image, Damage) {
	t.Helper()
	im, err := s.Image(context.Background(), testKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	d, err := im.Fsck(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return im, d
}

func TestRootOfStream(t *testing.T) {
	for _, n := range []int{1, 2, 127, 128, 129, 256, 128 * 128, 128*128 + 1} {
		b := content(n)
		got, err := MerkleRoot(bytes.NewReader(b), int64(len(b)))
		if want := naiveRoot(b); err != nil || got != want {
			t.Errorf("%d blocks: %s, %v; want %s", n, got, err, want)
		}
		name := filepath.Join(t.TempDir(), "merkle")
		if got, err = WriteMerkle(name, bytes.NewReader(b), int64(len(b)), [16]byte{}); err != nil || got != naiveRoot(b) {
			t.Errorf("%d blocks, to a file: %s, %v", n, got, err)
		}
	}
}

// TestFsck damages data, each level of the tree, and both.
func TestFsck(t *testing.T) {
	const blocks = 128*128 + 200 // three levels: 131 blocks of leaves, 2, 1
	leaves := int64(BlockSize * (1 + 1 + 2))
	for _, c := range []struct {
		name   string
		data   []int64 // blocks
		merkle []int64 // offsets
		want   []int64
		tree   bool
	}{
		{name: "nothing"},
		{name: "data", data: []int64{0, 777, blocks - 1}, want: []int64{0, 777, blocks - 1}},
		{name: "a leaf", merkle: []int64{leaves + 32*500}, tree: true},
		{name: "a level between", merkle: []int64{BlockSize * 2}, tree: true},
		{name: "the top", merkle: []int64{BlockSize}, tree: true},
		{name: "behind the leaves", merkle: []int64{leaves + 32*blocks}, tree: true},
		{name: "behind the hashes of the top", merkle: []int64{BlockSize + 32*2}, tree: true},
		{name: "the superblock", merkle: []int64{12}, tree: true},
		{name: "data and its own leaf", data: []int64{200}, merkle: []int64{leaves + 32*200}, want: seq(128, 256), tree: true},
		{name: "data and a leaf elsewhere", data: []int64{3}, merkle: []int64{leaves + 32*500}, want: slices.Concat([]int64{3}, seq(384, 512)), tree: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			root := sealed(t, s, blocks)
			for _, b := range c.data {
				flip(t, filepath.Join(s.ImageDir(testKey), "image.erofs"), b*BlockSize+99)
			}
			for _, off := range c.merkle {
				flip(t, filepath.Join(s.ImageDir(testKey), "merkle"), off)
			}
			im, d := fsck(t, s)
			if !slices.Equal(d.Blocks, c.want) || d.Tree != c.tree {
				t.Fatalf("found %v, tree %v; want %v, %v", d.Blocks, d.Tree, c.want, c.tree)
			}
			if len(d.Blocks) == 0 {
				if err := im.Rebuild(t.Context(), false); err != nil {
					t.Fatal(err)
				}
				if _, d := fsck(t, s); !d.None() {
					t.Errorf("after the tree was made anew: %+v", d)
				}
				return
			}
			if err := im.Rebuild(t.Context(), false); err == nil {
				t.Error("a tree of wrong data was taken")
			}
			if err := im.Forget(d.Blocks, false); err != nil {
				t.Fatal(err)
			}
			im, _ = fsck(t, s)
			if im.State() != Lazy || im.Has(d.Blocks[0]*BlockSize, 1) {
				t.Fatalf("damaged blocks are still there: %s", im.State())
			}
			b := sealedContent(blocks)
			for _, n := range d.Blocks {
				if err := im.Put(n*BlockSize, b[n*BlockSize:][:BlockSize]); err != nil {
					t.Fatal(err)
				}
			}
			flip(t, filepath.Join(s.ImageDir(testKey), "merkle"), 8) // nobody looks at it before
			if err := im.Seal(); err != nil {
				t.Fatal(err)
			}
			if im.Root() != root {
				t.Error("it has another root now")
			}
			if _, d := fsck(t, s); !d.None() {
				t.Errorf("after it was healed: %+v", d)
			}
		})
	}
}

// TestFsckMap takes bits out of the map of a sealed image that is in use.
func TestFsckMap(t *testing.T) {
	for _, c := range []struct {
		name string
		data int64 // a block to damage
		want []int64
	}{{"map", -1, nil}, {"map and data", 9, []int64{7, 9}}} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			sealed(t, s, 300)
			im, _ := fsck(t, s)
			im.present.clear(7)
			if c.data >= 0 {
				flip(t, filepath.Join(s.ImageDir(testKey), "image.erofs"), c.data*BlockSize)
			}
			d, err := im.Fsck(context.Background(), nil)
			if err != nil || !d.Map || !slices.Equal(d.Blocks, c.want) {
				t.Fatalf("%+v, %v; want the map and %v", d, err, c.want)
			}
			if c.want != nil {
				return
			}
			if err := im.Rebuild(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if im, d := fsck(t, s); !d.None() || im.State() != Sealed {
				t.Errorf("afterwards: %+v, %s", d, im.State())
			}
		})
	}
}

// TestSealAgain heals a sealed image with wrong bytes.
func TestSealAgain(t *testing.T) {
	s := openStore(t)
	sealed(t, s, 300)
	im, _ := fsck(t, s)
	if err := im.Forget([]int64{7}, false); err != nil {
		t.Fatal(err)
	}
	im, _ = fsck(t, s)
	if err := im.Put(7*BlockSize, make([]byte, BlockSize)); err != nil {
		t.Fatal(err)
	}
	if err := im.Seal(); err == nil || im.State() == Sealed {
		t.Error("an image was sealed with another root than before")
	}
}

func seq(from, to int64) (all []int64) {
	for ; from < to; from++ {
		all = append(all, from)
	}
	return all
}

// TestCheckFiles cuts and replaces the files of an image that is open.
func TestCheckFiles(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(dir string) error
		ok     bool
	}{
		{"nothing", func(string) error { return nil }, true},
		{"image cut", func(dir string) error { return os.Truncate(filepath.Join(dir, "image.erofs"), BlockSize) }, false},
		{"tree cut", func(dir string) error { return os.Truncate(filepath.Join(dir, "merkle"), BlockSize) }, false},
		{"map cut", func(dir string) error { return os.Truncate(filepath.Join(dir, "map"), 0) }, false},
		{"tree gone", func(dir string) error { return os.Remove(filepath.Join(dir, "merkle")) }, false},
		{"info gone", func(dir string) error { return os.Remove(filepath.Join(dir, "info.json")) }, false},
		{"info is no JSON", func(dir string) error { return os.WriteFile(filepath.Join(dir, "info.json"), []byte("{"), 0o600) }, false},
		{"another image", func(dir string) error {
			other := filepath.Join(dir, "other")
			return errors.Join(os.WriteFile(other, make([]byte, 300*BlockSize), 0o600), os.Rename(other, filepath.Join(dir, "image.erofs")))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			sealed(t, s, 300)
			im, _ := fsck(t, s)
			if err := c.damage(s.ImageDir(testKey)); err != nil {
				t.Fatal(err)
			}
			if err := im.CheckFiles(); c.ok && err != nil || !c.ok && !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v", err)
			}
			if im, err := s.Image(t.Context(), testKey); err == nil {
				im.Close()
			} else if !c.ok && !errors.Is(err, ErrDamaged) {
				t.Errorf("opening it: %v", err)
			}
		})
	}
}

// TestFsckOtherRoot has another root recorded than that of the image: nothing says which one is right.
func TestFsckOtherRoot(t *testing.T) {
	for _, c := range []struct {
		name  string
		root  string // that is recorded
		data  bool   // damaged, too
		super bool   // of the tree
	}{{"another", strings.Repeat("5", 64), false, false}, {"none", "", false, false}, {"and the superblock", strings.Repeat("5", 64), false, true}, {"and data", strings.Repeat("5", 64), true, false}} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			root := sealed(t, s, 300)
			im, _ := fsck(t, s)
			if err := im.record(Sealed, c.root); err != nil {
				t.Fatal(err)
			}
			if c.data {
				flip(t, im.f.Name(), 7*BlockSize)
			}
			if c.super {
				flip(t, filepath.Join(im.dir, "merkle"), 8)
			}
			d, err := im.Fsck(t.Context(), nil)
			if err != nil || d.None() || d.Root == c.data || d.Tree != (c.data || c.super) || c.data != (len(d.Blocks) == 300) {
				t.Fatalf("%+v, %v", d, err)
			}
			if err := im.Rebuild(t.Context(), false); err == nil {
				t.Error("another root was taken for the one that is recorded")
			}
			if c.data {
				if err := im.Forget([]int64{7}, true); err != nil {
					t.Fatal(err)
				}
				if im, err = s.Image(t.Context(), testKey); err != nil {
					t.Fatal(err)
				}
				defer im.Close()
				err = im.Put(7*BlockSize, sealedContent(300)[7*BlockSize:][:BlockSize])
				if err := errors.Join(err, im.Seal()); err != nil {
					t.Fatal(err)
				}
			} else if err := im.Rebuild(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			if im, d := fsck(t, s); !d.None() || im.Root() != root {
				t.Errorf("afterwards: %+v", d)
			}
		})
	}
}

// TestRehash makes leaves anew that are wrong, of blocks that are right, and marks one that the map has lost.
func TestRehash(t *testing.T) {
	s := openStore(t)
	sealed(t, s, 300)
	im, _ := fsck(t, s)
	flip(t, filepath.Join(im.dir, "merkle"), merkleSize(300)-3*BlockSize+32*7)
	im.present.clear(9)
	if err := im.Rehash([]int64{7, 9}); err != nil {
		t.Fatal(err)
	}
	if im, d := fsck(t, s); !d.None() || im.State() != Sealed {
		t.Errorf("%+v, %s", d, im.State())
	}
}
