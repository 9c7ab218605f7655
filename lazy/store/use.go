package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Who reads an image file holds a shared lock (flock) on it, also while the folder has no writer and leases nothing: see Used. What of an
// image is left on disk when it was removed and is still read is kept in tmp, and counted, until nobody reads it.

// hold is taken by readers until they close the file.
func hold(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil && !errors.Is(err, unix.ENOLCK) {
		return fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return nil
}

// Hold makes an image that is open Used until it is closed.
func (im *Image) Hold() error { return hold(im.f) }

// Used tells whether somebody reads the files of an image, also if nothing else is known of him.
func (s *Store) Used(k Key) bool { return used(s.imageDir(k)) }

func used(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "image.erofs"))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// sweep removes what was removed before but was still read. Errors are met again.
func (s *Store) sweep() {
	gone, _ := filepath.Glob(filepath.Join(s.dir, "tmp", goneName+"*"))
	for _, dir := range gone {
		if !used(dir) {
			_ = os.RemoveAll(dir)
		}
	}
}

// goneName begins the names of removed images in tmp.
const goneName = "gone-"

// Touch notes that an image is used now.
func (s *Store) Touch(k Key) error {
	now := time.Now()
	if err := os.Chtimes(s.imageDir(k), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("noting the use of image %s: %w", k, err)
	}
	return nil
}

// Use is when an image was used last: touched, or changed.
type Use struct {
	Key  Key
	Last time.Time
}

// Uses lists the images of the cache, the one first whose last use is longest ago.
func (s *Store) Uses() ([]Use, error) {
	dirs, err := s.imageDirs()
	if err != nil {
		return nil, err
	}
	var all []Use
	for _, d := range dirs {
		if st, err := d.Info(); err == nil {
			all = append(all, Use{Key(d.Name()), st.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b Use) int {
		return cmp.Or(a.Last.Compare(b.Last), strings.Compare(string(a.Key), string(b.Key)))
	})
	return all, nil
}

const pinName = "pinned"

// SetPinned says whether an image is to be kept though nobody uses it. The error wraps ErrNotCached where there is none.
func (s *Store) SetPinned(k Key, pinned bool) error {
	if !isHex(string(k)) {
		return fmt.Errorf("%.80q is not an image key", k)
	}
	if _, err := os.Lstat(s.imageDir(k)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: image %s", ErrNotCached, k)
	}
	name := filepath.Join(s.imageDir(k), pinName)
	var err error
	if pinned {
		err = writeFile(s.tmp(), name, nil)
	} else if err = os.Remove(name); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("pinning image %s: %w", k, unwritable(err))
	}
	return nil
}

// Pinned tells whether an image is to be kept though nobody uses it.
func (s *Store) Pinned(k Key) bool {
	_, err := os.Lstat(filepath.Join(s.imageDir(k), pinName))
	return err == nil
}
