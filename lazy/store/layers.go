package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Spool holds the contents of a layer that is streamed, 4 KiB aligned, and their Merkle leaves: those of block j are at 32j. It is
// there until no opening uses it.
type Spool struct {
	Data, Leaves *os.File
	dir          string
	s            *Store
}

// Writers write the spool's files, within the folder's budget, until ctx ends.
func (sp *Spool) Writers(ctx context.Context) (data, leaves io.WriterAt) {
	return &budgeted{ctx, sp.s, sp.Data}, &budgeted{ctx, sp.s, sp.Leaves}
}

// budgeted is a file of the folder that grows within the budget.
type budgeted struct {
	ctx context.Context
	s   *Store
	f   *os.File
}

func (w *budgeted) WriteAt(p []byte, off int64) (int, error) {
	release, err := w.s.Reserve(w.ctx, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer release()
	n, err := w.f.WriteAt(p, off)
	return n, unwritable(err)
}

// spoolFiles are in the order in which they take the places of others. openSpool opens the leaves first: it may see old ones beside new
// data, which has all that they name, and never the other way round.
var spoolFiles = [...]string{"data", "leaves", "boot"}

// NewSpool makes a spool where no other process looks. Keep or Discard follows.
func (s *Store) NewSpool() (*Spool, error) {
	dir, err := s.tempDir("layer-*")
	if err != nil {
		return nil, fmt.Errorf("making a spool: %w", err)
	}
	sp, err := s.openSpool(dir, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("making a spool: %w", err)
	}
	return sp, nil
}

func (s *Store) openSpool(dir string, flag int) (*Spool, error) {
	l, err := os.OpenFile(filepath.Join(dir, "leaves"), flag, 0o600)
	if err != nil {
		return nil, err
	}
	d, err := os.OpenFile(filepath.Join(dir, "data"), flag, 0o600)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &Spool{Data: d, Leaves: l, dir: dir, s: s}, nil
}

// Close closes the files.
func (sp *Spool) Close() error { return errors.Join(sp.Data.Close(), sp.Leaves.Close()) }

// Discard closes and removes a spool that wasn't kept.
func (sp *Spool) Discard() error { return errors.Join(sp.Close(), os.RemoveAll(sp.dir)) }

// LeavesOf reads the leaves of the content of n bytes at off; ok says whether the content is (still) in the spool.
func (sp *Spool) LeavesOf(off, n int64) (leaves []byte, ok bool) {
	leaves = make([]byte, (n+BlockSize-1)/BlockSize*hashSize)
	if _, err := sp.Leaves.ReadAt(leaves, off/BlockSize*hashSize); err != nil {
		return nil, false
	}
	// a hash is never zero: zeros are a hole
	var zero [hashSize]byte
	for l := leaves; len(l) > 0; l = l[hashSize:] {
		if [hashSize]byte(l) == zero {
			return nil, false
		}
	}
	return leaves, true
}

func (s *Store) layerDir(hexDigest string) string { return filepath.Join(s.dir, "layers", hexDigest) }

// indexName is the name of an index in a layer's folder and in packs.
func indexName(name string) string { return "index." + name }

// writeLayerFile writes a file of a layer's folder, which may be removed meanwhile if it is empty.
func (s *Store) writeLayerFile(hexDigest, name string, write func(path string) error) error {
	if !isHex(hexDigest) {
		return fmt.Errorf("%.80q is not a SHA-256", hexDigest)
	}
	for tries := 3; ; tries-- {
		err := os.MkdirAll(s.layerDir(hexDigest), 0o700)
		if err == nil {
			err = write(filepath.Join(s.layerDir(hexDigest), name))
		}
		if tries == 0 || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// PutLayerIndex keeps an index of a layer (its digest in hex) under a name, if the folder's budget has room. It is not synced: an index tells
// itself whether it is whole.
func (s *Store) PutLayerIndex(ctx context.Context, hexDigest, name string, b []byte) error {
	release, err := s.Reserve(ctx, int64(len(b)))
	if err != nil {
		return err
	}
	defer release()
	return s.writeLayerFile(hexDigest, indexName(name), func(path string) error { return writeAside(s.tmp(), path, b, false) })
}

// LayerIndex gives back what PutLayerIndex kept or an image's pack has, or an error that wraps ErrNotCached.
func (s *Store) LayerIndex(hexDigest, name string) ([]byte, error) {
	if !isHex(hexDigest) {
		return nil, fmt.Errorf("%.80q is not a SHA-256", hexDigest)
	}
	b, err := os.ReadFile(filepath.Join(s.layerDir(hexDigest), indexName(name)))
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	found := false
	err = s.EachPacked(hexDigest, indexName(name), func(r io.Reader, size int64) (more bool) {
		b, err = io.ReadAll(r)
		found = err == nil
		return !found
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: index of layer sha256:%s", ErrNotCached, hexDigest)
	}
	return b, err
}

// verdictPrefix begins the names of verdicts in a layer's folder.
const verdictPrefix = "verdict."

// PutVerdict keeps why something known of a layer is refused under a name, or with an empty refusal that it is right.
func (s *Store) PutVerdict(hexDigest, name, refusal string) error {
	v := verdict{right, ""}
	if refusal != "" {
		v = verdict{refused, refusal}
	}
	return s.writeLayerFile(hexDigest, verdictPrefix+name, func(path string) error { return writeJSON(s.tmp(), path, v) })
}

type verdict struct {
	Verdict string `json:"verdict"`
	Why     string `json:"why,omitempty"`
}

const right, refused = "right", "refused" // anything else is no verdict

// Verdict gives back what PutVerdict kept; known says whether it did.
func (s *Store) Verdict(hexDigest, name string) (refusal string, known bool) {
	var v verdict
	if !isHex(hexDigest) || readJSON(filepath.Join(s.layerDir(hexDigest), verdictPrefix+name), &v) != nil {
		return "", false
	}
	switch {
	case v.Verdict == right:
		return "", true
	case v.Verdict == refused && v.Why != "":
		return v.Why, true
	}
	return "", false
}

// KeepSpool makes a spool whose layer was verified the layer's own, replacing what it had.
func (s *Store) KeepSpool(sp *Spool, hexDigest string) error {
	if !isHex(hexDigest) {
		return fmt.Errorf("%.80q is not a SHA-256", hexDigest)
	}
	dir := s.layerDir(hexDigest) // which nobody removes: the layer is in use
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(sp.dir, "boot"), []byte(s.boot), 0o600); err != nil {
		return fmt.Errorf("keeping layer sha256:%s: %w", hexDigest, err)
	}
	for _, n := range spoolFiles {
		if err := os.Rename(filepath.Join(sp.dir, n), filepath.Join(dir, n)); err != nil {
			return fmt.Errorf("keeping layer sha256:%s: %w", hexDigest, err)
		}
	}
	err := os.Remove(sp.dir)
	sp.dir = dir
	return err
}

// LayerSpool opens the spool that a layer has, or an error that wraps ErrNotCached. A spool is never synced: after another boot of the
// machine, blocks that are not what their leaf says are taken for missing.
func (s *Store) LayerSpool(hexDigest string) (*Spool, error) {
	sp, err := s.openSpool(s.layerDir(hexDigest), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: contents of layer sha256:%s", ErrNotCached, hexDigest)
	}
	if err != nil {
		return nil, err
	}
	boot := filepath.Join(sp.dir, "boot")
	if b, err := os.ReadFile(boot); err == nil && string(b) == s.boot {
		return sp, nil
	}
	err = sp.recheck()
	if err == nil {
		err = writeFile(s.tmp(), boot, []byte(s.boot))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("checking contents of layer sha256:%s: %w", hexDigest, err), sp.Close())
	}
	return sp, nil
}

// recheck hashes every block that has a leaf and takes the leaf from those that differ.
func (sp *Spool) recheck() error {
	var zero [hashSize]byte
	leaves, data := make([]byte, hashesPer*hashSize), make([]byte, hashesPer*BlockSize)
	for first := int64(0); ; first += hashesPer {
		n, err := sp.Leaves.ReadAt(leaves, first*hashSize)
		if err != nil && err != io.EOF {
			return err
		}
		m, derr := sp.Data.ReadAt(data, first*BlockSize)
		if derr != nil && derr != io.EOF {
			return derr
		}
		clear(data[m:])
		for i := range int64(n / hashSize) {
			leaf := [hashSize]byte(leaves[i*hashSize:])
			if leaf == zero || leaf == sha256.Sum256(data[i*BlockSize:][:BlockSize]) {
				continue
			}
			if _, err := sp.Leaves.WriteAt(zero[:], (first+i)*hashSize); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// DropLayer removes what of a layer's folder nobody needs when no opening uses it: its spool, and indexes that an image's pack has.
func (s *Store) DropLayer(hexDigest string) error {
	if !isHex(hexDigest) {
		return fmt.Errorf("%.80q is not a SHA-256", hexDigest)
	}
	dir := s.layerDir(hexDigest)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		name := f.Name()
		drop := slices.Contains(spoolFiles[:], name)
		if strings.HasPrefix(name, indexName("")) {
			errs = append(errs, s.EachPacked(hexDigest, name, func(io.Reader, int64) (more bool) { drop = true; return false }))
		}
		if drop {
			errs = append(errs, os.Remove(filepath.Join(dir, name)))
		}
	}
	_ = os.Remove(dir) // unless something is left
	return errors.Join(errs...)
}

// ForgetLayer removes all of a layer's folder but verdicts, and returns how many bytes that took on disk. With dry it only tells.
func (s *Store) ForgetLayer(hexDigest string, dry bool) (n int64, err error) {
	if !isHex(hexDigest) {
		return 0, fmt.Errorf("%.80q is not a SHA-256", hexDigest)
	}
	files, err := os.ReadDir(s.layerDir(hexDigest))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), verdictPrefix) {
			continue
		}
		path := filepath.Join(s.layerDir(hexDigest), f.Name())
		k, err := allocated(path, nil)
		if err == nil && !dry {
			err = os.Remove(path)
		}
		if err != nil {
			return n, fmt.Errorf("removing %s: %w", path, err)
		}
		n += k
	}
	if !dry {
		_ = os.Remove(s.layerDir(hexDigest)) // unless something is left
	}
	return n, nil
}

// Layers lists the digests, in hex, of the layers that something is known of.
func (s *Store) Layers() ([]string, error) {
	dirs, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, d := range dirs {
		if isHex(d.Name()) {
			all = append(all, d.Name())
		}
	}
	return all, nil
}
