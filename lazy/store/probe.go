package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrGone is wrapped where the cache folder that this process holds is no longer what its name leads to: it was removed, or moved.
var ErrGone = errors.New("the cache folder is gone")

// Probe tells whether the folder is the one that Lock took, and whether a block can be written there. It may take as long as the disk does.
func (s *Store) Probe() error {
	if s.lock == nil {
		return errors.New("probing cache folder: it isn't locked")
	}
	held, err := s.lock.Stat()
	if err != nil {
		return fmt.Errorf("probing cache folder: %w", err)
	}
	now, err := os.Stat(filepath.Join(s.dir, "lock"))
	if err != nil || !os.SameFile(held, now) {
		return fmt.Errorf("probing %s: %w", s.dir, ErrGone)
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "probe-")
	if err != nil {
		return fmt.Errorf("probing cache folder: %w", err)
	}
	_, err = f.Write(make([]byte, BlockSize))
	if err := errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
		return fmt.Errorf("probing cache folder: %w", err)
	}
	return nil
}
