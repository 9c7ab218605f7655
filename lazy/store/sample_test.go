package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampleBlocks is such that the tree has three levels.
const sampleBlocks = 128*128 + 200

// sealedImage makes a sealed image that looks like EROFS as far as Sample goes. Its metadata begins in block meta.
func sealedImage(t *testing.T, blocks int, meta int64) (dir string) {
	t.Helper()
	s := openStore(t)
	im, err := s.Create(Info{Key: testKey, Size: int64(blocks) * BlockSize, MetaOff: meta * BlockSize, UUID: [16]byte{7, 8}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(im); err != nil {
		t.Fatal(err)
	}
	want := content(blocks)
	copy(want[erofsSuper+erofsUUIDOff:], []byte{7, 8, 15: 0})
	if err := errors.Join(im.Put(0, want), im.Seal(), im.Close()); err != nil {
		t.Fatal(err)
	}
	return s.ImageDir(testKey)
}

// flipBit changes a bit of a file.
func flipBit(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	if err == nil {
		b[0] ^= 0x10
		_, err = f.WriteAt(b[:], off)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestSample(t *testing.T) {
	dir := sealedImage(t, sampleBlocks, 150)
	image, tree := filepath.Join(dir, "image.erofs"), filepath.Join(dir, "merkle")
	// where the levels begin, in blocks: one block, two, and 130 of leaves
	const top, middle, leaves = 1, 2, 4
	const supers = "image.erofs: block 0 at offset 0 is not what merkle says: one of them is damaged or another image's"
	tests := []struct {
		name string
		file string
		off  int64 // of the bit that is flipped
		n    int   // blocks to sample
		want string
	}{
		{"whole", "", 0, 16, ""},
		{"superblock of the image", image, erofsSuper, 0, supers},
		{"identity of the image", image, erofsSuper + erofsUUIDOff, 0, supers},
		{"superblock of the tree", tree, 4000, 0, "merkle: block 0 is not the superblock"},
		{"first block", image, 10, 0, supers},
		{"end of the first block", image, 4095, 1, supers},
		{"the first block's hash", tree, leaves * BlockSize, 0, supers},
		{"a hash beside the first block's", tree, leaves*BlockSize + hashSize, 0, ""},
		{"a hash beside the first block's, with a root", tree, leaves*BlockSize + hashSize, 1, "merkle: block 4 at offset 16384 is not what was sealed"},
		{"metadata", image, 150*BlockSize + 4095, 2, "image.erofs: block 150 at offset 614400 is not what was sealed"},
		{"last block", image, (sampleBlocks - 1) * BlockSize, 3, "image.erofs: block 16583 at offset 67923968 is"},
		{"top of the tree", tree, top*BlockSize + 4000, 1, "merkle: block 1 at offset 4096 is not what was sealed"},
		{"middle of the tree", tree, (middle+1)*BlockSize + 5, 3, "merkle: block 3 at offset 12288 is"},
		{"a leaf", tree, (leaves+1)*BlockSize + (150-128)*hashSize, 2, "merkle: block 5 at offset 20480 is"},
		{"a leaf's neighbour", tree, (leaves+1)*BlockSize + 100*hashSize, 2, "merkle: block 5 at offset 20480 is"},
		{"any block, in time", tree, (leaves + 9) * BlockSize, 4000, "merkle: block 13 at offset"},
		{"a block that isn't looked at", image, 77*BlockSize + 1, 3, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.file != "" {
				flipBit(t, tt.file, tt.off)
				defer flipBit(t, tt.file, tt.off)
			}
			checkSample(t, dir, tt.n, tt.want)
		})
	}

	t.Run("truncated image", func(t *testing.T) {
		v := openView(t, dir)
		if err := os.Truncate(image, BlockSize); err != nil {
			t.Fatal(err)
		}
		if err := v.Sample(2); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "image.erofs ends in block 150") {
			t.Errorf("Sample() = %v", err)
		}
		if v, err := OpenView(dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "image.erofs has 4096 bytes, not") {
			t.Errorf("OpenView() = %v, %v", v, err)
		}
		if err := os.Truncate(image, sampleBlocks*BlockSize); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("truncated tree", func(t *testing.T) {
		size := merkleSize(sampleBlocks)
		if err := os.Truncate(tree, size-1); err != nil {
			t.Fatal(err)
		}
		checkSample(t, dir, 0, "merkle has")
		if err := os.Remove(tree); err != nil {
			t.Fatal(err)
		}
		checkSample(t, dir, 0, "no such file")
	})
	t.Run("another image's folder", func(t *testing.T) {
		other := filepath.Join(filepath.Dir(dir), strings.Repeat("ab", 32))
		if err := os.Rename(dir, other); err != nil {
			t.Fatal(err)
		}
		checkSample(t, other, 0, "is another image's")
		if err := os.Remove(filepath.Join(other, "image.erofs")); err != nil {
			t.Fatal(err)
		}
		if v, err := OpenView(other); !errors.Is(err, ErrDamaged) {
			t.Errorf("OpenView() = %v, %v, without a file", v, err)
		}
	})
}

func openView(t *testing.T, dir string) *View {
	t.Helper()
	v, err := OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// checkSample samples an image and compares a part of the error; "" is none.
func checkSample(t *testing.T, dir string, n int, want string) {
	t.Helper()
	err := openView(t, dir).Sample(n)
	if want == "" && err != nil {
		t.Errorf("Sample(%d) = %v", n, err)
	}
	if want != "" && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), want)) {
		t.Errorf("Sample(%d) = %v, want %q", n, err, want)
	}
}

// TestSampleUnsealed has no root to compare with, and no block either at first.
func TestSampleUnsealed(t *testing.T) {
	s := openStore(t)
	im := create(t, s, 4*BlockSize)
	defer im.Close()
	v := openView(t, s.ImageDir(testKey))
	if err := v.Sample(16); err != nil {
		t.Errorf("nothing is there: %v", err)
	}
	if _, _, _, err := v.Proof(); !errors.Is(err, ErrNotSealed) {
		t.Errorf("Proof() = %v, want %v", err, ErrNotSealed)
	}
	b := make([]byte, BlockSize)
	if err := im.Put(0, b); err != nil {
		t.Fatal(err)
	}
	if err := v.Sample(16); !errors.Is(err, ErrDamaged) {
		t.Errorf("no superblock: %v", err)
	}
}

func TestProof(t *testing.T) {
	dir := sealedImage(t, 3, 1)
	v := openView(t, dir)
	f, blocks, root, err := v.Proof()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if blocks != 3 || root != v.Info.Root || len(root) != 64 {
		t.Errorf("%d blocks, root %s", blocks, root)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("the tree can be written to")
	}
	if err := os.Truncate(f.Name(), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := v.Proof(); !errors.Is(err, ErrDamaged) {
		t.Errorf("Proof() of an empty tree = %v", err)
	}
}
