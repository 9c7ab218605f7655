package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Key names an image in the cache: a SHA-256 in hex over all that its bytes depend on.
type Key string

// State of an image, in its order.
type State string

const (
	Lazy     State = "lazy"     // blocks are missing
	Complete State = "complete" // every block is there: usable as a warm image
	Sealed   State = "sealed"   // and on disk, its Merkle root recorded
	Damaged  State = "damaged"  // its files can't be an image's: only Images says so
)

// Layer is a layer of an image as status shows it.
type Layer struct {
	Digest    string `json:"digest"`
	Size      int64  `json:"size"` // compressed, bytes
	MediaType string `json:"mediaType"`
	TOC       bool   `json:"toc"`             // fetched by its table of contents; else streamed whole
	Format    uint8  `json:"format"`          // layer.Format of its chunks
	Index     string `json:"index,omitempty"` // name of the index that was made of its table of contents
	DiffID    string `json:"diffID"`          // SHA-256 in hex
}

// Info is what the cache says about an image.
type Info struct {
	Key       Key       `json:"key"`
	Ref       string    `json:"ref"` // where it was opened from first
	Manifest  string    `json:"manifest"`
	Size      int64     `json:"size"`                // of the image file, bytes
	MetaOff   int64     `json:"metaOff"`             // where the metadata begins
	Inodes    int64     `json:"inodes"`              // in the image
	Layers    []Layer   `json:"layers"`              // bottom first
	Created   time.Time `json:"created"`             // when its layout was made
	State     State     `json:"state"`               // Lazy or Sealed: Complete is only in memory
	Root      string    `json:"root"`                // Merkle root in hex, of a sealed image
	Ambiguous []string  `json:"ambiguous,omitempty"` // what tools that unpack images disagree on
	Dropped   []string  `json:"dropped"`             // attributes that EROFS cannot hold
	UUID      [16]byte  `json:"-"`                   // of a new image
	Plan      []byte    `json:"-"`                   // of a new image
	Stream    int64     `json:"streamed"`            // bytes of content that came with streamed layers
}

// Image is an image file open for filling. Its methods may be called concurrently; no two calls may write the same block
// at once.
type Image struct {
	Info    Info
	dir     string
	f       *os.File
	present *presence
	tree    *merkle
	blocks  int64
	sealed  atomic.Bool
	early   writeback
}

func (s *Store) imageDir(k Key) string { return filepath.Join(s.dir, "images", string(k)) }

// ImageDir is the folder of an image, for View.
func (s *Store) ImageDir(k Key) string { return s.imageDir(k) }

// Create makes the files of a new image, all of its blocks missing, in a place where no other process looks. Publish
// shows it; Discard removes it.
func (s *Store) Create(info Info) (*Image, error) {
	if info.Size <= 0 || info.Size%BlockSize != 0 {
		return nil, fmt.Errorf("creating image: size %d is not a multiple of %d", info.Size, BlockSize)
	}
	dir, err := s.tempDir("image-*")
	if err != nil {
		return nil, fmt.Errorf("creating image: %w", err)
	}
	info.State, info.Root, info.Created = Lazy, "", time.Now().UTC()
	im, err := s.create(dir, info)
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("creating image: %w", err)
	}
	return im, nil
}

// Overhead is how many bytes the files beside a new image take on disk when it is made.
func (i Info) Overhead() int64 {
	blocks := i.Size / BlockSize
	return mapSize(blocks) + merkleSize(blocks) + int64(len(i.Plan)) + int64(len(i.Layers))*1024 + 8*BlockSize
}

func (s *Store) create(dir string, info Info) (*Image, error) {
	f, err := os.OpenFile(filepath.Join(dir, "image.erofs"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(info.Size)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	blocks := info.Size / BlockSize
	if err := createMap(filepath.Join(dir, "map"), blocks, s.boot); err != nil {
		return nil, err
	}
	if err := createMerkle(filepath.Join(dir, "merkle"), blocks, info.UUID); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "plan"), info.Plan, 0o600); err != nil {
		return nil, err
	}
	b, err := encodeJSON(info)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "info.json"), b, 0o600)
	}
	if err != nil {
		return nil, err
	}
	return openImage(dir)
}

