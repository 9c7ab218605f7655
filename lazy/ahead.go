package lazy

import (
	"cmp"
	"slices"

	"github.com/pexfs/pex/lazy/layer"
)

// A reader's chunks are fetched together with those that lie behind them in the layer: a program opens the small files of a folder one
// after the other, and a round trip costs as much as hundreds of kilobytes. The reader doesn't wait for these. All sizes are
// of compressed bytes.
const (
	aheadMin   = 512 << 10 // for one who comes from elsewhere: about what a line of 200 Mbit/s carries in a round trip of 20 ms
	aheadMax   = 2 << 20   // doubled up to this each time he goes on near to where a fetch of his has ended: at most this far away
	aheadLook  = 4096      // chunks that are looked at
	aheadWalks = 16        // walks that are remembered of an image
)

// walk is where a reader's last fetch has ended, and how much was fetched ahead.
type walk struct {
	layer       uint32
	end, window int64
}

// walks are the latest of an image, oldest first.
type walks []walk

// step gives the number of bytes to fetch behind end for a reader of [start, end).
func (w *walks) step(layer uint32, start, end int64) int64 {
	window := int64(aheadMin)
	i := len(*w) - 1
	for ; i >= 0; i-- {
		if o := (*w)[i]; o.layer == layer && o.end <= start+aheadMax && start <= o.end+aheadMax {
			break
		}
	}
	if i >= 0 {
		window = min(2*(*w)[i].window, aheadMax)
	} else if i = 0; len(*w) < aheadWalks {
		*w = append(walks{{}}, *w...)
	}
	*w = append(slices.Delete(*w, i, i+1), walk{layer, end, window})
	return window
}

// moved says that the fetch of a reader up to end goes on to ahead.
func (w walks) moved(layer uint32, end, ahead int64) {
	for i := range w {
		if w[i].layer == layer && w[i].end == end {
			w[i].end = ahead
		}
	}
}

// ahead adds to a reader's run the chunks behind it that are missing. They lie behind in the plan, too.
func (im *Image) ahead(r *run) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if !slices.ContainsFunc(r.chunk, func(k int) bool { return im.jobsOf[k] == nil }) {
		return // it is on its way already
	}
	if im.aheadOfReplay(r) {
		return
	}
	window := im.walks.step(r.layer, r.start, r.end)
	first, end := len(r.chunk), r.end
	limit := end + window
	inRun := make(map[int]bool, first)
	for _, k := range r.chunk {
		inRun[k] = true
	}
	i, k := r.ext[first-1], r.chunk[first-1]+1
	for looked := 0; i < im.plan.extents && looked < aheadLook; i++ {
		e := im.plan.extent(i)
		if e.layer != r.layer {
			break
		}
		k = max(k, int(e.first))
		for ; k < int(e.first+e.chunks) && looked < aheadLook; k++ {
			looked++
			ch := im.plan.chunk(k)
			if ch.Start < r.start { // its tar's order is another than its blob's
				continue
			}
			if ch.Start > end+fetchGap || ch.End > limit {
				looked = aheadLook
				break
			}
			if _, cloned := im.clones[i]; cloned || inRun[k] || im.jobsOf[k] != nil || im.hasChunkLocked(e, k) {
				continue
			}
			r.ext, r.chunk, end = append(r.ext, i), append(r.chunk, k), max(end, ch.End)
		}
	}
	if len(r.chunk) == first {
		return
	}
	im.walks.moved(r.layer, r.end, end)
	r.wanted, r.end = slices.Clone(r.chunk[:first]), end
	im.sortRun(r)
}

// sortRun brings a run's chunks into the order of their places in the blob.
func (im *Image) sortRun(r *run) {
	type place struct {
		ext, chunk int
		at         layer.Chunk
	}
	all := make([]place, len(r.chunk))
	for i, k := range r.chunk {
		all[i] = place{r.ext[i], k, im.plan.chunk(k)}
	}
	slices.SortStableFunc(all, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.at.Start, b.at.Start), cmp.Compare(a.at.Inner, b.at.Inner))
	})
	for i, p := range all {
		r.ext[i], r.chunk[i] = p.ext, p.chunk
	}
}
