package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/pexfs/pex/cmd/internal/size"
	"github.com/pexfs/pex/lazy/store"
)

// sizeEnv names the variable of the environment that bounds a cache; a flag of `daemon` precedes it.
const sizeEnv = "PEX_CACHE_SIZE"

// autoSize is the bound that leaves a part of the disk free (store.Budget).
const autoSize = "auto"

// settings are what a cache folder's daemon was told last by flags: those that other commands start go by them, too.
type settings struct {
	CacheSize int64 `json:"cacheSize"` // bytes; 0 is autoSize
}

func settingsFile(cacheDir string) string { return filepath.Join(cacheDir, "config.json") }

// cacheSize gives the bound of a cache in bytes, 0 for autoSize: what the flag says, which is kept for the next daemon; else what the
// environment says; else what was kept. What was kept and can't be read is logged.
func cacheSize(st *store.Store, flag string, log *slog.Logger) (int64, error) {
	if flag != "" {
		n, err := parseSize(flag)
		if err != nil {
			return 0, fmt.Errorf("reading --cache-size %q: %w", flag, err)
		}
		if err := keepSettings(st, settings{n}); err != nil {
			return 0, fmt.Errorf("keeping the cache's size: %w", err)
		}
		return n, nil
	}
	if n, set, err := envSize(); set {
		return n, err
	}
	var kept settings
	b, err := os.ReadFile(settingsFile(st.Dir()))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &kept)
	}
	if err == nil && kept.CacheSize < 0 {
		err = errors.New("a negative size")
	}
	if err != nil { // a guess is better than no daemon
		log.Warn("the cache's size that was kept can't be read: a tenth of the disk is left free", "file", settingsFile(st.Dir()), "err", err)
		return 0, nil
	}
	return kept.CacheSize, nil
}

// envSize is what the environment says. Who starts a daemon looks first, to say what is wrong rather than have it logged.
func envSize() (n int64, set bool, err error) {
	env := os.Getenv(sizeEnv)
	if env == "" {
		return 0, false, nil
	}
	if n, err = parseSize(env); err != nil {
		err = fmt.Errorf("reading %s=%q: %w", sizeEnv, env, err)
	}
	return n, true, err
}

// keepSettings writes the settings aside, so that they are there whole, or those before.
func keepSettings(st *store.Store, kept settings) error {
	b, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(st.Dir(), "tmp"), "config-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), settingsFile(st.Dir()))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func parseSize(text string) (int64, error) {
	if text == autoSize {
		return 0, nil
	}
	var n size.Bytes
	if err := n.Set(text); err != nil {
		return 0, err
	}
	if n < leastSize {
		return 0, fmt.Errorf("a cache has %d MiB at least", leastSize>>20)
	}
	return int64(n), nil
}

// leastSize is the least bound of a cache, in bytes.
const leastSize = 16 << 20

// handOver is how long an image that was opened is kept for a lease to come.
const handOver = 10 * time.Second

// claim is lazy.Options.Claim.
func (s *server) claim(key store.Key) (done func(), ok bool) {
	if s.removal(key) != nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.opened[key]) < handOver { // from removal on nobody hands it over
		s.removalOver(key)
		return nil, false
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.removalOver(key)
		delete(s.opened, key)
	}, true
}

// handedOver says that an image was opened, or that whoever opened it has a lease. One that is being removed can't be handed over: removed,
// which is nil otherwise, is closed when that is over.
func (s *server) handedOver(key store.Key, leased bool) (removed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case leased:
		delete(s.opened, key)
	case s.removing[key] != nil:
		return s.removing[key]
	default:
		s.opened[key] = time.Now()
	}
	return nil
}
