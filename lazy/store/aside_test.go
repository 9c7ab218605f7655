package store

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// TestAside has a folder in which nothing can be written aside: no writer makes its file anywhere but in tmp, which is cleared after
// a crash.
func TestAside(t *testing.T) {
	s, id := openStore(t), string(testKey)
	im := create(t, s, 3*BlockSize)
	defer im.Close()
	ref := Ref{Ref: "a", Platform: "p", Manifest: id}
	writers := map[string]func() error{
		"a blob":      func() error { _, err := s.PutBlob([]byte("{}")); return err },
		"a reference": func() error { return s.PutRef(ref) },
		"a record":    func() error { return s.PutRecord(id, Record{Image: Key(id)}) },
		"an index":    func() error { return s.PutLayerIndex(t.Context(), id, "i", nil) },
		"a verdict":   func() error { return s.PutVerdict(id, "v", "") },
		"a profile":   func() error { return s.PutProfile(id, nil) },
		"an image":    func() error { return im.record(Lazy, "") },
	}
	if err := s.PutRef(ref); err != nil { // another way is taken for one that is there
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.tmp()); err != nil {
		t.Fatal(err)
	}
	for name, write := range writers {
		if err := write(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), s.tmp()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Mkdir(s.tmp(), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, write := range writers {
		if err := write(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := os.ReadDir(s.tmp()); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}
