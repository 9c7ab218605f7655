package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/pexfs/pex/lazy/store"
)

// TestAsOwner does as root what comes before a daemon in a folder: in another user's all that it makes is that user's, and no link there
// leads it elsewhere.
func TestAsOwner(t *testing.T) {
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534
	}
	for _, c := range []struct {
		name string
		make func(c *Client) error
	}{
		{daemonLog, func(c *Client) error {
			f, err := OpenLog(c.dir, daemonLog)
			if err != nil {
				return err
			}
			return f.Close()
		}},
		{"start", func(c *Client) error {
			st, err := OpenStore(c.dir)
			if err != nil {
				return err
			}
			done, err := c.turn(t.Context(), st)
			if err == nil {
				done()
			}
			return err
		}},
		{"version", func(c *Client) error {
			st, err := OpenStore(c.dir)
			if err != nil {
				return err
			}
			_, err = locked(st)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			top := t.TempDir()
			if err := os.Chmod(filepath.Dir(top), 0o755); err != nil { // where all may enter
				t.Fatal(err)
			}
			folder := func(name string) *Client {
				dir := filepath.Join(top, name)
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(dir, uid, -1); err != nil {
					t.Fatal(err)
				}
				return newClient(dir, filepath.Join(top, "sock"))
			}
			fresh := folder("fresh")
			for range 2 {
				if err := c.make(fresh); err != nil {
					t.Fatal(err)
				}
			}
			ownedBy(t, fresh.dir, uid)

			left := folder("left") // a file of root's is there
			if err := os.WriteFile(filepath.Join(left.dir, c.name), []byte(store.Version), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.make(left); err != nil && c.name != "version" {
				t.Errorf("where root has left a file: %v", err)
			}

			linked := folder("linked")
			target := filepath.Join(top, "target")
			if err := os.Symlink(target, filepath.Join(linked.dir, c.name)); err != nil {
				t.Fatal(err)
			}
			err := c.make(linked)
			if c.name != "version" && err == nil { // that one is replaced by a rename
				t.Error("a link is followed")
			}
			if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what the link leads to: %v", err)
			}
		})
	}
}

// ownedBy checks that all in a folder is of a user.
func ownedBy(t *testing.T, dir string, uid int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if sys, ok := info.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != uid {
			t.Errorf("%s is of user %d, not %d", name, sys.Uid, uid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
