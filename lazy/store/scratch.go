package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Scratch is a file that has no name and is gone when it is closed, on the cache's disk and within its budget.
type Scratch struct {
	*os.File
	s *Store
}

// Scratch makes a scratch file.
func (s *Store) Scratch() (*Scratch, error) {
	f, err := s.nameless()
	if err != nil {
		return nil, fmt.Errorf("making a scratch file: %w", err)
	}
	sc := &Scratch{f, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.scratches == nil {
		s.scratches = make(map[*Scratch]bool)
	}
	s.scratches[sc] = true
	return sc, nil
}

func (s *Store) nameless() (*os.File, error) {
	dir := filepath.Join(s.dir, "tmp")
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "scratch")), nil
	}
	f, err := os.CreateTemp(dir, "scratch-*") // not every file system can do without a name
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// WriteAt is os.File's. Its error wraps ErrUnwritable where there is no room.
func (sc *Scratch) WriteAt(p []byte, off int64) (int, error) {
	return (&budgeted{context.Background(), sc.s, sc.File}).WriteAt(p, off)
}

// Close is os.File's.
func (sc *Scratch) Close() error {
	sc.s.mu.Lock()
	delete(sc.s.scratches, sc)
	sc.s.mu.Unlock()
	return sc.File.Close()
}

// scratched is what scratch files take on disk, in bytes.
func (s *Store) scratched() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sc := range s.scratches {
		var st unix.Stat_t
		if unix.Fstat(int(sc.Fd()), &st) == nil {
			n += st.Blocks * 512
		}
	}
	return n
}
