package lazy

import (
	"context"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/profile"
)

// trace notes where fetches begin, in the order in which they are asked for.
type trace struct {
	*memRepo
	mu   sync.Mutex
	offs []int64
}

func (r *trace) Blob(d v1.Descriptor) blob.Source { return &tracedBlob{r.memRepo.Blob(d), r} }

type tracedBlob struct {
	blob.Source
	r *trace
}

func (b *tracedBlob) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.r.mu.Lock()
	b.r.offs = append(b.r.offs, off)
	b.r.mu.Unlock()
	return b.Source.Fetch(ctx, off, n)
}

// scattered is an image with one lazy layer of 500 files of 4,000 bytes, of which a program reads some here and there.
func scattered(t *testing.T) (r *memRepo, l madeLayer, files map[string][]byte) {
	t.Helper()
	files = make(map[string][]byte)
	var names []string
	for i := range 500 {
		name := fmt.Sprintf("f%04d", i)
		files[name], names = random(4000, uint64(i)), append(names, name)
	}
	r = newRepo()
	l = r.stargzLayer(t, tarOf(t, files, names...), 0)
	r.image(t, l)
	return r, l, files
}

// program are the files that it reads: ten neighbours in ten places, from the last to the first.
func program() (files []int) {
	for i := 9; i >= 0; i-- {
		for k := range 10 {
			files = append(files, 50*i+k)
		}
	}
	return files
}

// readsOf are the reads of an image's files, a millisecond from one to the next.
func readsOf(im *Image, files []int) (reads []profile.Read) {
	for i, f := range files {
		e := im.plan.extent(f)
		reads = append(reads, profile.Read{Block: e.off / profile.BlockSize, Blocks: (e.size + profile.BlockSize - 1) / profile.BlockSize, At: time.Duration(i) * time.Millisecond})
	}
	return reads
}

func mustProfile(t *testing.T, im *Image, reads []profile.Read) *profile.Profile {
	t.Helper()
	p, err := im.Profile(fmt.Sprintf("%064d", 7), "prog", reads)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if p, err = profile.Decode(b); err != nil {
		t.Fatal(err)
	}
	return p
}