// Publish gives a created image its place in the cache. The error wraps fs.ErrExist where there is an image of that key.
func (s *Store) Publish(im *Image) error {
	to := s.imageDir(im.Info.Key)
	// ENOTEMPTY, which wraps fs.ErrExist, where there is one
	if err := os.Rename(im.dir, to); err != nil {
		return fmt.Errorf("publishing image %s: %w", im.Info.Key, err)
	}
	im.dir = to
	_ = s.Touch(im.Info.Key) // else its last use is when it was begun
	s.later(filepath.Dir(to))
	return nil
}

// Discard closes an image and removes its files.
func (s *Store) Discard(im *Image) error {
	return errors.Join(im.Close(), os.RemoveAll(im.dir))
}

// Image opens an image for filling. After another boot of the machine, blocks of an unsealed image that are not what
// their Merkle leaf says are taken for missing. The error wraps ErrNotCached where there is no such image, and ErrDamaged where its
// files can't be an image's.
func (s *Store) Image(ctx context.Context, k Key) (*Image, error) {
	if !isHex(string(k)) {
		return nil, fmt.Errorf("%.80q is not an image key", k)
	}
	if _, err := os.Lstat(s.imageDir(k)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: image %s", ErrNotCached, k)
	}
	im, err := openImage(s.imageDir(k))
	if err != nil {
		return nil, fmt.Errorf("opening image %s: %w", k, err)
	}
	if im.sealed.Load() {
		return im, nil
	}
	if im.present.boot() == s.boot {
		im.unmarkHollow()
		return im, nil
	}
	if err := s.recheck(ctx, im); err != nil {
		im.Close()
		return nil, fmt.Errorf("checking image %s: %w", k, err)
	}
	return im, nil
}

// recheck makes the map of an unsealed image one of this boot, unless another has done so meanwhile: nothing is filled before.
func (s *Store) recheck(ctx context.Context, im *Image) error {
	unlock, err := s.rechecks.Lock(ctx, im.Info.Key)
	if err != nil {
		return err
	}
	defer unlock()
	if im.present.boot() == s.boot {
		return nil
	}
	if err := im.recheck(ctx); err != nil {
		return err
	}
	im.present.setBoot(s.boot)
	return nil
}

func openImage(dir string) (*Image, error) {
	im := &Image{dir: dir}
	var err error
	if im.Info, err = readInfo(dir); err != nil {
		return nil, err
	}
	if im.Info.Size <= 0 || im.Info.Size%BlockSize != 0 || string(im.Info.Key) != filepath.Base(dir) && filepath.Base(filepath.Dir(dir)) != "tmp" {
		return nil, fmt.Errorf("%w: info.json is of image %.80q with %d bytes", ErrDamaged, im.Info.Key, im.Info.Size)
	}
	if im.Info.State == Sealed && !isHex(im.Info.Root) {
		return nil, fmt.Errorf("%w: info.json has root %.80q", ErrDamaged, im.Info.Root)
	}
	f, err := os.OpenFile(filepath.Join(dir, "image.erofs"), os.O_RDWR, 0)
	if err != nil {
		return nil, missing(err)
	}
	im.f = f
	st, err := f.Stat()
	if err == nil && st.Size() != im.Info.Size {
		err = fmt.Errorf("%w: %s has %d bytes, not %d", ErrDamaged, f.Name(), st.Size(), im.Info.Size)
	}
	if err == nil {
		im.present, err = openMap(filepath.Join(dir, "map"), im.Info.Size, true)
	}
	if err == nil {
		im.tree, err = openMerkle(filepath.Join(dir, "merkle"), im.Info.Size)
	}
	if err != nil {
		im.Close()
		return nil, missing(err)
	}
	im.blocks = im.Info.Size / BlockSize
	if im.sealed.Store(im.Info.State == Sealed && im.present.full()); !im.sealed.Load() {
		im.Info.State = Lazy // Forget took blocks of a sealed one
	}
	return im, nil
}

