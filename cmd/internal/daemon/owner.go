package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/lazy/store"
)

// other is the user whose folder dir is, if this process is root's and it is somebody else's; else nil.
func other(dir string) (*confine.User, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := confine.Owner(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it will be root's
	}
	if err != nil || u.UID == 0 {
		return nil, err
	}
	return u, nil
}

// asOwner calls f, which starts no goroutines, for what it does in a folder. In another user's, where there may be links to anywhere, root
// has that user's rights and no more, and what it makes is the user's.
func asOwner(dir string, f func() error) error {
	u, err := other(dir)
	if err != nil {
		return err
	}
	if u == nil {
		return f()
	}
	if err = u.Do(f); errors.Is(err, fs.ErrPermission) {
		err = unreachable(err, u)
	}
	return err
}

// unreachable is the error where the user, who the daemon becomes, can't get to the cache folder.
func unreachable(err error, u *confine.User) error {
	return &Error{Text: err.Error(), Hint: fmt.Sprintf("name a cache folder that user %s can get to: --cache-dir", u.Name)}
}

// OpenStore opens a cache folder as its owner: see store.Open.
func OpenStore(cacheDir string) (st *store.Store, err error) {
	err = asOwner(cacheDir, func() error {
		st, err = store.Open(cacheDir)
		return err
	})
	return st, err
}

// locked tells whether a process holds a cache folder.
func locked(st *store.Store) (held bool, err error) {
	err = asOwner(st.Dir(), func() error {
		held, err = st.Locked()
		return err
	})
	return held, err
}

// openOwn opens a file for writing as the owner of the folder that it is in, or makes it. A file of root's that an earlier program left in
// another user's folder is put aside.
func openOwn(name string, flag int) (f *os.File, err error) {
	dir := filepath.Dir(name)
	u, err := other(dir)
	if err != nil {
		return nil, err
	}
	open := func() error {
		f, err = os.OpenFile(name, flag|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		return err
	}
	if u == nil {
		err = open()
		return f, err
	}
	err = u.Do(func() error {
		err := open()
		if errors.Is(err, fs.ErrPermission) && os.Rename(name, name+".old") == nil {
			err = open()
		}
		return err
	})
	return f, err
}

// holder is the process that holds the cache folder.
func (c *Client) holder() string {
	var b []byte
	err := asOwner(c.dir, func() error {
		f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err = io.ReadAll(io.LimitReader(f, 21))
		return err
	})
	if err != nil || len(b) > 20 {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
