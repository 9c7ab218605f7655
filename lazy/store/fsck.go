package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// Damage is what Fsck has found.
type Damage struct {
	// Blocks are present and are not, or can't be shown to be, what they were when they were written. Ascending.
	Blocks []int64
	// Tree and Map say that the Merkle file, or the map of a sealed image, is damaged. If no block is, Rebuild makes both anew.
	Tree, Map bool
	// Root says that the data and the Merkle file of a sealed image agree, and not with the root that is recorded: one or the other is
	// wrong, and nothing here vouches for either. Of an image that has a root but lost blocks since, it says that its Merkle file is whole and has
	// another root: the image could never be sealed again.
	Root bool
}

// None tells whether nothing is damaged.
func (d Damage) None() bool { return len(d.Blocks) == 0 && !d.Tree && !d.Map && !d.Root }

// CheckFiles looks whether the image's folder still has the files that were opened, and of their sizes: what is mapped of a file that
// was cut must not be touched. The error wraps ErrDamaged.
func (im *Image) CheckFiles() error {
	info, err := readInfo(im.dir)
	if err == nil && info.Key != im.Info.Key {
		err = fmt.Errorf("%w: info.json is of image %.80q", ErrDamaged, info.Key)
	}
	for name, size := range map[string]int64{"image.erofs": im.Info.Size, "map": mapSize(im.blocks), "merkle": merkleSize(im.blocks)} {
		var st os.FileInfo
		if err == nil {
			st, err = os.Stat(filepath.Join(im.dir, name))
		}
		if err == nil && st.Size() != size {
			err = fmt.Errorf("%w: %s has %d bytes, not %d", ErrDamaged, name, st.Size(), size)
		}
		if err != nil || name != "image.erofs" {
			continue
		}
		var open os.FileInfo
		if open, err = im.f.Stat(); err == nil && !os.SameFile(st, open) {
			err = fmt.Errorf("%w: another file has taken the place of %s", ErrDamaged, name)
		}
	}
	return missing(err)
}

// Fsck reads all that is present and compares it with the Merkle tree; of a sealed image also the tree with the root. Its answer is on
// the safe side: where part of the tree is damaged as well as data, all blocks under that part are named. progress, which may be nil, is
// told how many bytes were read. The image may be in use meanwhile.
func (im *Image) Fsck(ctx context.Context, progress func(int64)) (Damage, error) {
	var d Damage
	sealed := im.sealed.Load()
	fresh := newTreeHash()
	var uuid [16]byte
	buf := make([]byte, 1<<20)
	for first := int64(0); first < im.blocks; {
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		if !sealed && !im.present.has(first) {
			first++
			continue
		}
		n := int64(1)
		for n < int64(len(buf)/BlockSize) && first+n < im.blocks && (sealed || im.present.has(first+n)) {
			n++
		}
		p := buf[:n*BlockSize]
		if _, err := im.f.ReadAt(p, first*BlockSize); err != nil {
			return d, fmt.Errorf("checking image %s: %w", im.Info.Key, err)
		}
		if first == 0 {
			copy(uuid[:], p[erofsSuper+erofsUUIDOff:])
		}
		for i := range n {
			h := sha256.Sum256(p[i*BlockSize:][:BlockSize])
			if sealed {
				fresh.add(h)
			}
			if !bytes.Equal(h[:], im.tree.leaf(first+i)) {
				d.Blocks = append(d.Blocks, first+i)
			}
		}
		first += n
		if progress != nil {
			progress(first * BlockSize)
		}
	}
	var root [hashSize]byte
	if b, err := hex.DecodeString(im.Root()); err == nil {
		copy(root[:], b)
	}
	if !sealed {
		top := sha256.Sum256(im.tree.mem[BlockSize : 2*BlockSize])
		d.Root = im.Root() != "" && top != root && len(im.tree.verify(top)) == 0
		return d, nil
	}
	made := fresh.root()
	bad := im.tree.verify(root)
	d.Map = !im.present.full()
	super := !bytes.Equal(im.tree.super(), veritySuper(im.blocks, uuid))
	d.Tree = super || len(bad) > 0
	switch {
	case made == root: // the data is right, so the leaves that differ are not
		d.Tree = d.Tree || len(d.Blocks) > 0
		d.Blocks = nil
		return d, nil
	case len(d.Blocks) == 0 && len(im.tree.verify(made)) == 0:
		d.Root, d.Tree = true, super
		return d, nil
	}
	// leaves that nothing vouches for vouch for nothing
	suspect := make(map[int64]bool)
	for _, b := range d.Blocks {
		suspect[b] = true
	}
	for _, leafBlock := range bad {
		for b := leafBlock * hashesPer; b < min((leafBlock+1)*hashesPer, im.blocks); b++ {
			suspect[b] = true
		}
	}
	d.Blocks = d.Blocks[:0]
	for b := range im.blocks {
		if suspect[b] || !im.present.has(b) {
			d.Blocks = append(d.Blocks, b)
		}
	}
	return d, nil
}

