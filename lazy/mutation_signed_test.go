package lazy_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy"
)

// TestMutationsSigned has an author of an image sign what was mutated: it must come out as an error, or as an image whose contents
// something in it vouches for; and another image in the same cache is not touched by it.
func TestMutationsSigned(t *testing.T) {
	var inputs []input
	for _, f := range images(t) {
		good := readTruth(t, f.repo())
		add := func(what string, b []byte, sample int, change func(m []byte) (imageParts, *imageRepo)) {
			inputs = append(inputs, input{f.name + ", " + what, b, sample, func(ctx context.Context, w *worker, m []byte) (outcome, error) {
				bad, r := change(m)
				return w.withCache(func(c *lazy.Cache) (outcome, error) {
					s, err := opening{repo: r, check: true, content: vouched(bad.layers)}.run(ctx, c)
					if err := errors.Join(err, keptNothing(c, s.outcome)); err != nil {
						return s.outcome, err
					}
					if err := good.holds(ctx, c); err != nil {
						return s.outcome, fmt.Errorf("the image that was not mutated: %w", err)
					}
					return s.outcome, nil
				})
			}})
		}
		for i, l := range f.layers {
			for _, p := range l.parts(t) {
				if i > 0 && p.name != "" { // one layer's structure is like another's
					continue
				}
				add(fmt.Sprint("layer ", i, p.name), l.blob[p.from:p.to], 6, func(m []byte) (imageParts, *imageRepo) {
					b := slices.Concat(l.blob[:p.from], m, l.blob[p.to:])
					bad := f.with(t, i, layerForm{b, l.mediaType, l.annotations, l.diffID, l.toc}.withDiffID())
					return bad, bad.repo()
				})
			}
			if l.toc == nil {
				continue
			}
			add(fmt.Sprint("TOC of layer ", i), l.toc, 16, func(m []byte) (imageParts, *imageRepo) {
				bad := f.with(t, i, l.withTOC(t, m))
				return bad, bad.repo()
			})
			add(fmt.Sprint("TOC of layer ", i, ", its layer's digest as it was"), l.toc, 16, func(m []byte) (imageParts, *imageRepo) {
				return f.passing(t, i, l.withTOC(t, m))
			})
		}
		if f.name != "gzip" && f.name != "estargz" {
			continue
		}
		add("config", f.config, 25, func(m []byte) (imageParts, *imageRepo) {
			bad := f
			bad.config = m
			bad.manifest = bytes.ReplaceAll(f.manifest, []byte(sha(f.config).Hex), []byte(sha(m).Hex))
			bad.manifest = bytes.ReplaceAll(bad.manifest, fmt.Appendf(nil, `"size":%d`, len(f.config)), fmt.Appendf(nil, `"size":%d`, len(m)))
			bad = bad.signManifest(t)
			return bad, bad.repo()
		})
		add("manifest", f.manifest, 40, func(m []byte) (imageParts, *imageRepo) {
			bad := f
			bad.manifest = m
			bad = bad.signManifest(t)
			return bad, bad.repo()
		})
		add("index", f.index, 25, func(m []byte) (imageParts, *imageRepo) {
			bad := f
			bad.index = m
			return bad, bad.repo()
		})
	}
	tryAll(t, inputs)
}

// TestMutationsVerified has an author sign a table of contents that was mutated, and the image verified: it must come out as
// an error, or as what the tar has, as far as it can be read. A layer that was refused once stays so, verified or not.
func TestMutationsVerified(t *testing.T) {
	var inputs []input
	for _, f := range images(t) {
		good := readTruth(t, f.repo())
		want := good.list.summary()
		for i, l := range f.layers {
			if l.toc == nil {
				continue
			}
			inputs = append(inputs, input{fmt.Sprint(f.name, ", TOC of layer ", i), l.toc, 16, func(ctx context.Context, w *worker, m []byte) (outcome, error) {
				bad := f.with(t, i, l.withTOC(t, m))
				return w.withCache(func(c *lazy.Cache) (outcome, error) {
					s, err := opening{repo: bad.repo(), verify: true}.run(ctx, c)
					if err := errors.Join(err, keptNothing(c, s.outcome)); err != nil {
						return s.outcome, err
					}
					for p, e := range s.listing {
						if e.Err != "" {
							e.Content = good.list[p].Content
							s.listing[p] = e
						}
					}
					if s.outcome != refused {
						if d := cmp.Diff(want, s.listing.summary()); d != "" {
							return s.outcome, fmt.Errorf("verified, it is not what the tar has (-tar +image):\n%s", d)
						}
					}
					if errors.Is(s.why, lazy.ErrRefused) {
						if _, err := (opening{repo: bad.repo()}).open(ctx, c); !errors.Is(err, lazy.ErrRefused) {
							return s.outcome, fmt.Errorf("not verified, it is refused no more: %w", err)
						}
					}
					return s.outcome, good.holds(ctx, c)
				})
			}})
		}
	}
	tryAll(t, inputs)
}

