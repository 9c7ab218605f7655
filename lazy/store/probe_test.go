package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestProbe(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(dir string) error
		fine bool
		want error
	}{
		"as it was": {do: func(string) error { return nil }, fine: true},
		"moved":     {do: func(dir string) error { return os.Rename(dir, dir+"-old") }, want: ErrGone},
		"made anew": {do: func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "lock")), os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600))
		}, want: ErrGone},
		"without its tmp": {do: func(dir string) error { return os.Remove(filepath.Join(dir, "tmp")) }, want: os.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			st, err := Open(dir)
			if err == nil {
				err = st.Lock()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if err := c.do(dir); err != nil {
				t.Fatal(err)
			}
			err = st.Probe()
			if c.fine && err != nil || !c.fine && (err == nil || !errors.Is(err, c.want)) {
				t.Errorf("probing: %v", err)
			}
			left, err := os.ReadDir(filepath.Join(dir, "tmp"))
			if err == nil && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
