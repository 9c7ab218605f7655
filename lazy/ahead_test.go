package lazy

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWalks(t *testing.T) {
	const k = 1 << 10
	type step struct {
		layer      uint32
		start, end int64
		ahead      int64 // where the fetch has really ended
		want       int64
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"one who goes on", []step{{0, 0, k, 200 * k, aheadMin}, {0, 210 * k, 211 * k, 700 * k, 2 * aheadMin}, {0, 700 * k, 701 * k, 701 * k, 4 * aheadMin}, {0, 701 * k, 702 * k, 0, aheadMax}, {0, 702 * k, 703 * k, 0, aheadMax}}},
		{"one who hops about", []step{{0, 3000 * k, 3001 * k, 3200 * k, aheadMin}, {0, 5000 * k, 5001 * k, 5100 * k, 2 * aheadMin}, {0, 4000 * k, 4001 * k, 4001 * k, aheadMax}}},
		{"one who jumps", []step{{0, 0, k, 200 * k, aheadMin}, {0, 5000 * k, 5001 * k, 5001 * k, aheadMin}, {0, 0, k, k, 2 * aheadMin}, {0, 9000 * k, 9001 * k, k, aheadMin}}},
		{"two at once", []step{{0, 0, k, k, aheadMin}, {0, 9000 * k, 9001 * k, 9001 * k, aheadMin}, {0, k, 2 * k, 2 * k, 2 * aheadMin}, {0, 9001 * k, 9002 * k, 9002 * k, 2 * aheadMin}}},
		{"another layer", []step{{0, 0, k, k, aheadMin}, {1, k, 2 * k, 2 * k, aheadMin}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w walks
			for i, s := range c.steps {
				if got := w.step(s.layer, s.start, s.end); got != s.want {
					t.Errorf("step %d: %d bytes ahead, want %d", i, got, s.want)
				}
				if s.ahead > 0 {
					w.moved(s.layer, s.end, s.ahead)
				}
			}
		})
	}
	var w walks
	for i := range int64(100) {
		w.step(0, i<<30, i<<30+1)
	}
	if len(w) != aheadWalks {
		t.Errorf("%d walks are remembered", len(w))
	}
	if got := w.step(0, 99<<30+1, 99<<30+2); got != 2*aheadMin {
		t.Errorf("the latest is forgotten: %d", got)
	}
}

// TestAhead reads small files in the order of their layer, and one of them alone.
func TestAhead(t *testing.T) {
	files := make(map[string][]byte)
	var names []string
	for i := range 2000 {
		name := fmt.Sprintf("f%04d", i)
		files[name], names = random(4000, uint64(i)), append(names, name)
	}
	r := newRepo()
	l := r.stargzLayer(t, tarOf(t, files, names...), 0)
	r.image(t, l)
	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	before := r.of(l.d)
	if err := im.Need(context.Background(), im.plan.extent(1000).off, 1); err != nil {
		t.Fatal(err)
	}
	im.jobs.Wait()
	if got := r.of(l.d) - before; got < aheadMin/2 || got > aheadMin+8000 {
		t.Errorf("a file of 4,000 bytes had %d bytes fetched", got)
	}
	requests := r.requests.Load()
	for i := range im.plan.extents {
		if err := im.Need(context.Background(), im.plan.extent(i).off, 1); err != nil {
			t.Fatal(err)
		}
	}
	im.jobs.Wait()
	if got := r.requests.Load() - requests; got > 12 {
		t.Errorf("2,000 small files in order took %d requests", got)
	}
	check(t, im, files)
	if got, all := r.of(l.d)-before, l.d.Size; got > all+all/50 {
		t.Errorf("%d bytes were fetched of %d", got, all)
	}
}

// TestAheadFails has wrong bytes behind what a reader wants.
func TestAheadFails(t *testing.T) {
	files := map[string][]byte{"a": random(4000, 1), "b": random(4000, 2), "c": random(4000, 3)}
	r := newRepo()
	l := r.stargzLayer(t, tarOf(t, files, "a", "b", "c"), 0)
	r.image(t, l)
	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	at := im.plan.chunk(1)
	r.blobs[l.d.Digest][at.Start+100] ^= 1
	for range 20 {
		if err := im.Need(context.Background(), im.plan.extent(0).off, 1); err != nil {
			t.Fatal("a reader was told of what he has not asked for:", err)
		}
	}
	im.jobs.Wait()
	have := func() (all []bool) {
		for i := range 3 {
			all = append(all, im.file.Has(im.plan.extent(i).off, 1))
		}
		return all
	}
	if diff := cmp.Diff([]bool{true, false, false}, have()); diff != "" {
		t.Error("present (-want +got):", diff)
	}
	if err := im.Need(context.Background(), im.plan.extent(1).off, 1); err == nil {
		t.Error("wrong bytes were taken")
	}
	if err := im.Need(context.Background(), im.plan.extent(2).off, 1); err != nil {
		t.Error("the file behind the wrong bytes:", err)
	}
}
