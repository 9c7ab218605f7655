package lazy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/leaf"
	"github.com/pexfs/pex/lazy/store"
)

// layerFiles lists what the cache has of images and layers, each image's files below "image".
func layerFiles(t *testing.T, c *Cache) (all []string) {
	t.Helper()
	for _, p := range []string{"images/*/*", "layers/*/*"} {
		names, err := filepath.Glob(filepath.Join(c.st.Dir(), p))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			all = append(all, filepath.Base(filepath.Dir(filepath.Dir(n)))+" "+filepath.Base(n))
		}
	}
	return all
}

// TestFiles holds a finished image to a few files, however many layers it has.
func TestFiles(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.gzipLayer(t, tarOf(t, files, names[:4]...)), r.stargzLayer(t, tarOf(t, files, names[4:]...), 5000),
		r.gzipLayer(t, tarOf(t, map[string][]byte{".wh.f1": nil}, ".wh.f1")), r.gzipLayer(t, tarOf(t, files, names[1:3]...)))
	want := []string{"images image.erofs", "images info.json", "images layers", "images map", "images merkle", "images plan"}
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	im := mustOpen(t, c, r, "a:1")
	fill(t, im)
	c.trims.Wait()
	if diff := cmp.Diff(want, layerFiles(t, c)); diff != "" {
		t.Error(diff)
	}
	if err := c.st.CheckPack(im.Info().Key); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context(), im.Info().Key); err != nil {
		t.Fatal(err)
	}
	if left := layerFiles(t, c); len(left) > 0 {
		t.Errorf("of an image that was removed there is %q", left)
	}
	once := newCache(t, filepath.Join(t.TempDir(), "c"))
	once.opts.Once = true
	fill(t, mustOpen(t, once, r, "a:1"))
	once.trims.Wait()
	for _, n := range layerFiles(t, once) {
		if n == "images layers" || strings.HasPrefix(n, "layers ") && !strings.Contains(n, "index.") {
			t.Errorf("for one image there is %q", n)
		}
	}
}

// TestRest opens an image that shows what another one hid, after everything that may happen to what was kept of the layers.
func TestRest(t *testing.T) {
	files, names := testFiles()
	for _, tt := range []struct {
		name   string
		hidden string // of the base, by the first image
		change func(t *testing.T, c *Cache, first *Image)
		again  bool // the base is fetched again
	}{
		{name: "another daemon", hidden: "f40000"},
		{name: "nothing is hidden"},
		{name: "too much was hidden to be kept", hidden: "f3145728", again: true},
		{name: "the pack is gone", hidden: "f40000", again: true, change: func(t *testing.T, c *Cache, first *Image) {
			if err := c.st.RemovePack(first.Info().Key); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the pack is damaged", hidden: "f40000", again: true, change: func(t *testing.T, c *Cache, first *Image) {
			name := filepath.Join(first.Dir(), "layers")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for i := len(b) / 4; i < len(b)/2; i++ { // in the content: random bytes are not compressed
				b[i]++
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the image is gone", hidden: "f40000", again: true, change: func(t *testing.T, c *Cache, first *Image) {
			if err := c.Remove(t.Context(), first.Info().Key); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a third image", hidden: "f40000", change: func(t *testing.T, c *Cache, first *Image) {
			r := newRepo()
			r.image(t, r.gzipLayer(t, tarOf(t, files, names...)), r.gzipLayer(t, tarOf(t, files, names[0])))
			fill(t, mustOpen(t, c, r, "three:1"))
			c.trims.Wait()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRepo()
			base := r.gzipLayer(t, tarOf(t, files, names...))
			dir := filepath.Join(t.TempDir(), "c")
			c := newCache(t, dir)
			hide := ".wh." + tt.hidden
			if tt.hidden == "" {
				hide = "x"
			}
			r.image(t, base, r.gzipLayer(t, tarOf(t, map[string][]byte{hide: nil}, hide)))
			first := mustOpen(t, c, r, "one:1")
			fill(t, first)
			c.trims.Wait()
			if tt.change != nil {
				tt.change(t, c, first)
			}
			if err := errors.Join(c.Close(), c.st.Close()); err != nil {
				t.Fatal(err)
			}
			c = newCache(t, dir)
			before := r.of(base.d)
			r.image(t, base)
			im := mustOpen(t, c, r, "two:1")
			check(t, im, files)
			fill(t, im)
			if again := r.of(base.d) > before; again != tt.again {
				t.Errorf("the base was fetched again: %v", again)
			}
			c.trims.Wait()
			for _, n := range layerFiles(t, c) {
				if strings.HasPrefix(n, "layers ") {
					t.Errorf("there is %s", n)
				}
			}
		})
	}
}

// TestFsckPack damages what is kept of an image's layers: it is found, and removed.
func TestFsckPack(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.gzipLayer(t, tarOf(t, files, names...)))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	im := mustOpen(t, c, r, "a:1")
	fill(t, im)
	c.trims.Wait()
	name := filepath.Join(im.Dir(), "layers")
	if err := os.Truncate(name, 100); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ heal, found, healed bool }{{false, true, false}, {true, true, true}, {true, false, false}} {
		rep, err := c.Fsck(t.Context(), im.Info().Key, func(store.Info) (Repo, error) { return r, nil }, tt.heal, func(Event) {})
		if err != nil || rep.Layers != tt.found || rep.None() == tt.found || rep.Healed != tt.healed {
			t.Errorf("with heal %v: %+v, %v", tt.heal, rep, err)
		}
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("what is damaged is still there")
	}
}