// missing makes of the lack of one of an image's files damage.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	return err
}

// Close unmaps and closes. No other method may be running or called afterwards.
func (im *Image) Close() error {
	var errs []error
	if im.present != nil {
		errs = append(errs, im.present.close())
	}
	if im.tree != nil {
		errs = append(errs, im.tree.close())
	}
	if im.f != nil {
		im.early.close()
		errs = append(errs, im.f.Close())
	}
	return errors.Join(errs...)
}

// unmarkHollow takes blocks for missing that the map names and that have no leaf: they were never written, and the map is damaged.
func (im *Image) unmarkHollow() {
	var zero [hashSize]byte
	for b := range im.blocks {
		if im.present.has(b) && [hashSize]byte(im.tree.leaf(b)) == zero {
			im.present.clear(b)
		}
	}
}

// recheck hashes every block that the map names and forgets those that differ from their leaf.
func (im *Image) recheck(ctx context.Context) error {
	buf := make([]byte, 1<<20)
	for b := int64(0); b < im.blocks; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !im.present.has(b) {
			b++
			continue
		}
		n := int64(1)
		for n < int64(len(buf)/BlockSize) && b+n < im.blocks && im.present.has(b+n) {
			n++
		}
		p := buf[:n*BlockSize]
		if _, err := im.f.ReadAt(p, b*BlockSize); err != nil {
			return err
		}
		for i := range n {
			if h := sha256.Sum256(p[i*BlockSize:][:BlockSize]); !slices.Equal(h[:], im.tree.leaf(b+i)) {
				im.present.clear(b + i)
			}
		}
		b += n
	}
	return nil
}

// Plan is the chunk table that the image was created with. The error wraps ErrDamaged where it is gone.
func (im *Image) Plan() ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(im.dir, "plan"))
	return b, missing(err)
}

// File is the image file; it may be read wherever Has says so.
func (im *Image) File() *os.File { return im.f }

// Dir is the folder the image lies in.
func (im *Image) Dir() string { return im.dir }

// Has tells whether the n bytes from off on are all there; n > 0.
func (im *Image) Has(off, n int64) bool {
	return im.present.hasAll(off/BlockSize, (off+n-1)/BlockSize)
}

// Present is how many of the image's bytes are there.
func (im *Image) Present() int64 { return im.present.count() * BlockSize }

// State is how far the image is.
func (im *Image) State() State {
	switch {
	case im.sealed.Load():
		return Sealed
	case im.present.full():
		return Complete
	}
	return Lazy
}

// Put writes verified bytes at off, a multiple of 4,096, and marks their blocks present. What p leaves of its last block
// is zeros.
func (im *Image) Put(off int64, p []byte) error {
	if rest := len(p) % BlockSize; rest > 0 {
		// a block that was lost may have anything behind its content
		var zero [BlockSize]byte
		last := append(zero[:0], p[len(p)-rest:]...)
		if err := im.PutPart(off+int64(len(p)-rest), last[:BlockSize]); err != nil {
			return err
		}
		if len(p) > rest {
			if err := im.PutPart(off, p[:len(p)-rest]); err != nil {
				return err
			}
		}
	} else if err := im.PutPart(off, p); err != nil {
		return err
	}
	return im.marked(func() {
		im.tree.hash(off/BlockSize, p)
		im.mark(off/BlockSize, (int64(len(p))+BlockSize-1)/BlockSize)
	})
}

// marked calls f, which writes leaves and bits of blocks that were written.
func (im *Image) marked(f func()) error {
	if err := mapped(f); err != nil {
		return fmt.Errorf("writing image %s: %w", im.Info.Key, err)
	}
	return nil
}