// treeHash computes a Merkle root from leaves as they come.
type treeHash struct {
	level [][]byte // of each level the hashes that don't fill a block yet
}

func newTreeHash() *treeHash { return &treeHash{} }

func (t *treeHash) add(h [hashSize]byte) { t.put(0, h) }

// addBlocks adds the leaves of whole blocks.
func (t *treeHash) addBlocks(_ int64, p []byte) {
	for ; len(p) > 0; p = p[BlockSize:] {
		t.add(sha256.Sum256(p[:BlockSize]))
	}
}

func (t *treeHash) put(level int, h [hashSize]byte) {
	for {
		if level == len(t.level) {
			t.level = append(t.level, make([]byte, 0, BlockSize))
		}
		if len(t.level[level]) < BlockSize {
			t.level[level] = append(t.level[level], h[:]...)
			return
		}
		// a full block goes up only when another hash follows: the top one has no parent
		up := sha256.Sum256(t.level[level])
		t.level[level] = append(t.level[level][:0], h[:]...)
		h = up
		level++
	}
}

// root pads what is unfinished with zeros. No hash may be added afterwards.
func (t *treeHash) root() [hashSize]byte {
	for level := 0; ; level++ {
		block := make([]byte, BlockSize)
		copy(block, t.level[level])
		h := sha256.Sum256(block)
		if level == len(t.level)-1 {
			return h
		}
		t.put(level+1, h)
		t.level[level] = t.level[level][:0]
	}
}

// verify checks the levels of the tree from the root down and returns the blocks of leaves that it can't vouch for.
func (m *merkle) verify(root [hashSize]byte) (bad []int64) {
	lv := levels(m.blocks)
	at := int64(BlockSize)    // of the level in the file
	want := [][]byte{root[:]} // of the level's blocks; nil where the parent is bad
	for i := len(lv) - 1; ; i-- {
		var next [][]byte
		for b := range lv[i] {
			p := m.mem[at+b*BlockSize:][:BlockSize]
			h := sha256.Sum256(p)
			ok := bytes.Equal(want[b], h[:])
			if i == 0 {
				if !ok {
					bad = append(bad, b)
				}
				continue
			}
			for k := range int64(hashesPer) {
				if b*hashesPer+k >= lv[i-1] {
					break
				}
				if ok {
					next = append(next, p[k*hashSize:][:hashSize])
				} else {
					next = append(next, nil)
				}
			}
		}
		if i == 0 {
			return bad
		}
		at += lv[i] * BlockSize
		want = next
	}
}

// Rehash takes blocks for present and for right, and makes their leaves anew.
func (im *Image) Rehash(blocks []int64) error {
	var b [BlockSize]byte
	for _, n := range blocks {
		if _, err := im.f.ReadAt(b[:], n*BlockSize); err != nil {
			return fmt.Errorf("hashing image %s: %w", im.Info.Key, err)
		}
		im.tree.hash(n, b[:])
		im.mark(n, 1)
	}
	return nil
}

// Rebuild writes the Merkle file and the map of a sealed image anew from its data, which must have the recorded root. With anew,
// the data is known to be right, and the root that it has is recorded.
func (im *Image) Rebuild(ctx context.Context, anew bool) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < im.Info.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(int64(len(buf)), im.Info.Size-off)]
		if _, err := im.f.ReadAt(p, off); err != nil {
			return fmt.Errorf("hashing image %s: %w", im.Info.Key, err)
		}
		if off == 0 {
			copy(im.tree.super(), veritySuper(im.blocks, [16]byte(p[erofsSuper+erofsUUIDOff:])))
		}
		im.tree.hash(off/BlockSize, p)
		off += int64(len(p))
	}
	h := im.tree.finish()
	root, recorded := hex.EncodeToString(h[:]), im.Root()
	if root != recorded && !anew {
		return fmt.Errorf("hashing image %s: its root is %s, not %s", im.Info.Key, root, recorded)
	}
	if err := im.tree.sync(); err != nil {
		return fmt.Errorf("writing Merkle tree of image %s: %w", im.Info.Key, err)
	}
	im.present.set(0, im.blocks)
	if err := im.present.sync(); err != nil {
		return fmt.Errorf("writing map of image %s: %w", im.Info.Key, err)
	}
	if root == recorded {
		return nil
	}
	return im.record(Sealed, root)
}

// Forget takes blocks of the image for missing from now on, in every process. The image is to be opened anew; one that was sealed is
// lazy then, and must get its root again when it is sealed the next time, unless with root that is forgotten, too.
func (im *Image) Forget(blocks []int64, root bool) error {
	for _, b := range blocks {
		im.present.clear(b)
	}
	if err := im.present.sync(); err != nil {
		return fmt.Errorf("writing map of image %s: %w", im.Info.Key, err)
	}
	if !root {
		return nil
	}
	return im.record(Lazy, "")
}