// TestMutationsVerdict mutates the verdict on a layer that was refused: whoever wants the image verified is refused again.
func TestMutationsVerdict(t *testing.T) {
	raw := tinyLayers(t)
	l := forms()["estargz"](t, raw[1])
	forged := bytes.Replace(l.toc, []byte("null"), []byte("full"), 1) // a name
	p := sign(t, forms()["gzip"](t, raw[0]), l.withTOC(t, forged))
	verified := func(ctx context.Context, w *worker) error {
		_, err := w.withCache(func(c *lazy.Cache) (outcome, error) {
			s, err := opening{repo: p.repo(), verify: true}.run(ctx, c)
			if err == nil && !errors.Is(s.why, lazy.ErrRefused) {
				err = fmt.Errorf("it is not refused: %w", s.why)
			}
			return s.outcome, errors.Join(err, keptNothing(c, s.outcome))
		})
		return err
	}
	w := &worker{t.TempDir()}
	if err := verified(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	files := readFolder(t, w.dir)
	var inputs []input
	for name, f := range files {
		if !strings.HasPrefix(filepath.Base(name), "verdict.") {
			continue
		}
		inputs = append(inputs, input{shorten(name), f.get(f.spans(files, name)), 100, func(ctx context.Context, w *worker, m []byte) (outcome, error) {
			damaged := maps.Clone(files)
			damaged[name] = f.with(f.spans(files, name), m)
			if err := damaged.write(w.dir); err != nil {
				return refused, err
			}
			return refused, verified(ctx, w)
		}})
	}
	if len(inputs) != 1 {
		t.Fatalf("%d verdicts were kept, want 1", len(inputs))
	}
	tryAll(t, inputs)
}

// vouched gives a judge of contents: they must be in the tar of a layer, or made of the chunks that a TOC lists for some file.
func vouched(layers []layerForm) func([]byte) error {
	all := sync.OnceValues(func() (map[[32]byte]bool, [][]chunk) { return filesOf(layers) })
	return func(b []byte) error {
		whole, files := all()
		if whole[sha256.Sum256(b)] || slices.ContainsFunc(files, func(f []chunk) bool { return match(f, b) }) {
			return nil
		}
		return fmt.Errorf("nothing vouches for its %d bytes, %.40q…", len(b), b)
	}
}

// filesOf gives the digests of the files in the tars of layers, and the chunks of those in their TOCs.
func filesOf(layers []layerForm) (whole map[[32]byte]bool, files [][]chunk) {
	whole = make(map[[32]byte]bool)
	for _, l := range layers {
		if b, ok := inflated(l.blob); ok {
			r := tar.NewReader(bytes.NewReader(b))
			for {
				if _, err := r.Next(); err != nil {
					break
				}
				h := sha256.New()
				if _, err := io.Copy(h, r); err == nil {
					whole[[32]byte(h.Sum(nil))] = true
				}
			}
		}
		files = append(files, chunksOf(l.toc)...)
	}
	return whole, files
}

// chunk is one as a TOC has it; of size 0 it has all that is left.
type chunk struct {
	size   int64
	digest string
}

// chunksOf reads a TOC with the standard library's parser and gives the chunks of each regular file.
func chunksOf(toc []byte) (files [][]chunk) {
	var doc map[string]json.RawMessage
	var entries []map[string]json.RawMessage
	if json.Unmarshal(toc, &doc) != nil || json.Unmarshal(doc["entries"], &entries) != nil {
		return nil
	}
	for _, e := range entries {
		var typ, digest, whole string
		var size int64
		for k, p := range map[string]any{"type": &typ, "chunkDigest": &digest, "digest": &whole, "chunkSize": &size} {
			if e[k] != nil && json.Unmarshal(e[k], p) != nil {
				return nil
			}
		}
		if typ == "reg" {
			files = append(files, nil)
		} else if typ != "chunk" || len(files) == 0 {
			continue
		}
		if digest == "" {
			digest = whole
		}
		f := &files[len(files)-1]
		*f = append(*f, chunk{size, digest})
	}
	return files
}

// match tells whether a content is made of these chunks.
func match(f []chunk, b []byte) bool {
	for _, c := range f {
		n := c.size
		if n == 0 {
			n = int64(len(b))
		}
		if n < 0 || n > int64(len(b)) || sha(b[:n]).String() != c.digest {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}
