package store

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Scratch makes a file that has no name and is gone when it is closed, on the cache's disk.
func (s *Store) Scratch() (*os.File, error) {
	dir := filepath.Join(s.dir, "tmp")
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "scratch")), nil
	}
	f, err := os.CreateTemp(dir, "scratch-*") // not every file system can do without a name
	if err != nil {
		return nil, fmt.Errorf("making a scratch file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("making a scratch file: %w", err)
	}
	return f, nil
}