func need(t *testing.T, im *Image, files ...int) {
	t.Helper()
	for _, f := range files {
		if err := im.Need(t.Context(), im.plan.extent(f).off, 1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReplay(t *testing.T) {
	r, l, files := scattered(t)
	first := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	p := mustProfile(t, first, readsOf(first, program()))
	if len(p.Touches) != 10 || p.Touches[0].At != 0 || p.Touches[9].At != 90*time.Millisecond {
		t.Errorf("what was read is %d ranges: %v", len(p.Touches), p.Touches)
	}
	if diff := cmp.Diff([]string{l.d.Digest.String()}, p.Layers); diff != "" {
		t.Error("layers (-want +got):", diff)
	}
	requests, bytes := r.requests.Load(), r.of(l.d)
	need(t, first, program()...)
	first.jobs.Wait()
	without, bytesWithout := r.requests.Load()-requests, r.of(l.d)-bytes

	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	requests, bytes = r.requests.Load(), r.of(l.d)
	im.Replay(p)
	im.jobs.Wait()
	with, bytesWith := r.requests.Load()-requests, r.of(l.d)-bytes
	t.Logf("%d requests for %d bytes by reading, %d for %d by the profile, which names %d", without, bytesWithout, with, bytesWith, p.Bytes())
	if with != 10 || bytesWith != p.Bytes() {
		t.Errorf("%d requests for %d bytes, want 10 for %d", with, bytesWith, p.Bytes())
	}
	need(t, im, program()...)
	if r.requests.Load()-requests != with {
		t.Error("the program had to fetch")
	}
	if im.Replaying() {
		t.Error("the replay has not ended")
	}
	im.Replay(p)
	im.jobs.Wait()
	if r.requests.Load()-requests != with {
		t.Error("what is present was fetched again")
	}
	if err := im.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, im, files)
	im.Replay(p) // of a sealed image: nothing to do
	again, err := im.Profile(p.Image[len("sha256:"):], "prog", readsOf(first, program()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Touches, again.Touches); diff != "" {
		t.Error("the profile of a complete image (-want +got):", diff)
	}
}

// TestReplayOvertaken has a reader who needs what a replay would fetch last, and all of the replay's fetches under way hang.
func TestReplayOvertaken(t *testing.T) {
	r, _, _ := scattered(t)
	tr := &trace{memRepo: r}
	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), tr, "a:1")
	p := mustProfile(t, im, readsOf(im, program()))
	tr.offs = nil
	var calls atomic.Int64
	began, release := make(chan struct{}, replayers), make(chan struct{})
	r.hold = func() {
		if calls.Add(1) <= replayers {
			began <- struct{}{}
			<-release
		}
	}
	im.Replay(p)
	for range replayers {
		<-began
	}
	var want []int64
	for _, touch := range p.Touches[:replayers] {
		want = append(want, touch.Off)
	}
	slices.Sort(want)
	slices.Sort(tr.offs)
	if diff := cmp.Diff(want, tr.offs); diff != "" {
		t.Error("what is fetched first (-want +got):", diff)
	}
	need(t, im, 3) // files 3 to 9 are in the last run
	if got := calls.Load(); got != replayers+1 {
		t.Errorf("%d requests", got)
	}
	need(t, im, 4, 5, 6, 7, 8, 9)
	if got := calls.Load(); got != replayers+1 {
		t.Errorf("what lies behind took %d requests more", got-replayers-1)
	}
	if im.file.Has(im.plan.extent(10).off, 1) || im.file.Has(im.plan.extent(2).off, 1) {
		t.Error("more was fetched than the run from there on")
	}
	close(release)
	im.jobs.Wait()
	need(t, im, program()...)
	if got := calls.Load(); got != 11 { // the first three files of the last run were left
		t.Errorf("%d requests in all", got)
	}
}

// TestReplayShared replays a profile on another image that has the layer, among others that are streamed.
func TestReplayShared(t *testing.T) {
	r, l, _ := scattered(t)
	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	p := mustProfile(t, im, readsOf(im, program()))
	top := map[string][]byte{"f0000": random(9000, 1), "new": random(9000, 2)}
	r.image(t, l, r.gzipLayer(t, tarOf(t, top, "f0000", "new")))
	other := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	requests := r.requests.Load()
	other.Replay(p)
	other.jobs.Wait()
	if got := r.requests.Load() - requests; got != 10 {
		t.Errorf("%d requests", got)
	}
	var have int
	for i := range other.plan.extents {
		if e := other.plan.extent(i); e.layer == 0 && other.file.Has(e.off, e.size) {
			have++
		}
	}
	if have != 99 { // one of them is hidden
		t.Errorf("%d files of the shared layer are there", have)
	}
	all, err := other.Profile(fmt.Sprintf("%064d", 7), "", []profile.Read{{Blocks: other.file.Info.Size / profile.BlockSize}})
	if err != nil || len(all.Layers) != 1 {
		t.Errorf("a profile of all: layers %q, %v", all.Layers, err)
	}
}

// TestReplayHostile replays what no recording has made.
func TestReplayHostile(t *testing.T) {
	r, l, files := scattered(t)
	other := "sha256:" + fmt.Sprintf("%064d", 1)
	for name, touches := range map[string]func(size int64) []profile.Touch{
		"nothing":       func(int64) []profile.Touch { return nil },
		"another layer": func(int64) []profile.Touch { return []profile.Touch{{Layer: 1, N: math.MaxInt64}} },
		"behind the end": func(size int64) []profile.Touch {
			return []profile.Touch{{Off: size, N: 1}, {Off: math.MaxInt64 - 1, N: 1}, {Off: 0, N: 1}}
		},
		"all, over and over": func(size int64) []profile.Touch {
			return slices.Repeat([]profile.Touch{{N: math.MaxInt64}, {N: size}}, profile.MaxTouches/2)
		},
		"backwards": func(size int64) (all []profile.Touch) {
			for off := size - 1000; off > 0; off -= 1000 {
				all = append(all, profile.Touch{Off: off, N: 9000})
			}
			return all
		},
	} {
		t.Run(name, func(t *testing.T) {
			im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
			before := r.of(l.d)
			im.Replay(&profile.Profile{Layers: []string{l.d.Digest.String(), other}, Touches: touches(l.d.Size)})
			im.jobs.Wait()
			if got := r.of(l.d) - before; got > l.d.Size {
				t.Errorf("%d bytes were fetched of %d", got, l.d.Size)
			}
			if err := im.Fill(t.Context()); err != nil {
				t.Fatal(err)
			}
			check(t, im, files)
		})
	}
}

// TestReplayFails has a network that fails: readers meet that themselves, and read on when it is back.
func TestReplayFails(t *testing.T) {
	r, _, _ := scattered(t)
	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	p := mustProfile(t, im, readsOf(im, program()))
	r.gone.Store(true)
	im.Replay(p)
	im.jobs.Wait()
	if im.Replaying() || im.Err() != nil {
		t.Errorf("replaying: %v, error %v", im.Replaying(), im.Err())
	}
	r.gone.Store(false)
	need(t, im, program()...)
}

// TestProfileReads refuses what no view says.
func TestProfileReads(t *testing.T) {
	r, _, _ := scattered(t)
	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	blocks := im.file.Info.Size / profile.BlockSize
	for name, reads := range map[string][]profile.Read{
		"before the image":    {{Block: -1, Blocks: 1}},
		"behind it":           {{Block: blocks, Blocks: 1}},
		"too long":            {{Block: 1, Blocks: blocks}},
		"overflow":            {{Block: math.MaxInt64, Blocks: math.MaxInt64}},
		"nothing":             {{Block: 1}},
		"before time":         {{Blocks: 1, At: -1}},
		"more than the image": {{Blocks: blocks}, {Blocks: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := im.Profile("", "", reads); err == nil {
				t.Errorf("%v makes a profile of %d ranges", reads, len(p.Touches))
			}
		})
	}
	p, err := im.Profile("", "", []profile.Read{{Block: blocks - 1, Blocks: 1}, {Block: 0, Blocks: 1}})
	if err != nil || len(p.Touches) != 0 {
		t.Errorf("metadata: %v, %v", p, err)
	}
}