// mark makes n blocks present. Regions that are whole with them begin to go to disk.
func (im *Image) mark(first, n int64) {
	if im.present.set(first, n) == 0 {
		return
	}
	for r := first / regionBlocks; r <= (first+n-1)/regionBlocks; r++ {
		if im.present.hasAll(r*regionBlocks, min((r+1)*regionBlocks, im.blocks)-1) {
			im.early.add(im.f, r)
		}
	}
}

// PutPart writes verified bytes that don't fill their blocks. FinishBlock follows when all of a block was written. The error of each method
// that writes blocks wraps ErrUnwritable where the disk takes none.
func (im *Image) PutPart(off int64, p []byte) error {
	if _, err := im.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("writing image %s: %w", im.Info.Key, unwritable(err))
	}
	return nil
}

// FinishBlock marks the block at off, whose first used bytes were all written by PutPart. The rest of it is zeros.
func (im *Image) FinishBlock(off int64, used int) error {
	var b, zero [BlockSize]byte
	if _, err := im.f.ReadAt(b[:], off); err != nil {
		return fmt.Errorf("reading image %s: %w", im.Info.Key, unwritable(err))
	}
	if rest := b[used:]; !bytes.Equal(rest, zero[used:]) {
		if err := im.PutPart(off+int64(used), zero[used:]); err != nil {
			return err
		}
		clear(rest)
	}
	return im.marked(func() {
		im.tree.hash(off/BlockSize, b[:])
		im.mark(off/BlockSize, 1)
	})
}

// PutZeros marks the blocks of [off, end), both multiples of 4,096, which nothing is ever written to.
func (im *Image) PutZeros(off, end int64) error {
	var zero [BlockSize]byte
	h := sha256.Sum256(zero[:])
	return im.marked(func() {
		for b := off / BlockSize; b < end/BlockSize; b++ {
			copy(im.tree.leaf(b), h[:])
		}
		im.mark(off/BlockSize, (end-off)/BlockSize)
	})
}

// Seal puts a complete image on disk for good and records its Merkle root. The error wraps ErrUnwritable where the disk fails. If that has
// lost blocks perhaps, all of them are missing until Recheck has found those that are there.
func (im *Image) Seal() error {
	if im.sealed.Load() {
		return nil
	}
	if im.State() != Complete {
		return fmt.Errorf("sealing image %s: blocks are missing", im.Info.Key)
	}
	var super [BlockSize]byte
	if _, err := im.f.ReadAt(super[:], 0); err != nil {
		return fmt.Errorf("sealing image %s: %w", im.Info.Key, err)
	}
	copy(im.tree.super(), veritySuper(im.blocks, [16]byte(super[erofsSuper+erofsUUIDOff:])))
	root := im.tree.finish()
	var g errgroup.Group // together they take hardly longer than one
	g.Go(im.f.Sync)
	g.Go(im.tree.sync)
	g.Go(im.present.sync)
	g.Go(func() error {
		if err := syncFile(filepath.Join(im.dir, "plan")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // whoever needs it and hasn't got it says so
	})
	if err := g.Wait(); err != nil { // the next sync would not tell
		im.present.clearAll()
		return fmt.Errorf("sealing image %s: %w", im.Info.Key, unwritable(err))
	}
	made := hex.EncodeToString(root[:])
	if im.Info.Root != "" && im.Info.Root != made {
		return fmt.Errorf("sealing image %s: its root was %s and is %s now", im.Info.Key, im.Info.Root, made)
	}
	if err := im.record(Sealed, made); err != nil {
		return fmt.Errorf("sealing image %s: %w", im.Info.Key, unwritable(err))
	}
	im.sealed.Store(true)
	return nil
}

// record writes state and root to info.json of an image that has its place in the cache.
func (im *Image) record(s State, root string) error {
	info := im.Info
	info.State, info.Root = s, root
	return writeJSON(filepath.Join(filepath.Dir(filepath.Dir(im.dir)), "tmp"), filepath.Join(im.dir, "info.json"), info)
}

// Root is the Merkle root in hex of a sealed image.
func (im *Image) Root() string {
	info, err := readInfo(im.dir)
	if err != nil {
		return ""
	}
	return info.Root
}
