package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Ref is what a reference stood for when it was last resolved.
type Ref struct {
	Ref      string    `json:"ref"`
	Platform string    `json:"platform"`
	Manifest string    `json:"manifest"`           // SHA-256 in hex of the manifest of that platform
	Root     string    `json:"root,omitempty"`     // digest of what the reference named: the manifest, or an index
	Insecure bool      `json:"insecure,omitempty"` // plain HTTP is permitted with its registry
	Resolved time.Time `json:"resolved"`           // when it was first found to be this manifest

	// HostsDirs are folders that say which servers stand for its registry, where they aren't the usual ones.
	HostsDirs string `json:"hostsDirs,omitempty"`

	// Asked is when its registry last said that it is this manifest. It is the file's time of change: to keep it nothing need be
	// written anew.
	Asked time.Time `json:"-"`
}

// Said is r without Asked.
func (r Ref) Said() Ref {
	r.Asked = time.Time{}
	return r
}

func (s *Store) refFile(name, platform string) string {
	return filepath.Join(s.dir, "refs", hexName(name+"\x00"+platform)+".json")
}

// PutRef remembers what a reference stands for, as of r.Asked or, if that is zero, of now.
func (s *Store) PutRef(r Ref) error {
	b, err := encodeJSON(r)
	if err != nil {
		return err
	}
	name := s.refFile(r.Ref, r.Platform)
	write := s.write
	if _, err := os.Lstat(name); err == nil { // it must not be lost for a newer one
		write = func(name string, b []byte) error { return writeFile(s.tmp(), name, b) }
	}
	err = write(name, b)
	if err == nil && !r.Asked.IsZero() {
		err = os.Chtimes(name, r.Asked, r.Asked)
	}
	return err
}

// Asked notes that a reference that is remembered was asked for just now, and stands for the same.
func (s *Store) Asked(r Ref) error {
	now := time.Now()
	return os.Chtimes(s.refFile(r.Ref, r.Platform), now, now)
}

// Ref tells what a reference stood for, or an error that wraps ErrNotCached.
func (s *Store) Ref(name, platform string) (Ref, error) {
	r, err := readRef(s.refFile(name, platform))
	if err == nil && (r.Ref != name || r.Platform != platform || !isHex(r.Manifest)) {
		err = fmt.Errorf("%w: the record of %s", ErrNotCached, name)
	}
	return r, err
}

func readRef(name string) (r Ref, err error) {
	st, err := os.Stat(name)
	if err == nil {
		r.Asked = st.ModTime()
	} else if !errors.Is(err, os.ErrNotExist) {
		return r, err
	}
	return r, readJSON(name, &r)
}

// Refs lists every reference that is remembered.
func (s *Store) Refs() ([]Ref, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, "refs", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []Ref
	for _, f := range files {
		if r, err := readRef(f); err == nil {
			all = append(all, r)
		}
	}
	return all, nil
}

// RemoveRef forgets what a reference stood for, on all platforms.
func (s *Store) RemoveRef(name string) error {
	files, err := filepath.Glob(filepath.Join(s.dir, "refs", "*.json"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if r, err := readRef(f); err != nil || r.Ref != name {
			continue
		}
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("forgetting %s: %w", name, err)
		}
	}
	return nil
}
