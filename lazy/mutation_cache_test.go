package lazy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/store"
)

// folder is a cache folder in memory, without what is zero.
type folder map[string]*file

type file struct {
	size   int64
	blocks map[int64][]byte // of 4,096 bytes or what is left at the end, by offset, but for those of zeros
}

func readFolder(t testing.TB, dir string) folder {
	t.Helper()
	all := make(folder)
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f := &file{int64(len(b)), make(map[int64][]byte)}
		for off := 0; off < len(b); off += store.BlockSize {
			if p := b[off:min(off+store.BlockSize, len(b))]; len(bytes.TrimLeft(p, "\x00")) > 0 {
				f.blocks[int64(off)] = p
			}
		}
		if name, err = filepath.Rel(dir, name); err == nil && name != "lock" {
			all[name] = f
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (f *file) write(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	o, err := os.Create(name)
	if err != nil {
		return err
	}
	err = o.Truncate(f.size)
	for off, b := range f.blocks {
		_, werr := o.WriteAt(b, off)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, o.Close())
}

// write makes a folder of that.
func (f folder) write(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for name, file := range f {
		if err := file.write(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// span is a part of a file that is mutated.
type span struct{ off, size int64 }

// get gives the bytes of spans.
func (f *file) get(spans []span) []byte {
	var all []byte
	for _, s := range spans {
		for off := s.off; off < s.off+s.size; off++ {
			c := byte(0)
			if b := f.blocks[off/store.BlockSize*store.BlockSize]; off%store.BlockSize < int64(len(b)) {
				c = b[off%store.BlockSize]
			}
			all = append(all, c)
		}
	}
	return all
}

// with is the file with other bytes at spans, which are the whole file if there is only one. What isn't the whole keeps its size, what
// is too much is left out, and what is missing is zero.
func (f *file) with(spans []span, b []byte) *file {
	if len(spans) == 1 {
		return &file{int64(len(b)), map[int64][]byte{0: b}}
	}
	out := &file{f.size, maps.Clone(f.blocks)}
	for _, s := range spans {
		for off := s.off; off < s.off+s.size; off++ {
			c := byte(0)
			if len(b) > 0 {
				c, b = b[0], b[1:]
			}
			at := off / store.BlockSize * store.BlockSize
			p := out.blocks[at]
			if p == nil {
				p = make([]byte, min(store.BlockSize, f.size-at))
				out.blocks[at] = p
			} else if f.blocks[at] != nil && &p[0] == &f.blocks[at][0] {
				p = bytes.Clone(p)
				out.blocks[at] = p
			}
			p[off-at] = c
		}
	}
	return out
}

// spans gives what of a file to mutate: of an image and what belongs to it, what isn't zero or tells of such blocks, and a little more.
func (f *file) spans(in folder, name string) []span {
	switch dir, base := filepath.Split(name); base {
	case "map":
		return []span{{0, 80}, {store.BlockSize, f.size - store.BlockSize}}
	case "image.erofs", "data":
		return append(f.used(), span{f.size - 1, 1})
	case "merkle":
		all := []span{{0, 80}, {store.BlockSize, 64}} // of the superblock and of the level above the leaves
		image := in[dir+"image.erofs"]
		leaves := f.size - (image.size/store.BlockSize+127)/128*store.BlockSize
		for _, s := range image.used() {
			all = append(all, span{leaves + s.off/store.BlockSize*32, 32})
		}
		return all
	}
	return []span{{0, f.size}}
}

// used are the parts of a file's blocks that aren't zero, each with some zeros on both sides.
func (f *file) used() []span {
	const more = 16
	var all []span
	for _, off := range slices.Sorted(maps.Keys(f.blocks)) {
		b := f.blocks[off]
		from := max(0, len(b)-len(bytes.TrimLeft(b, "\x00"))-more)
		to := min(len(b), len(bytes.TrimRight(b, "\x00"))+more)
		all = append(all, span{off + int64(from), int64(to - from)})
	}
	return all
}

// TestMutationsCache mutates the files of a cache folder with an image that is half filled, and with one that is sealed, and opens it
// again: in the same boot of the machine and in another.
//
// Trusted within a boot are the image file, its map and Merkle leaves, and contents kept of layers; of a sealed image, always, the
// file, its tree and the root, which verity or a check is for. Fsck mends all of that, a root too that is recorded in the place of the
// right one or was made of wrong leaves.
func TestMutationsCache(t *testing.T) {
	raw := tinyLayers(t)
	lower, top := forms()["gzip"](t, raw[0]), forms()["estargz"](t, raw[2])
	p := sign(t, lower, forms()["estargz"](t, raw[1]), top)
	good := readTruth(t, p.repo())
	// another image shows what the first hides, and takes it from what was kept of the layer; the rest it takes from the first
	other := readTruth(t, sign(t, lower, top).repo())

	var inputs []input
	for _, state := range []string{"half filled", "sealed"} {
		w := &worker{filepath.Join(t.TempDir(), "cache")}
		_, err := w.withCache(func(c *lazy.Cache) (outcome, error) {
			im, err := opening{repo: p.repo(), verify: true}.open(t.Context(), c)
			if err == nil && state == "sealed" {
				err = im.Fill(t.Context())
			} else if err == nil {
				err = im.Need(t.Context(), 2<<20, 1) // a block and a part of the next one
			}
			return right, err
		})
		if err != nil {
			t.Fatal(err)
		}
		same := readFolder(t, w.dir)
		for boot, files := range map[string]folder{"same boot": same, "another boot": same.ofAnotherBoot()} {
			r := reopening{good: good, other: other}
			if err := files.write(w.dir); err != nil {
				t.Fatal(err)
			}
			out, usual, err := r.run(t.Context(), w)
			if err != nil || out != right {
				t.Fatalf("%s, %s, nothing mutated: %d, %v", state, boot, out, err)
			}
			for _, name := range slices.Sorted(maps.Keys(files)) {
				f := files[name]
				spans := f.spans(files, name)
				trusted := false
				switch filepath.Base(name) {
				case "image.erofs", "merkle":
					trusted = state == "sealed" || boot == "same boot"
				case "info.json":
					trusted = state == "sealed"
				case "map", "data", "leaves":
					trusted = boot == "same boot"
				}
				sample := 6
				if b := filepath.Base(name); strings.HasPrefix(name, "images") || b == "data" || b == "leaves" {
					sample = 20
				}
				inputs = append(inputs, input{fmt.Sprintf("%s, %s, %s", state, boot, shorten(name)), f.get(spans), sample, func(ctx context.Context, w *worker, m []byte) (outcome, error) {
					damaged := maps.Clone(files)
					damaged[name] = f.with(spans, m)
					if err := damaged.write(w.dir); err != nil {
						return refused, err
					}
					out, fetched, err := r.run(ctx, w)
					var folder *folderError
					switch {
					case errors.As(err, &folder):
						return refused, nil
					case err != nil && ctx.Err() == nil && trusted:
						return misled, r.heal(ctx, w)
					case out == right && fetched > usual:
						out = refetched
					}
					return out, err
				}})
			}
		}
	}
	tryAll(t, inputs)
}

// ofAnotherBoot is the folder as if the machine had been started anew since.
func (f folder) ofAnotherBoot() folder {
	const size = 36 // of a boot's name
	out := maps.Clone(f)
	for name, file := range f {
		switch filepath.Base(name) {
		case "map":
			parts := []span{{0, 16}, {16, size}} // a magic and a number come first
			out[name] = file.with(parts, append(file.get(parts[:1]), strings.Repeat("x", size)...))
		case "boot":
			out[name] = file.with([]span{{0, size}}, []byte(strings.Repeat("x", size)))
		}
	}
	return out
}

// reopening reads an image of a folder, and another one on the same layer.
type reopening struct{ good, other *truth }

// run gives how many bytes of layers were fetched, too.
func (r reopening) run(ctx context.Context, w *worker) (out outcome, fetched int64, err error) {
	good, other := imageRepo{blobs: r.good.repo.blobs, root: r.good.repo.root}, imageRepo{blobs: r.other.repo.blobs, root: r.other.repo.root}
	out, err = w.withCache(func(c *lazy.Cache) (outcome, error) {
		s, err := opening{repo: &good}.run(ctx, c)
		if err := errors.Join(err, r.good.is(s)); err != nil {
			return s.outcome, err
		}
		second, err := opening{repo: &other}.run(ctx, c)
		if err := errors.Join(err, r.other.is(second)); err != nil {
			return s.outcome, fmt.Errorf("the other image: %w", err)
		}
		return min(s.outcome, second.outcome), nil // the worse one
	})
	return out, good.fetched.Load() + other.fetched.Load(), err
}

// heal checks all images of a folder and reads them again: they are right.
func (r reopening) heal(ctx context.Context, w *worker) error {
	repo := &imageRepo{blobs: maps.Clone(r.good.repo.blobs)}
	maps.Copy(repo.blobs, r.other.repo.blobs)
	_, err := w.withCache(func(c *lazy.Cache) (outcome, error) {
		images, err := c.Store().Images()
		for _, i := range images {
			_, ferr := c.Fsck(ctx, i.Key, func(store.Info) (lazy.Repo, error) { return repo, nil }, true, func(lazy.Event) {})
			err = errors.Join(err, ferr)
		}
		return right, err
	})
	if err != nil {
		return err
	}
	out, _, err := r.run(ctx, w)
	if err == nil && out != right {
		err = errors.New("it can't be read")
	}
	return err
}

// shorten leaves of a name's digests only the first digits.
func shorten(name string) string {
	return regexp.MustCompile("([0-9a-f]{8})[0-9a-f]{56}").ReplaceAllString(name, "$1…")
}
