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
)

// maxProfiles is how many profiles are kept; the oldest give way.
const maxProfiles = 512

func (s *Store) profilePath(id string) string { return filepath.Join(s.dir, "profiles", id+".json") }

// PutProfile keeps bytes under an id, a SHA-256 in hex.
func (s *Store) PutProfile(id string, b []byte) error {
	if !isHex(id) {
		return fmt.Errorf("%.80q is not a SHA-256", id)
	}
	dir := filepath.Join(s.dir, "profiles")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keeping profile: %w", err)
	}
	if err := writeFile(s.tmp(), s.profilePath(id), b); err != nil {
		return fmt.Errorf("keeping profile: %w", err)
	}
	all, err := s.profiles()
	if err != nil {
		return fmt.Errorf("keeping profile: %w", err)
	}
	for len(all) > maxProfiles {
		if err := os.Remove(filepath.Join(dir, all[0].Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing profile: %w", err)
		}
		all = all[1:]
	}
	return nil
}

// Profile gives back what PutProfile kept, or an error that wraps ErrNotCached.
func (s *Store) Profile(id string) ([]byte, error) {
	if !isHex(id) {
		return nil, fmt.Errorf("%.80q is not a SHA-256", id)
	}
	b, err := os.ReadFile(s.profilePath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: profile %.12s", ErrNotCached, id)
	}
	return b, err
}

// Profiles lists the ids of what is kept, the oldest first.
func (s *Store) Profiles() ([]string, error) {
	all, err := s.profiles()
	ids := make([]string, 0, len(all))
	for _, f := range all {
		ids = append(ids, strings.TrimSuffix(f.Name(), ".json"))
	}
	return ids, err
}

func (s *Store) profiles() ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "profiles"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []fs.FileInfo
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); !ok || !isHex(id) {
			continue
		}
		if st, err := e.Info(); err == nil {
			all = append(all, st)
		}
	}
	slices.SortStableFunc(all, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	return all, nil
}

// RemoveProfile forgets a profile; the error wraps ErrNotCached where there is none.
func (s *Store) RemoveProfile(id string) error {
	if !isHex(id) {
		return fmt.Errorf("%.80q is not a SHA-256", id)
	}
	err := os.Remove(s.profilePath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: profile %.12s", ErrNotCached, id)
	}
	return err
}
