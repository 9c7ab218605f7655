package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

func readInfo(dir string) (Info, error) {
	var i Info
	err := readJSON(filepath.Join(dir, "info.json"), &i)
	if errors.Is(err, ErrNotCached) {
		if _, serr := os.Lstat(dir); serr == nil {
			err = fmt.Errorf("%w: info.json is missing", ErrDamaged)
		}
	}
	return i, err
}

// Images lists the images of the cache, the newest first. Of one whose info.json is damaged only key and state are known.
func (s *Store) Images() ([]Info, error) {
	dirs, err := s.imageDirs()
	if err != nil {
		return nil, err
	}
	var all []Info
	for _, d := range dirs {
		info, err := readInfo(s.imageDir(Key(d.Name())))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(s.imageDir(Key(d.Name()))); err != nil {
				continue // removed meanwhile
			}
		}
		if err != nil || string(info.Key) != d.Name() {
			info = Info{Key: Key(d.Name()), State: Damaged}
		}
		all = append(all, info)
	}
	slices.SortFunc(all, func(a, b Info) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// RemoveImage removes an image's files. Whoever has them open may go on reading.
func (s *Store) RemoveImage(k Key) error {
	if !isHex(string(k)) {
		return fmt.Errorf("%.80q is not an image key", k)
	}
	// first out of sight, then away: a crash leaves nothing half there
	tmp, err := s.tempDir(goneName + "*")
	if err != nil {
		return err
	}
	if err := unix.Rename(s.imageDir(k), tmp); err != nil { // os.Rename wants no folder there
		os.Remove(tmp)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: image %s", ErrNotCached, k)
		}
		return err
	}
	if used(tmp) {
		return nil // sweep comes back
	}
	return os.RemoveAll(tmp)
}

// imageDirs lists the folders of images.
func (s *Store) imageDirs() ([]fs.DirEntry, error) {
	dirs, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	return slices.DeleteFunc(dirs, func(d fs.DirEntry) bool { return !isHex(d.Name()) }), nil
}
