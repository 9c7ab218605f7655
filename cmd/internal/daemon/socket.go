package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// DefaultCacheDir is PEX_CACHE_DIR, or pex in the user's cache folder.
func DefaultCacheDir() (string, error) {
	if d := os.Getenv("PEX_CACHE_DIR"); d != "" {
		return d, nil
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder: %w (name one with --cache-dir)", err)
	}
	return filepath.Join(d, "pex"), nil
}

// systemCache is the cache folder of a daemon for all of a machine, which root has systemd start, and systemSocket its socket.
const (
	systemCache  = "/var/cache/pex"
	systemSocket = "/run/pex/pexfs.sock"
)

// socketPath is where the daemon of a cache folder listens: in a folder that only this user can enter. Its name is a short
// hash, for a socket's path has 107 bytes at most. The sockets of a user's own default folder and of the system's have a name that a
// unit of systemd can say.
func socketPath(cacheDir string) (string, error) {
	abs, err := filepath.Abs(cacheDir)
	if err != nil {
		return "", err
	}
	abs = followed(abs)
	if os.Getuid() == 0 && abs == systemCache {
		return systemSocket, os.MkdirAll(filepath.Dir(systemSocket), 0o700)
	}
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" {
		base = filepath.Join(os.TempDir(), "pex-"+strconv.Itoa(os.Getuid()))
	} else {
		base = filepath.Join(base, "pex")
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of sockets: %w", err)
	}
	st, err := os.Lstat(base)
	if err != nil {
		return "", err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !st.IsDir() || !ok || int(sys.Uid) != os.Getuid() || st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("the folder of sockets %s is not a folder of this user alone", base)
	}
	if own, err := os.UserCacheDir(); err == nil && abs == followed(filepath.Join(own, "pex")) {
		return filepath.Join(base, "pexfs.sock"), nil
	}
	h := sha256.Sum256([]byte(abs))
	return filepath.Join(base, hex.EncodeToString(h[:6])+".sock"), nil
}

// followed is a path without symbolic links, where it is there.
func followed(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
