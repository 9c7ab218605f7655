package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Budget bounds what the files of the folder take on disk: their allocated blocks, and what is reserved for those that are about to be
// written. Small files aren't reserved for: spare is kept for them, and they are counted with the next measurement.
type Budget struct {
	// Size is the bound in bytes; 0 leaves a tenth of the file system free, or half of what others leave of it if that is less.
	Size int64
	// MakeRoom, which may be nil, removes what is not needed until room says that there is enough, and tells whether there is.
	MakeRoom func(ctx context.Context, room func() bool) bool
}

const (
	spare       = 1 << 20          // bytes
	metadataPer = 128              // a file system's own blocks are at most this part of a file's
	measureAge  = 10 * time.Second // of a measurement that is still believed
)

// budget is the account of a folder. What its files take is at most what was measured, what was written since that measurement began, and
// what is reserved.
type budget struct {
	measuring sync.Mutex // held by measure
	b         *Budget    // nil: there is no bound
	mu        sync.Mutex // guards what follows
	measured  int64
	at        time.Time // when that measurement began
	written   int64     // ever
	base      int64     // of written, when the measurement began
	reserved  int64
}

// FullError says that the folder's budget is used up. It wraps ErrUnwritable.
type FullError struct {
	Dir        string
	Need, Free int64 // bytes
}

func (e *FullError) Error() string {
	const kib = 1 << 10
	return fmt.Sprintf("cache folder %s is full: %d KiB more are needed, %d KiB are free, and nothing is left to remove that nobody uses", e.Dir, (e.Need+kib-1)/kib, max(e.Free, 0)/kib)
}

func (e *FullError) Unwrap() error { return ErrUnwritable }

// SetBudget bounds the folder. It is called once, before the folder is used.
func (s *Store) SetBudget(b Budget) {
	s.budget.b = &b
}

// Reserve promises that n bytes can be written until release is called, which says that they were, or won't be. Where there is no room it is made.
// The error is a FullError or ctx's.
func (s *Store) Reserve(ctx context.Context, n int64) (release func(), err error) {
	if !s.bounded() {
		return func() {}, nil
	}
	return s.reserveOf(ctx, n, s.budget.b.MakeRoom)
}

func (s *Store) bounded() bool { return s.budget.b != nil }

// reserveOf is Reserve with room made by makeRoom, unless that is nil.
func (s *Store) reserveOf(ctx context.Context, n int64, makeRoom func(context.Context, func() bool) bool) (release func(), err error) {
	n += n/metadataPer + BlockSize
	release, free, err := s.reserve(n)
	if err != nil || release != nil {
		return release, err
	}
	if !s.ever(n) {
		return nil, &FullError{Dir: s.dir, Need: n, Free: free}
	}
	room := func() bool { return s.measure() == nil && s.hasRoom(n) }
	if room() || makeRoom != nil && makeRoom(ctx, room) {
		if release, free, err = s.reserve(n); err != nil || release != nil {
			return release, err
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, &FullError{Dir: s.dir, Need: n, Free: free}
}

// reserve takes n bytes if so many are free; else release is nil.
func (s *Store) reserve(n int64) (release func(), free int64, err error) {
	if err := s.remeasure(); err != nil {
		return nil, 0, err
	}
	b := &s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	var fsys unix.Statfs_t // with the account locked: what was free before may be promised, written and released meanwhile
	if err := unix.Statfs(s.dir, &fsys); err != nil {
		return nil, 0, fmt.Errorf("looking for room in cache folder: %w", err)
	}
	free, _ = b.free(&fsys)
	if free < n {
		return nil, free, nil
	}
	b.reserved += n
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reserved -= n
		b.written += n
	}), free, nil
}

// ever tells whether n bytes, as many as reserve takes, would fit if nothing else were in the folder.
func (s *Store) ever(n int64) bool {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	var fsys unix.Statfs_t
	if unix.Statfs(s.dir, &fsys) != nil {
		return true // reserve says why not
	}
	_, size := s.budget.free(&fsys)
	return n <= size-spare
}

func (s *Store) hasRoom(n int64) bool {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	var fsys unix.Statfs_t
	if unix.Statfs(s.dir, &fsys) != nil {
		return false
	}
	free, _ := s.budget.free(&fsys)
	return free >= n
}

// free is how much can be reserved, and what the folder may take in all. b.mu is held.
func (b *budget) free(fsys *unix.Statfs_t) (free, size int64) {
	used := b.used()
	avail := int64(fsys.Bavail) * fsys.Bsize
	size = b.b.Size
	if size == 0 {
		ours := used - b.reserved + avail
		size = ours - min(int64(fsys.Blocks)*fsys.Bsize/10, ours/2)
	}
	return min(size-used, avail-b.reserved) - spare, size
}

func (b *budget) used() int64 { return b.measured + b.written - b.base + b.reserved }

// Space is how much the folder takes on disk at most, with what is reserved, and how much it may take, both in bytes; that is 0 where there
// is no bound.
func (s *Store) Space() (used, size int64, err error) {
	if err := s.measure(); err != nil {
		return 0, 0, err
	}
	var fsys unix.Statfs_t
	if err := unix.Statfs(s.dir, &fsys); err != nil {
		return 0, 0, err
	}
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	if s.budget.b != nil {
		_, size = s.budget.free(&fsys)
	}
	return s.budget.used(), size, nil
}

// remeasure measures unless that was done lately.
func (s *Store) remeasure() error {
	s.budget.mu.Lock()
	old := time.Since(s.budget.at) > measureAge
	s.budget.mu.Unlock()
	if !old {
		return nil
	}
	return s.measure()
}

// measure counts the blocks of all files of the folder.
func (s *Store) measure() error {
	b := &s.budget
	b.measuring.Lock()
	defer b.measuring.Unlock()
	s.sweep()
	b.mu.Lock()
	begun, base := time.Now(), b.written
	b.mu.Unlock()
	total := s.scratched()
	// what moves goes from tmp to another folder: so it is counted, perhaps twice
	for _, d := range []string{"tmp", "layers", ""} {
		n, err := allocated(filepath.Join(s.dir, d), func(path string) bool {
			return d == "" && (path == filepath.Join(s.dir, "tmp") || path == filepath.Join(s.dir, "layers"))
		})
		if err != nil {
			return fmt.Errorf("measuring cache folder: %w", err)
		}
		total += n
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.measured, b.base, b.at = total, base, begun
	return nil
}

// allocated adds up the bytes on disk of all files and folders below dir, but for those to skip. What goes away meanwhile is not counted.
func allocated(dir string, skip func(path string) bool) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && skip != nil && skip(path) {
			return fs.SkipDir
		}
		var st os.FileInfo
		if err == nil {
			st, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			n += sys.Blocks * 512
		}
		return nil
	})
	return n, err
}
