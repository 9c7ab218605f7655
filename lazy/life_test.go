package lazy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/store"
)

// flip changes a byte of a file.
func flip(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func fsck(t *testing.T, c *Cache, k store.Key, r Repo, heal bool) FsckReport {
	t.Helper()
	rep, err := c.Fsck(t.Context(), k, func(store.Info) (Repo, error) { return r, nil }, heal, func(Event) {})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// mapped are the lines of this process's mappings of files in a folder.
func mapped(t *testing.T, dir string) (lines []string) {
	t.Helper()
	all, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if strings.Contains(line, " "+dir+"/") {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestHealEndsWork heals an image of which a replay, a reader and what is read ahead hang in the network: they end, the image is opened
// anew, and nothing of the old one stays.
func TestHealEndsWork(t *testing.T) {
	r, _, im := openScripted(t)
	key, c := im.Info().Key, im.c
	p := mustProfile(t, im, readsOf(im, program()))
	need(t, im, 499)
	im.jobs.Wait()
	flip(t, im.File(), im.plan.extent(499).off)
	r.begin(func(ctx context.Context, _ int, _, _ int64) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
	im.Replay(p)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := im.Need(t.Context(), im.plan.extent(20).off, 1); !errors.Is(err, ErrReopened) {
			t.Errorf("the reader is told %v", err)
		}
	})
	wanted(im, 20, 1)
	if rep := fsck(t, c, key, r, true); rep.Bad != 1 || !rep.Healed {
		t.Errorf("%+v", rep)
	}
	wg.Wait()
	r.begin(nil)
	fresh := c.Loaded(key)
	if fresh == im || fresh == nil {
		t.Fatal("the image wasn't opened anew")
	}
	if got := len(mapped(t, im.Dir())); got != 2 {
		t.Errorf("%d files of the image are mapped, want its map and its Merkle tree", got)
	}
	fill(t, fresh)
	if rep := fsck(t, c, key, r, true); !rep.None() {
		t.Errorf("afterwards: %+v", rep)
	}
	if err := c.Remove(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if left := mapped(t, im.Dir()); len(left) > 0 {
		t.Errorf("mapped after the removal: %q", left)
	}
	if _, err := c.Image(t.Context(), key); !errors.Is(err, store.ErrNotCached) {
		t.Errorf("got %v", err)
	}
}

// TestEnded uses an image after its end, and while it ends.
func TestEnded(t *testing.T) {
	r, _, im := openScripted(t)
	p := mustProfile(t, im, readsOf(im, program()))
	var wg sync.WaitGroup
	begun := make(chan struct{}, 8)
	for i := range cap(begun) {
		wg.Go(func() {
			for k := 0; ; k++ {
				err := im.Need(t.Context(), im.plan.extent((60*i+k)%500).off, 1)
				im.Layers()
				im.Replay(p)
				if k == 3 {
					begun <- struct{}{}
				}
				if errors.Is(err, ErrReopened) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	<-begun
	if err := im.c.Remove(t.Context(), im.Info().Key); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	n := r.n
	r.mu.Unlock()
	wg.Wait()
	if err := im.Fill(t.Context()); !errors.Is(err, ErrReopened) {
		t.Errorf("filling: %v", err)
	}
	im.Replay(p)
	if im.Replaying() || im.State() != store.Lazy || im.Present() != 0 {
		t.Errorf("replaying %v, %s, %d bytes", im.Replaying(), im.State(), im.Present())
	}
	if r.n != n {
		t.Errorf("%d fetches after the end", r.n-n)
	}
	if _, err := im.Profile("", "", []profile.Read{{Blocks: 1}}); err != nil {
		t.Error(err)
	}
}

// TestRemoveWhileLoading has many load an image while it is removed: nobody gets one that is gone and lives.
func TestRemoveWhileLoading(t *testing.T) {
	r, _, _ := scattered(t)
	dir := filepath.Join(t.TempDir(), "c")
	c := newCache(t, dir)
	for range 50 {
		im := mustOpen(t, c, r, "a:1")
		key := im.Info().Key
		if err := c.change(t.Context(), key, func(*Image) error { return nil }); err != nil { // it is on disk only
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range 4 {
			wg.Go(func() {
				<-start
				for range i {
					runtime.Gosched()
				}
				if _, err := c.Image(t.Context(), key); err != nil && !errors.Is(err, store.ErrNotCached) {
					t.Error(err)
				}
			})
		}
		close(start)
		if err := c.Remove(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if c.Loaded(key) != nil {
			t.Fatal("an image that is gone is in memory")
		}
	}
}

// TestUseWhileTrimming gives up waiting for a layer's spool.
func TestUseWhileTrimming(t *testing.T) {
	r := newRepo()
	l, m := r.gzipLayer(t, random(100, 1)), r.gzipLayer(t, random(100, 2))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	unlock, err := c.spools.Lock(t.Context(), m.d.Digest.Hex) // as trimming does
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	sources := []source{{d: l.d}, {d: l.d}, {d: m.d}}
	if _, err := c.use(ctx, sources); !errors.Is(err, context.Canceled) || len(c.using) != 0 {
		t.Errorf("%v, %v are in use", err, c.using)
	}
	unlock()
	done, err := c.use(ctx, sources)
	if err != nil || len(c.using) != 2 {
		t.Fatal(err, c.using)
	}
	done(nil)
	if len(c.using) != 0 {
		t.Errorf("%v are in use", c.using)
	}
}

// TestFsckRoot has another root recorded than that of the image, which is right, has lost blocks, or is damaged in a content and an inode.
func TestFsckRoot(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	l := r.stargzLayer(t, tarOf(t, files, names[4:]...), 5000)
	r.image(t, r.gzipLayer(t, tarOf(t, files, names[:4]...)), l)
	dir := filepath.Join(t.TempDir(), "c")
	c := newCache(t, dir)
	im := mustOpen(t, c, r, "a:1")
	key, root := im.Info().Key, fill(t, im)
	last := im.plan.extent(im.plan.extents - 1)
	for name, damage := range map[string]func(string){
		"right": func(string) {},
		"a block is lost": func(name string) {
			name = filepath.Join(filepath.Dir(name), "map")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			i := 0
			for im.plan.extent(i).chunks == 0 { // what came with a stream can't be lost: such an image is made anew
				i++
			}
			block := im.plan.extent(i).off / store.BlockSize
			b[4096+block/8] &^= 1 << (block % 8)
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"damaged": func(name string) {
			flip(t, name, last.off)
			flip(t, name, im.Info().MetaOff+4)
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.of(l.d)
			info := filepath.Join(im.Dir(), "info.json")
			b, err := os.ReadFile(info)
			if err != nil {
				t.Fatal(err)
			}
			wrong := strings.Repeat("5", len(root))
			if err := os.WriteFile(info, []byte(strings.ReplaceAll(string(b), root, wrong)), 0o600); err != nil {
				t.Fatal(err)
			}
			damage(im.File())
			if err := c.change(t.Context(), key, func(*Image) error { return nil }); err != nil {
				t.Fatal(err)
			}
			rep := fsck(t, c, key, r, false)
			if rep.None() || rep.Healed || rep.Root != (name != "damaged") || c.Loaded(key).Root() != wrong {
				t.Errorf("found %+v", rep)
			}
			if rep := fsck(t, c, key, r, true); !rep.Healed {
				t.Errorf("healed %+v", rep)
			}
			now, err := c.Image(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			now.SetRepo(r)
			if got := fill(t, now); got != root {
				t.Errorf("the root is %s, it was %s", got, root)
			}
			if n := r.of(l.d) - before; name == "right" && n > 0 || n > 20_000 {
				t.Errorf("%d bytes were fetched", n)
			}
			if rep := fsck(t, c, key, r, true); !rep.None() {
				t.Errorf("afterwards %+v", rep)
			}
			check(t, now, files)
		})
	}
}
