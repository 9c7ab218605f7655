// Package store is the cache folder: image files that fill in any order, what is known of layers, and which digest a
// reference had last.
//
//	version              what wrote the folder; another version is left alone
//	lock                 held (flock) by the one process that writes, with its process id
//	blobs/HEX            manifests and configs by their SHA-256
//	refs/HEX.json        what a reference (its SHA-256 is HEX) stood for when it was last resolved
//	records/HEX.json     which image a manifest became
//	layers/HEX/…         verdicts on a layer by the layer's digest; while images are made of it, also its indexes and contents
//	images/KEY/image.erofs, map, merkle, plan, info.json
//	images/KEY/layers    indexes of the image's layers, and contents of them that it doesn't show
//	profiles/HEX.json    what programs of an image read first
//	tmp/                 work under way; emptied when the lock is taken
//
// A folder belongs to one user. One process holds the lock and writes; any number of processes of that user may read an
// image beside it (View). Files are written aside and renamed, so that they are whole for as long as the machine runs. What must survive
// its sudden end is synced: by Seal what an image consists of, by Sync how it is found. What was not is noticed, as its bytes tell
// whether they are right, and made anew. The data of an image is written in place: its map says which blocks are there, and is trusted
// for as long as the machine has not been started anew; after that every block it names is hashed again, unless the image was sealed.
package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Version is what the folder's version file must say.
const Version = "pex cache 1"

// ErrNotCached is wrapped where the folder does not hold what was asked for.
var ErrNotCached = errors.New("not in the cache")

// Store is an open cache folder. Its methods may be called concurrently.
type Store struct {
	dir  string
	lock *os.File
	boot string // identifies this run of the machine

	rechecks Locks[Key] // of images
	budget   budget

	syncing  sync.Mutex      // held by Sync
	mu       sync.Mutex      // guards what follows
	unsynced map[string]bool // files and folders that Sync puts on disk

	scratches map[*Scratch]bool // that are open
}

// Open opens the folder, making it where it is missing. It takes no lock: see Lock.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("making cache folder: %w", err)
	}
	vf := filepath.Join(abs, "version")
	b, err := os.ReadFile(vf)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := writeFile(abs, vf, []byte(Version+"\n")); err != nil {
			return nil, fmt.Errorf("making cache folder: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("reading cache folder's version: %w", err)
	case strings.TrimSpace(string(b)) != Version:
		return nil, versionError{abs, strings.TrimSpace(string(b))}
	}
	for _, d := range []string{"blobs", "refs", "records", "layers", "images", "tmp"} {
		if err := os.MkdirAll(filepath.Join(abs, d), 0o700); err != nil {
			return nil, fmt.Errorf("making cache folder: %w", err)
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading the boot's identity: %w", err)
	}
	return &Store{dir: abs, boot: strings.TrimSpace(string(boot))}, nil
}

// Dir is the folder's absolute path.
func (s *Store) Dir() string { return s.dir }

// Lock makes this process the folder's writer until Close or its end, and clears what an earlier writer left half done.
// The error wraps ErrLocked and names the holder where there is one already.
func (s *Store) Lock() error {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("locking cache folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			by, err := readHolder(f)
			if err != nil {
				return err
			}
			return heldError{s.dir, by}
		}
		return fmt.Errorf("locking cache folder: %w", err)
	}
	if err := errors.Join(f.Truncate(0), second(f.WriteString(strconv.Itoa(os.Getpid())+"\n"))); err != nil {
		f.Close()
		return fmt.Errorf("locking cache folder: %w", err)
	}
	s.lock = f
	old, err := os.ReadDir(s.tmp())
	if err != nil {
		return fmt.Errorf("clearing cache folder's tmp: %w", err)
	}
	for _, e := range old {
		if strings.HasPrefix(e.Name(), goneName) && used(filepath.Join(s.tmp(), e.Name())) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.tmp(), e.Name())); err != nil {
			return fmt.Errorf("clearing cache folder's tmp: %w", err)
		}
	}
	return nil
}

