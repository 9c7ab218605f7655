package lazy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pexfs/pex/lazy/store"
)

// TestDamagedFiles damages each small file of a cache while nobody has it open, in every way, of an image that is sealed and of one that
// isn't: the cache opens, and the image reads right, healed by itself, or its error names the file. Afterwards fsck finds nothing that it can't heal.
func TestDamagedFiles(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, files, names[4:]...), 5000), r.gzipLayer(t, tarOf(t, files, names[:4]...)))
	damages := map[string]func(name string, size int64) error{
		"first byte":  func(name string, size int64) error { return flipByte(name, 0) },
		"middle byte": func(name string, size int64) error { return flipByte(name, size/2) },
		"bits of a map": func(name string, size int64) error {
			for off := int64(4096); off < min(size, 4096+200); off += 3 {
				if err := flipByte(name, off); err != nil {
					return err
				}
			}
			return nil
		},
		"map that has all": func(name string, size int64) error {
			b, err := os.ReadFile(name)
			for off := int64(4096); off < size-8; off++ {
				b[off] = 0xff
			}
			return errors.Join(err, os.WriteFile(name, b, 0o600))
		},
		"last byte": func(name string, size int64) error { return flipByte(name, size-1) },
		"half":      func(name string, size int64) error { return os.Truncate(name, size/2) },
		"empty":     func(name string, _ int64) error { return os.Truncate(name, 0) },
		"removed":   func(name string, _ int64) error { return os.Remove(name) },
		"longer":    func(name string, size int64) error { return os.Truncate(name, size+4096) },
	}
	for _, state := range []string{"sealed", "lazy"} {
		t.Run(state, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "c")
			whole := func() (*Cache, *Image) {
				c := openCacheAt(t, dir)
				im := mustOpen(t, c, r, "a:1")
				if state == "sealed" {
					fill(t, im)
				} else if err := im.Need(t.Context(), im.plan.extent(im.plan.extents-1).off, 4096); err != nil {
					t.Fatal(err)
				}
				return c, im
			}
			c, im := whole()
			key := im.Info().Key
			closeCache(t, c)
			for _, pattern := range []string{"lock", "refs/*", "records/*", "blobs/*", "images/*/info.json", "images/*/plan", "images/*/map", "images/*/merkle", "images/*/layers"} {
				if state == "lazy" && !strings.HasPrefix(pattern, "images/") {
					continue // the same
				}
				for what, damage := range damages {
					all, err := filepath.Glob(filepath.Join(dir, pattern))
					if err != nil {
						t.Fatal(err)
					}
					if len(all) == 0 && strings.HasSuffix(pattern, "/layers") { // it isn't made anew for an image that is there
						if err := os.RemoveAll(dir); err != nil {
							t.Fatal(err)
						}
						c, _ := whole()
						closeCache(t, c)
						all, _ = filepath.Glob(filepath.Join(dir, pattern))
					}
					if len(all) == 0 {
						t.Fatalf("%s: there is none", pattern)
					}
					for _, name := range all {
						if state == "lazy" { // what was read is there
							if err := os.RemoveAll(dir); err != nil {
								t.Fatal(err)
							}
							c, _ := whole()
							closeCache(t, c)
						}
						st, err := os.Stat(name)
						if err != nil {
							t.Fatal(err)
						}
						if err := damage(name, st.Size()); err != nil {
							t.Fatal(err)
						}
						c := openCacheAt(t, dir)
						o, err := open(t, c, r, "a:1")
						switch {
						case err == nil:
							check(t, o.Image, files)
						case !strings.Contains(err.Error(), filepath.Base(name)) && !strings.Contains(err.Error(), filepath.Base(filepath.Dir(name))):
							t.Errorf("%s, %s: the error doesn't name it: %v", pattern, what, err)
						}
						rep, err := c.Fsck(t.Context(), key, func(store.Info) (Repo, error) { return r, nil }, true, func(Event) {})
						if err != nil && !errors.Is(err, store.ErrNotCached) || !rep.None() && !rep.Healed {
							t.Errorf("%s, %s: fsck: %+v, %v", pattern, what, rep, err)
						}
						closeCache(t, c)
						c, _ = whole()
						check(t, c.Loaded(key), files)
						closeCache(t, c)
					}
				}
			}
		})
	}
}

func flipByte(name string, off int64) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if off < 0 || off >= int64(len(b)) {
		return fmt.Errorf("%s has no byte %d", name, off)
	}
	b[off] ^= 0x11
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b[off:off+1], off)
	return errors.Join(err, f.Close())
}

func openCacheAt(t *testing.T, dir string) *Cache {
	t.Helper()
	st, err := store.Open(dir)
	if err == nil {
		err = st.Lock()
	}
	if err != nil {
		t.Fatal(err)
	}
	return NewCache(st, Options{})
}

func closeCache(t *testing.T, c *Cache) {
	t.Helper()
	if err := errors.Join(c.Close(), c.Store().Close()); err != nil {
		t.Fatal(err)
	}
}
