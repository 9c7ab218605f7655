package lazy

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/store"
)

// What a profile names is fetched in runs of at most replayRun compressed bytes over gaps of fetchGap, replayers at once, and
// no more than replayMax in all: a profile may come from anywhere.
const (
	replayers = 6
	replayRun = 1 << 20
	replayMax = 1 << 30
)

// Replay fetches what a profile names and is missing, in the order in which it was needed first, ahead of those who will read
// it. It returns at once; nobody waits for it. A reader's need overtakes it, and takes along what lies behind in the same run; fillers
// wait until it ends. Faults end it without a word to readers, who meet them themselves. While one runs a second call does nothing.
func (im *Image) Replay(p *profile.Profile) {
	ctx, done, err := im.begin(context.Background())
	if err != nil {
		return
	}
	if im.plan == nil || im.file.State() == store.Sealed || !im.replaying.CompareAndSwap(false, true) {
		done()
		return
	}
	waiting := &im.fetchedIn().readers
	waiting.enter()
	go func() {
		defer done()
		defer waiting.leave()
		defer im.replaying.Store(false)
		im.mu.Lock()
		early := im.early
		im.mu.Unlock()
		if early != nil {
			early.close()
			defer im.dropEarly(early)
		}
		if err := im.replay(ctx, im.profiled(p)); err != nil && ctx.Err() == nil {
			im.log().Info("replaying profile", "profile", p.Name, "err", err)
		}
	}()
}

// Replaying tells whether a profile is being replayed.
func (im *Image) Replaying() bool { return im.replaying.Load() }

// blobChunk is a chunk of an image and where its member lies in the layer.
type blobChunk struct {
	ext, chunk int
	start, end int64
}

// profiled gives the missing chunks that a profile names, as pairs of (extent, chunk), in its order, each once.
func (im *Image) profiled(p *profile.Profile) (pairs []int) {
	at := make(map[string]int) // the image's layers by digest
	for i, l := range im.file.Info.Layers {
		at[l.Digest] = i
	}
	layers := make([][]blobChunk, len(im.file.Info.Layers)) // of those that the profile names
	named := make([]bool, len(layers))
	for _, d := range p.Layers {
		if i, ok := at[d]; ok {
			named[i] = true
		}
	}
	for i := range im.plan.extents {
		e := im.plan.extent(i)
		if _, cloned := im.clones[i]; cloned || !named[e.layer] || im.file.Has(e.off, e.size) {
			continue
		}
		for k := int(e.first); k < int(e.first+e.chunks); k++ {
			ch := im.plan.chunk(k)
			layers[e.layer] = append(layers[e.layer], blobChunk{i, k, ch.Start, ch.End})
		}
	}
	for _, l := range layers {
		slices.SortStableFunc(l, func(a, b blobChunk) int { return cmp.Compare(a.start, b.start) })
	}
	seen := make([]bool, im.plan.chunks)
	looks := 2 * im.plan.chunks // touches may overlap, but those of a recording don't
	total := int64(0)
	for _, t := range p.Touches {
		i, ok := at[p.Layers[t.Layer]]
		if !ok {
			continue
		}
		l := layers[i]
		k, _ := slices.BinarySearchFunc(l, t.Off, func(c blobChunk, off int64) int { return cmp.Compare(c.start, off) })
		for ; k < len(l) && l[k].start < t.Off+t.N; k++ {
			if looks--; looks < 0 {
				return pairs
			}
			c := l[k]
			if c.end > t.Off+t.N || seen[c.chunk] {
				continue
			}
			if total += c.end - c.start; total > replayMax {
				return pairs
			}
			seen[c.chunk] = true
			pairs = append(pairs, c.ext, c.chunk)
		}
	}
	return pairs
}

// replay fetches chunks in runs, that of the first chunk first.
func (im *Image) replay(ctx context.Context, pairs []int) error {
	runs := im.runs(pairs, replayRun)
	order := make(map[int]int, len(pairs)/2)
	for i := 1; i < len(pairs); i += 2 {
		order[pairs[i]] = i
	}
	first := func(r run) int {
		return order[slices.MinFunc(r.chunk, func(a, b int) int { return cmp.Compare(order[a], order[b]) })]
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(first(a), first(b)) })
	awaited := make(map[int]*run, len(order))
	for i := range runs {
		for _, k := range runs[i].chunk {
			awaited[k] = &runs[i]
		}
	}
	im.setAwaited(awaited)
	defer im.setAwaited(nil)

	ctx, cancel := context.WithCancelCause(im.purpose(ctx, blob.ForProfile))
	defer cancel(nil)
	next := make(chan *run)
	var wg sync.WaitGroup
	for range replayers {
		wg.Go(func() {
			for r := range next {
				for _, part := range im.runs(im.untaken(r), replayRun) {
					err := im.fetchBehind(ctx, part)
					if err == nil {
						err = im.c.troubled() // readers need the memory
					}
					if err != nil {
						cancel(err)
						break
					}
				}
			}
		})
	}
	for i := range runs {
		select {
		case next <- &runs[i]:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

func (im *Image) setAwaited(m map[int]*run) {
	im.mu.Lock()
	im.awaited = m
	im.mu.Unlock()
}

// untaken gives the pairs of a run that are missing and that nobody fetches.
func (im *Image) untaken(r *run) (pairs []int) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for i, k := range r.chunk {
		if im.jobsOf[k] == nil && !im.hasChunkLocked(im.plan.extent(r.ext[i]), k) {
			pairs = append(pairs, r.ext[i], k)
		}
	}
	return pairs
}

// aheadOfReplay adds to a reader's run what lies behind it in the run that a replay would fetch it with, and tells whether
// there is one. im.mu is held.
func (im *Image) aheadOfReplay(r *run) bool {
	var from *run
	inRun := make(map[int]bool, len(r.chunk))
	for _, k := range r.chunk {
		inRun[k] = true
		if a := im.awaited[k]; a != nil && im.jobsOf[k] == nil {
			from = a
		}
	}
	if from == nil {
		return false
	}
	wanted, end := slices.Clone(r.chunk), r.end
	for i, k := range from.chunk {
		var ch layer.Chunk
		if inRun[k] || im.jobsOf[k] != nil || im.hasChunkLocked(im.plan.extent(from.ext[i]), k) {
			continue
		}
		if ch = im.plan.chunk(k); ch.Start < r.start || ch.Start > end+fetchGap {
			continue
		}
		r.ext, r.chunk, end = append(r.ext, from.ext[i]), append(r.chunk, k), max(end, ch.End)
	}
	r.wanted, r.end = wanted, end
	im.sortRun(r)
	return true
}
