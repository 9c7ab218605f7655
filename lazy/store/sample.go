package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

var (
	// ErrDamaged is wrapped where an image's files are not what they were when they were written.
	ErrDamaged = errors.New("image is damaged")
	// ErrNotSealed is wrapped where a Merkle root is asked for and the image has none yet.
	ErrNotSealed = errors.New("image is not sealed")
)

// Where an image has its identity (Linux: fs/erofs/erofs_fs.h, struct erofs_super_block).
const (
	erofsSuper   = 1024 // where the superblock begins
	erofsUUIDOff = 48   // in the superblock
)

// Sample looks for damage that costs next to nothing to find: files of another size or of another image, first blocks that
// are not what was written, and, if the image was sealed when the View was opened and is whole, n of its blocks that are
// not what the Merkle root stands for. These are the first block, the first one of the metadata, the last one, and others by chance,
// other ones each time; 0 is none. It reads a block and a hash block for each level of the tree, at most five, for each.
// The error wraps ErrDamaged and names the file, and block and offset in it.
func (v *View) Sample(n int) error {
	if err := v.sample(n); err != nil {
		return fmt.Errorf("checking image %.12s: %w", v.Info.Key, err)
	}
	return nil
}

func (v *View) sample(n int) error {
	dir := filepath.Dir(v.f.Name())
	if name := filepath.Base(dir); name != string(v.Info.Key) {
		return fmt.Errorf("%w: its folder %.80q is another image's", ErrDamaged, name)
	}
	if v.Info.Size%BlockSize != 0 || v.Info.MetaOff < 0 || v.Info.MetaOff >= v.Info.Size {
		return fmt.Errorf("%w: info.json: %d bytes with metadata at %d", ErrDamaged, v.Info.Size, v.Info.MetaOff)
	}
	tree, err := v.openTree()
	if err != nil {
		return err
	}
	defer tree.Close()
	if !v.present.has(0) {
		return nil // it is being mended
	}
	if err := v.sampleSupers(tree); err != nil || !v.sealed() {
		return err
	}
	root, err := hex.DecodeString(v.Info.Root)
	if err != nil || len(root) != hashSize {
		return fmt.Errorf("%w: info.json: %.80q is no Merkle root", ErrDamaged, v.Info.Root)
	}
	blocks := v.Info.Size / BlockSize
	for i := range n {
		b := rand.Int64N(blocks)
		switch i {
		case 0:
			b = 0
		case 1:
			b = v.Info.MetaOff / BlockSize
		case 2:
			b = blocks - 1
		}
		if err := v.prove(tree, root, b); err != nil {
			return err
		}
	}
	return nil
}

// sealed tells whether the root stands for what is there: an image that is being mended has one, and misses blocks.
func (v *View) sealed() bool { return v.Info.State == Sealed && v.Complete() }

// openTree opens the Merkle file, which must have its size.
func (v *View) openTree() (*os.File, error) {
	f, err := os.Open(filepath.Join(filepath.Dir(v.f.Name()), "merkle"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if want := merkleSize(v.Info.Size / BlockSize); err == nil && st.Size() != want {
		err = fmt.Errorf("%w: merkle has %d bytes, not %d", ErrDamaged, st.Size(), want)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sampleSupers compares the first blocks of image and tree, where the superblocks are, with each other.
func (v *View) sampleSupers(tree io.ReaderAt) error {
	blocks := v.Info.Size / BlockSize
	var image, verity, leaves [BlockSize]byte
	err := readBlock(v.f, image[:], "image.erofs", 0)
	if err == nil {
		err = readBlock(tree, verity[:], "merkle", 0)
	}
	if err == nil {
		err = readBlock(tree, leaves[:], "merkle", merkleSize(blocks)/BlockSize-levels(blocks)[0])
	}
	if err != nil {
		return err
	}
	if h := sha256.Sum256(image[:]); !bytes.Equal(h[:], leaves[:hashSize]) {
		return fmt.Errorf("%w: image.erofs: block 0 at offset 0 is not what merkle says: one of them is damaged or another image's", ErrDamaged)
	}
	if !bytes.Equal(verity[:], veritySuper(blocks, [16]byte(image[erofsSuper+erofsUUIDOff:]))) {
		return fmt.Errorf("%w: merkle: block 0 is not the superblock of a tree over image.erofs", ErrDamaged)
	}
	return nil
}

// prove compares a block with the Merkle root, from the root downwards.
func (v *View) prove(tree io.ReaderAt, root []byte, block int64) error {
	lv := levels(v.Info.Size / BlockSize)
	want := root
	var b [BlockSize]byte
	start := int64(1) // of a level in the file, in blocks
	for i := len(lv) - 1; i >= 0; i-- {
		index := block
		for range i {
			index /= hashesPer
		}
		at := start + index/hashesPer
		if err := readBlock(tree, b[:], "merkle", at); err != nil {
			return err
		}
		if h := sha256.Sum256(b[:]); !bytes.Equal(h[:], want) {
			return fmt.Errorf("%w: merkle: block %d at offset %d is not what was sealed", ErrDamaged, at, at*BlockSize)
		}
		want = bytes.Clone(b[index%hashesPer*hashSize:][:hashSize])
		start += lv[i]
	}
	if err := readBlock(v.f, b[:], "image.erofs", block); err != nil {
		return err
	}
	if h := sha256.Sum256(b[:]); !bytes.Equal(h[:], want) {
		return fmt.Errorf("%w: image.erofs: block %d at offset %d is not what was sealed", ErrDamaged, block, block*BlockSize)
	}
	return nil
}

// readBlock reads a block of a file into p.
func readBlock(r io.ReaderAt, p []byte, name string, block int64) error {
	n, err := r.ReadAt(p[:BlockSize], block*BlockSize)
	switch {
	case n == BlockSize:
		return nil
	case err == io.EOF:
		return fmt.Errorf("%w: %s ends in block %d", ErrDamaged, name, block)
	}
	return fmt.Errorf("%w: %s: reading block %d: %w", ErrDamaged, name, block, err)
}

// Proof opens a sealed image's Merkle file for reading, a dm-verity hash device, and gives the number of blocks that it
// is over and its root in hex. The error of an image that was not sealed when the View was opened wraps ErrNotSealed.
// Whoever gets the file closes it.
func (v *View) Proof() (tree *os.File, blocks int64, root string, err error) {
	if !v.sealed() {
		return nil, 0, "", fmt.Errorf("proving image %.12s: %w", v.Info.Key, ErrNotSealed)
	}
	if tree, err = v.openTree(); err != nil {
		return nil, 0, "", fmt.Errorf("proving image %.12s: %w", v.Info.Key, err)
	}
	return tree, v.Info.Size / BlockSize, v.Info.Root, nil
}
