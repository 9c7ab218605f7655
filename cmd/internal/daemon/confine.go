package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/lazy/store"
)

// becoming is who a daemon becomes that root has started: who it is told to, else whose the cache folder is. So root doesn't write where
// another user may put links. nil: it stays who it is.
func becoming(c Config) (*confine.User, error) {
	if c.User == "" {
		return other(c.CacheDir)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("--user: only root may have the daemon become another user")
	}
	u, err := confine.Lookup(c.User)
	if err != nil || u.UID == 0 {
		return nil, err
	}
	return u, nil
}

// take opens and locks the cache folder for a daemon that becomes u, if u isn't nil: as u what is u's already, else as root, and then it is
// given to u.
func (c Config) take(ctx context.Context, u *confine.User) (st *store.Store, err error) {
	open := func(as func(func() error) error) error {
		if err := as(func() error { st, err = store.Open(c.CacheDir); return err }); err != nil {
			return err
		}
		return c.lock(ctx, st, as)
	}
	asSelf := func(f func() error) error { return f() }
	if u == nil {
		err = open(asSelf)
		return st, err
	}
	of, err := confine.Owner(c.CacheDir)
	switch {
	case err == nil && of.UID == u.UID:
		err = open(u.Do)
	case err == nil || errors.Is(err, fs.ErrNotExist):
		if err = open(asSelf); err == nil {
			err = u.Give(st.Dir())
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		err = unreachable(err, u)
	}
	return st, err
}

// confine makes this process u's, if u isn't nil, and gives up what it doesn't need, after what does has been started.
func (c Config) confine(cacheDir, sock string, u *confine.User) (*keyring, *confine.State, error) {
	if u != nil {
		if err := u.Become(); err != nil {
			return nil, nil, err
		}
		if _, err := os.ReadDir(cacheDir); err != nil {
			return nil, nil, &Error{Text: fmt.Sprintf("user %s can't read the cache folder: %v", u.Name, err), Hint: "name one that this user can get to: --cache-dir"}
		}
	}
	if c.Free {
		c.Log.Warn("the daemon is not confined")
		return nil, nil, nil
	}
	keys, err := startKeyring()
	if err != nil {
		return nil, nil, err
	}
	n := confine.Needs{Write: []string{cacheDir}, Connect: true, Remove: []string{filepath.Dir(sock)}, Capabilities: []int{unix.CAP_DAC_READ_SEARCH}}
	if u != nil { // the folder of sockets is root's
		n.Remove = nil
	}
	if c.LogFile != "" {
		if dir := filepath.Dir(c.LogFile); dir != cacheDir {
			n.Write = append(n.Write, dir)
		}
	}
	st, err := confine.Self(n)
	if err != nil {
		keys.close()
		return nil, nil, err
	}
	for _, what := range st.Missing() {
		c.Log.Warn("this kernel can't enforce on the daemon", "what", what)
	}
	return keys, &st, nil
}
