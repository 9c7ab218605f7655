package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProfiles(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := s.Profiles(); err != nil || len(ids) != 0 {
		t.Errorf("an empty folder has %q, %v", ids, err)
	}
	id := func(n int) string { return fmt.Sprintf("%064x", n) }
	begin := time.Now().Add(-time.Hour)
	for n := range maxProfiles + 2 {
		if err := s.PutProfile(id(n), []byte(id(n))); err != nil {
			t.Fatal(err)
		}
		at := begin.Add(time.Duration(n) * time.Second)
		if err := os.Chtimes(s.profilePath(id(n)), at, at); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := s.Profiles()
	if err != nil || len(ids) != maxProfiles || ids[0] != id(2) || ids[len(ids)-1] != id(maxProfiles+1) {
		t.Errorf("%d profiles are kept, from %q on, %v", len(ids), ids[0], err)
	}
	if b, err := s.Profile(id(5)); err != nil || string(b) != id(5) {
		t.Errorf("%q, %v", b, err)
	}
	if err := s.RemoveProfile(id(5)); err != nil {
		t.Error(err)
	}
	_, readErr := s.Profile(id(5))
	for name, err := range map[string]error{"reading": readErr, "removing": s.RemoveProfile(id(5))} {
		if !errors.Is(err, ErrNotCached) {
			t.Errorf("%s what is gone: %v", name, err)
		}
	}
	for _, bad := range []string{"", "x", "../" + id(1)[3:], id(1) + "0"} {
		if _, err := s.Profile(bad); err == nil || s.PutProfile(bad, nil) == nil || s.RemoveProfile(bad) == nil {
			t.Errorf("the name %q is taken", bad)
		}
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), "profiles", "other.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Profiles(); err != nil || cmp.Diff(len(ids)-1, len(again)) != "" {
		t.Errorf("%d profiles, %v", len(again), err)
	}
}
