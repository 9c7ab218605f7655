package lazy_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy"
)

// TestMutationsServed has a registry serve other bytes for a digest: it must come out as an error, or make no difference. Once the
// registry is right again, so is the image, in the same cache.
func TestMutationsServed(t *testing.T) {
	var inputs []input
	var first listing
	for _, f := range images(t) {
		good := readTruth(t, f.repo())
		if first == nil {
			first = good.list
		} else if d := cmp.Diff(first.summary(), good.list.summary()); d != "" {
			t.Fatalf("as %s the image is another (-first +this):\n%s", f.name, d)
		}
		add := func(what string, whole []byte, p part, sample int) {
			inputs = append(inputs, input{f.name + ", " + what, whole[p.from:p.to], sample, func(ctx context.Context, w *worker, m []byte) (outcome, error) {
				bad := f.repo()
				bad.blobs[sha(whole)] = slices.Concat(whole[:p.from], m, whole[p.to:])
				return w.withCache(func(c *lazy.Cache) (outcome, error) {
					s, err := opening{repo: bad}.run(ctx, c)
					if err := errors.Join(err, good.is(s), keptNothing(c, s.outcome)); err != nil {
						return s.outcome, err
					}
					if err := good.holds(ctx, c); err != nil {
						return s.outcome, fmt.Errorf("served right again: %w", err)
					}
					return s.outcome, nil
				})
			}})
		}
		for i, l := range f.layers {
			for _, p := range l.parts(t) {
				if i == 0 || p.name == "" { // one layer's structure is like another's
					add(fmt.Sprint("layer ", i, p.name), l.blob, p, 12)
				}
			}
		}
		if f.name == "gzip" {
			for what, b := range map[string][]byte{"config": f.config, "manifest": f.manifest, "index": f.index} {
				add(what, b, part{to: len(b)}, 20)
			}
		}
	}
	tryAll(t, inputs)
}

// TestMutationsWhileFilling has readers and the filler at one image at the same time, over a network that changes some of what it
// transfers: nobody gets other bytes, and when it has got better the image becomes what it should be.
func TestMutationsWhileFilling(t *testing.T) {
	const readers, seeds = 4, 10
	for _, f := range images(t) {
		if f.layers[0].toc == nil {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			good := readTruth(t, f.repo())
			dir := t.TempDir()
			var changed, failed atomic.Int64
			for seed := range uint64(seeds) {
				w := &worker{filepath.Join(dir, fmt.Sprint(seed))}
				_, err := w.withCache(func(c *lazy.Cache) (outcome, error) {
					repo := f.repo()
					im, err := opening{repo: repo}.open(t.Context(), c)
					if err != nil {
						return refused, err
					}
					repo.change = changer(seed, &changed)
					errs := make([]error, readers)
					var wg sync.WaitGroup
					wg.Go(func() {
						if im.Fill(t.Context()) != nil {
							failed.Add(1)
						}
					})
					for i := range readers {
						wg.Go(func() {
							l, err := opening{}.list(t.Context(), im, true)
							if err == nil {
								err = l.differs(good.list)
							}
							if l.unreadable() {
								failed.Add(1)
							}
							errs[i] = err
						})
					}
					wg.Wait()
					im.SetRepo(f.repo())
					return right, errors.Join(append(errs, good.holds(t.Context(), c))...)
				})
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			t.Logf("%d transfers were changed; %d of %d readers and fillers failed", changed.Load(), failed.Load(), seeds*(readers+1))
		})
	}
}

// changer changes every second transfer, on average, at a place of it.
func changer(seed uint64, count *atomic.Int64) func([]byte) []byte {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 5))
	return func(b []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		if len(b) == 0 || r.IntN(2) == 0 {
			return b
		}
		count.Add(1)
		return mutation{[...]mutationKind{flip, splice}[r.IntN(2)], r.IntN(len(b))}.of(b, b)
	}
}

// images are the small image in each form, in the order of the forms' names.
func images(t testing.TB) []imageParts {
	t.Helper()
	all := forms()
	var out []imageParts
	for _, name := range slices.Sorted(maps.Keys(all)) {
		var layers []layerForm
		for _, b := range tinyLayers(t) {
			layers = append(layers, all[name](t, b))
		}
		p := sign(t, layers...)
		p.name = name
		out = append(out, p)
	}
	return out
}