// leavesOf gives the hashes of the blocks of a content.
func leavesOf(b []byte) []byte {
	padded := append(bytes.Clone(b), make([]byte, int(blocksEnd(0, int64(len(b))))-len(b))...)
	sums := make([]byte, len(padded)/leaf.Block*leaf.Size)
	leaf.Sums(sums, padded)
	return sums
}

// FuzzRest reads rests of a layer of three contents. No content becomes present that isn't the layer's.
func FuzzRest(f *testing.F) {
	var ix []layer.Content
	var all []byte
	for i, n := range []int{1, 5000, 4096} {
		b := random(n, uint64(i))
		all = append(all, b...)
		ix = append(ix, layer.Content{Key: layer.BlocksKey(int64(n), leavesOf(b)), Size: int64(n)})
	}
	f.Add(append([]byte{3, 0, 1, 1}, all...))
	f.Add(append([]byte{2, 1, 1}, all[1:]...))
	f.Add(append([]byte{1, 2}, all[5001:]...))
	f.Add([]byte{3, 0, 1, 1})
	f.Add([]byte{2, 1, 0})
	f.Add(binary.AppendUvarint(nil, 1<<63))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		im, err := st.Create(store.Info{Key: store.Key(strings.Repeat("a", 64)), Size: 4 * store.BlockSize})
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		want := map[layer.Key]int64{ix[0].Key: 0, ix[1].Key: store.BlockSize, ix[2].Key: 3 * store.BlockSize}
		if err := copyRest(im, bufio.NewReader(bytes.NewReader(b)), want, ix); err != nil {
			t.Fatal(err)
		}
		at := 0
		for i, ct := range ix {
			off := []int64{0, store.BlockSize, 3 * store.BlockSize}[i]
			_, missing := want[ct.Key]
			if im.Has(off, ct.Size) == missing {
				t.Errorf("content %d is wanted: %v, and present: %v", i, missing, !missing)
			}
			got := make([]byte, blocksEnd(0, ct.Size))
			if !missing {
				if _, err := im.File().ReadAt(got, off); err != nil || !bytes.Equal(got[:ct.Size], all[at:at+int(ct.Size)]) || len(bytes.Trim(got[ct.Size:], "\x00")) > 0 {
					t.Errorf("content %d is another (%v)", i, err)
				}
			}
			at += int(ct.Size)
		}
	})
}
