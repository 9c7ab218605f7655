package store

import (
	"fmt"
	"os"
	"path/filepath"
)

// View is an image of the cache seen by a process that only reads it. Its methods may be called concurrently.
type View struct {
	Info    Info
	f       *os.File
	present *presence
}

// OpenView opens the image whose folder is dir. The caller holds a lease of it from the folder's writer, or the image may
// be gone. The error wraps ErrDamaged where the folder's files can't be an image's.
func OpenView(dir string) (*View, error) {
	info, err := readInfo(dir)
	if err != nil {
		return nil, fmt.Errorf("opening image: %w", err)
	}
	f, err := os.Open(filepath.Join(dir, "image.erofs"))
	if err != nil {
		return nil, fmt.Errorf("opening image: %w", missing(err))
	}
	err = hold(f)
	var st os.FileInfo
	if err == nil {
		st, err = f.Stat()
	}
	if err == nil && st.Size() != info.Size {
		err = fmt.Errorf("%w: %s has %d bytes, not %d", ErrDamaged, f.Name(), st.Size(), info.Size)
	}
	var p *presence
	if err == nil {
		p, err = openMap(filepath.Join(dir, "map"), info.Size, false)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening image: %w", missing(err))
	}
	return &View{Info: info, f: f, present: p}, nil
}

// Has tells whether the n bytes from off on are all there; n > 0 and the range lies in the image.
func (v *View) Has(off, n int64) bool {
	return v.present.hasAll(off/BlockSize, (off+n-1)/BlockSize)
}

// Complete tells whether nothing is missing any more.
func (v *View) Complete() bool { return v.present.full() }

// File is the image file, open for reading only.
func (v *View) File() *os.File { return v.f }

// Close unmaps and closes; no other method may be running or called afterwards.
func (v *View) Close() error {
	if err := v.present.close(); err != nil {
		v.f.Close()
		return err
	}
	return v.f.Close()
}
