package lazy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/lazy/store"
)

// onDisk is how many bytes of a file system are in use, also by files that were removed and are open. A walk over its folders would count
// what comes while it counts beside what has gone since.
func onDisk(t *testing.T, disk string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		t.Error(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// TestBudget opens, reads and fills more images at once than the budget has room for, and looks at the blocks on disk all the while.
func TestBudget(t *testing.T) {
	const size = 14 << 20
	type one struct {
		r     *memRepo
		name  string
		files map[string][]byte
	}
	var images []one
	for i := range 8 {
		files, names := make(map[string][]byte), []string(nil)
		for k := range 5 {
			name := fmt.Sprint("f", k)
			files[name], names = random(300_000+100_000*k+k, uint64(100*i+k)), append(names, name)
		}
		r := newRepo()
		if raw := tarOf(t, files, names...); i%2 == 0 {
			r.image(t, r.stargzLayer(t, raw, 50_000))
		} else {
			r.image(t, r.gzipLayer(t, raw))
		}
		images = append(images, one{r, fmt.Sprint("i", i, ":1"), files})
	}
	disk := smallDisk(t, "200m")
	log := new(counted)
	var mu sync.Mutex
	leased := make(map[store.Key]int)
	claim := func(k store.Key) (func(), bool) {
		mu.Lock()
		defer mu.Unlock()
		if leased[k] > 0 {
			return nil, false
		}
		return func() {}, true
	}
	c := newCacheOf(t, filepath.Join(disk, "c"), Options{Size: size, Claim: claim, Log: log.logger()})
	c.trouble.every = 20 * time.Millisecond
	stop, most := make(chan struct{}), int64(0)
	var looking, wg sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most = max(most, onDisk(t, disk))
			}
		}
	})
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for done := 0; done < 12; {
				im := images[rnd.IntN(len(images))]
				o, err := open(t, c, im.r, im.name)
				if errors.Is(err, store.ErrUnwritable) || errors.Is(err, ErrReopened) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				done++
				k := o.Image.Info().Key
				mu.Lock()
				leased[k]++
				mu.Unlock()
				if c.Loaded(k) == o.Image { // else it was evicted before
					if rnd.IntN(2) == 0 {
						checkRead(t, o.Image, im.files, 1<<20)
					} else if err := o.Image.Fill(t.Context()); err != nil {
						t.Error(err)
					}
				}
				mu.Lock()
				leased[k]--
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(stop)
	looking.Wait()
	if most > size {
		t.Errorf("%d bytes on disk, more than %d", most, size)
	}
	evicted := log.of("evicted")
	if evicted == 0 || int64(evicted) != c.Evicted() || most < size/2 {
		t.Errorf("%d evicted, %d bytes on disk at most", evicted, most)
	}
	t.Logf("at most %d bytes on disk of %d, %d images evicted", most, int64(size), evicted)
}

// TestBudgetOfRest fills an image that nobody reads until there is no room: its filler rests, and another image that is opened takes its place.
func TestBudgetOfRest(t *testing.T) {
	files := map[string][]byte{"a": random(6<<20, 1), "b": random(6<<20, 2)}
	r, small := newRepo(), newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, files, "a", "b"), 100_000))
	few := map[string][]byte{"c": random(4<<20, 3)}
	small.image(t, small.stargzLayer(t, tarOf(t, few, "c"), 100_000))
	c := newCacheOf(t, filepath.Join(t.TempDir(), "c"), Options{Size: 8 << 20})
	c.trouble.every = 20 * time.Millisecond
	im := mustOpen(t, c, r, "a:1")
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := im.Fill(t.Context()); !errors.Is(err, ErrReopened) {
			t.Errorf("the filler that rests ends with %v", err)
		}
	})
	for c.troubled() == nil {
		time.Sleep(time.Millisecond)
	}
	checkRead(t, im, files, 1<<20)
	var other *Image
	for other == nil { // the filler doesn't rest while it looks for room
		o, err := open(t, c, small, "b:1")
		switch full := (*store.FullError)(nil); {
		case err == nil:
			other = o.Image
		case !errors.As(err, &full):
			t.Fatal(err)
		}
	}
	fill(t, other)
	wg.Wait()
	check(t, other, few)
	if _, err := c.Image(t.Context(), im.Info().Key); !errors.Is(err, store.ErrNotCached) {
		t.Errorf("the other: %v", err)
	}
}

// TestCopiedLetsGo has an image keep another from being removed for as long as it copies contents from there, and no longer.
func TestCopiedLetsGo(t *testing.T) {
	files := map[string][]byte{"a": random(1<<20, 1), "b": random(1<<20, 2)}
	one, two := newRepo(), newRepo()
	one.image(t, one.stargzLayer(t, tarOf(t, files, "a"), 100_000))
	two.image(t, two.stargzLayer(t, tarOf(t, files, "a", "b"), 100_000))
	c := newCacheOf(t, filepath.Join(t.TempDir(), "c"), Options{})
	from := mustOpen(t, c, one, "a:1")
	fill(t, from)
	im := mustOpen(t, c, two, "b:1")
	if !c.st.Used(from.Info().Key) {
		t.Error("an image is not used though another copies from it")
	}
	fill(t, im)
	check(t, im, files)
	if c.st.Used(from.Info().Key) {
		t.Error("an image is used though the other one is complete")
	}
}