// Locked tells whether some process holds the folder's lock.
func (s *Store) Locked() (bool, error) {
	f, err := os.Open(filepath.Join(s.dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Close gives up the lock. Images opened from the store stay usable until they are closed themselves.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

func second(_ int, err error) error { return err }

// tempDir makes a folder in tmp, on the same file system as all the rest.
func (s *Store) tempDir(pattern string) (string, error) {
	return os.MkdirTemp(s.tmp(), pattern)
}

// tmp is where work under way lies.
func (s *Store) tmp() string { return filepath.Join(s.dir, "tmp") }

// writeFile writes a file that is there whole or not at all, whatever happens. It is written in tmp, on the same file system.
func writeFile(tmp, name string, b []byte) error {
	if err := writeAside(tmp, name, b, true); err != nil {
		return err
	}
	return syncFile(filepath.Dir(name))
}

// writeAside writes a file in tmp and then gives it its name. Unless it is synced before, the machine's sudden end may leave it empty.
func writeAside(tmp, name string, b []byte, sync bool) (err error) {
	f, err := os.CreateTemp(tmp, "file-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = unwritable(err)
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if sync {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// write writes a file that Sync puts on disk for good.
func (s *Store) write(name string, b []byte) error {
	if err := writeAside(s.tmp(), name, b, false); err != nil {
		return err
	}
	s.later(name, filepath.Dir(name))
	return nil
}

func (s *Store) later(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsynced == nil {
		s.unsynced = make(map[string]bool)
	}
	for _, n := range names {
		s.unsynced[n] = true
	}
}

// Sync puts manifests, configs, and the records of references and images on disk for good, and the places of images. Opening an image doesn't
// wait for that: a sync in its midst waits for all that was written of it.
func (s *Store) Sync() error {
	s.syncing.Lock() // whoever comes second finds all on disk
	defer s.syncing.Unlock()
	s.mu.Lock()
	names := s.unsynced
	s.unsynced = nil
	s.mu.Unlock()
	var g errgroup.Group // together they take hardly longer than one
	for n := range names {
		g.Go(func() error {
			if err := syncFile(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		for n := range names {
			s.later(n)
		}
		return fmt.Errorf("syncing cache folder: %w", err)
	}
	return nil
}

// syncFile puts a file or a folder on disk for good.
func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotCached, filepath.Base(name))
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: reading %s: %w", ErrDamaged, name, err)
	}
	return nil
}

func writeJSON(tmp, name string, v any) error {
	b, err := encodeJSON(v)
	if err != nil {
		return err
	}
	return writeFile(tmp, name, b)
}

func encodeJSON(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}

// hexName is a name in the folder for any string.
func hexName(s string) string { return hashHex([]byte(s)) }

func hashHex(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// PutBlob keeps a manifest or a config; hexDigest is its SHA-256 in hex.
func (s *Store) PutBlob(b []byte) (hexDigest string, err error) {
	hexDigest = hashHex(b)
	if _, err := s.Blob(hexDigest); err == nil {
		return hexDigest, nil // it may be on disk for good
	}
	return hexDigest, s.write(filepath.Join(s.dir, "blobs", hexDigest), b)
}

// Blob gives back what PutBlob kept, checked against its digest again.
func (s *Store) Blob(hexDigest string) ([]byte, error) {
	if !isHex(hexDigest) {
		return nil, fmt.Errorf("%.80q is not a SHA-256", hexDigest)
	}
	b, err := os.ReadFile(filepath.Join(s.dir, "blobs", hexDigest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: blob %s", ErrNotCached, hexDigest)
	}
	if err != nil {
		return nil, err
	}
	if hashHex(b) != hexDigest {
		return nil, fmt.Errorf("%w: blob %s has other bytes on disk", ErrNotCached, hexDigest)
	}
	return b, nil
}

func isHex(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Record says which image a manifest became, and which config blob goes with it.
type Record struct {
	Image  Key    `json:"image"`
	Config string `json:"config"` // SHA-256 in hex
}

// PutRecord remembers the image of a manifest (SHA-256 in hex).
func (s *Store) PutRecord(manifest string, r Record) error {
	if !isHex(manifest) {
		return fmt.Errorf("%.80q is not a SHA-256", manifest)
	}
	b, err := encodeJSON(r)
	if err != nil {
		return err
	}
	return s.write(filepath.Join(s.dir, "records", manifest+".json"), b)
}

// Record gives back what PutRecord kept, or an error that wraps ErrNotCached.
func (s *Store) Record(manifest string) (Record, error) {
	var r Record
	if !isHex(manifest) {
		return r, fmt.Errorf("%.80q is not a SHA-256", manifest)
	}
	err := readJSON(filepath.Join(s.dir, "records", manifest+".json"), &r)
	if err == nil && !isHex(string(r.Image)) {
		err = fmt.Errorf("%w: the record of manifest %s", ErrNotCached, manifest)
	}
	return r, err
}
