package lazy_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync"
	"testing"
	"time"
)

// The tests of mutations change every kind of input at every byte: they flip bits of it, end the input there, and put other bytes into
// its place. What comes of it must be an error, or what is right; never other content, a panic, a hang, or a cache that is
// worse afterwards.
//
// All mutations of an input are too many for every run, so a run takes a share of them, the same one each time. These are all:
//
//	go test ./lazy -run Mutations -timeout 12h -v -mutations all
//
// and a number in the place of "all" takes another share; so many consecutive numbers as a run says take each mutation once. Of parts of
// some bytes, such as footers, each share has every byte.
var mutations = flag.String("mutations", "0", `share of the mutations to try: a number, or "all"`)

const (
	tryTimeout = 30 * time.Second // of one try, which takes some milliseconds: beyond it hangs
	mostHeap   = 1 << 30          // bytes of objects at any time
	smallPart  = 64               // bytes of a part of which every byte is in every share
)

// mutation is a change of one input at one place.
type mutation struct {
	kind mutationKind
	at   int
}

type mutationKind uint8

const (
	flip     mutationKind = iota // one or some bits of a byte
	truncate                     // nothing from the place on
	splice                       // other bytes, fewer, or more from the place on
	mutationKinds
)

func (m mutation) String() string {
	return [...]string{"flipped", "truncated", "spliced"}[m.kind] + fmt.Sprintf(" at %d", m.at)
}

// of gives a changed copy of b, which is like other. It is the same as b where the place has what it gets.
func (m mutation) of(b, other []byte) []byte {
	r := rand.New(rand.NewPCG(uint64(m.kind), uint64(m.at)))
	switch m.kind {
	case flip:
		out := bytes.Clone(b)
		out[m.at] ^= [...]byte{0x01, 0x20, 0x80, 0xff}[r.IntN(4)]
		return out
	case truncate:
		return b[:m.at:m.at]
	}
	n := min(1+r.IntN(32), len(b)-m.at)
	head, tail := b[:m.at:m.at], b[m.at+n:]
	from := min(m.at, len(other))
	switch r.IntN(5) {
	case 0: // left out
		return append(head, tail...)
	case 1: // doubled
		return append(append(head, b[m.at:m.at+n]...), b[m.at:]...)
	case 2: // of elsewhere in b
		from := r.IntN(len(b) - n + 1)
		return append(append(head, b[from:from+n]...), tail...)
	case 3: // of the other's same place
		return append(append(head, other[from:min(from+n, len(other))]...), tail...)
	}
	return append(head, other[from:]...) // all that follows
}

// input is a part of something to be mutated.
type input struct {
	name   string
	b      []byte
	sample int // how many mutations a share has; more if the part is small
	// try opens an image with b in its place; an error is a failure of the test.
	try func(ctx context.Context, w *worker, b []byte) (outcome, error)
}

// count is how many mutations there are of the input.
func (in *input) count() int { return len(in.b) * int(mutationKinds) }

// step is the distance of the mutations that a share has. It has no factor in common with the number of kinds.
func (in *input) step() int {
	n := max(1, in.count()/in.sample)
	if n > 1 && n%int(mutationKinds) == 0 {
		n++
	}
	return n
}

// share calls f for each mutation of a share, or for all.
func (in *input) share(name string, f func(mutation)) error {
	first, step := 0, 1
	if name != "all" {
		n, err := strconv.ParseUint(name, 10, 31)
		if err != nil {
			return fmt.Errorf("-mutations %q is neither a number nor all", name)
		}
		if len(in.b) <= smallPart {
			for at := range in.b {
				f(mutation{mutationKind((at + int(n)) % int(mutationKinds)), at})
			}
			return nil
		}
		step = in.step()
		first = int(n) % step
	}
	for x := first; x < in.count(); x += step {
		f(mutation{mutationKind(x % int(mutationKinds)), x / int(mutationKinds)})
	}
	return nil
}

// outcome of a try.
type outcome uint8

const (
	refused    outcome = iota // by Open
	unreadable                // opened, but not everything could be read
	right                     // opened and read, as it should be
	refetched                 // the same, after more had been fetched than usual
	misled                    // other bytes, where the folder is trusted
	outcomes
)

// tally is how many tries had which outcome.
type tally [outcomes]int

func (c tally) String() string {
	total := 0
	for _, n := range c {
		total += n
	}
	text := fmt.Sprintf("%d mutations", total)
	for o, name := range [...]string{"refused", "unreadable in part", "right", "right and fetched again", "misled"} {
		if c[o] > 0 {
			text += fmt.Sprintf(", %d %s", c[o], name)
		}
	}
	return text
}

// tryAll tries a share of the mutations of the inputs. What is spliced into one is of the next.
func tryAll(t *testing.T, inputs []input) {
	t.Helper()
	root := "/dev/shm" // where syncing costs nothing
	if _, err := os.Stat(root); err != nil {
		root = ""
	}
	root, err := os.MkdirTemp(root, "pex-mutation-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	type job struct {
		input int
		m     mutation
	}
	var mu sync.Mutex // guards what follows
	counts := make([]tally, len(inputs))
	failed := 0
	jobs := make(chan job)
	var wg sync.WaitGroup
	for i := range runtime.GOMAXPROCS(0) {
		w := &worker{filepath.Join(root, fmt.Sprint(i))}
		wg.Go(func() {
			for j := range jobs {
				in := &inputs[j.input]
				b := j.m.of(in.b, inputs[(j.input+1)%len(inputs)].b)
				if bytes.Equal(b, in.b) {
					continue
				}
				out, err := w.attempt(t.Context(), in, b)
				mu.Lock()
				counts[j.input][out]++
				if err != nil {
					if failed++; failed <= 60 {
						t.Errorf("%s, %v: %v", in.name, j.m, err)
					}
				}
				mu.Unlock()
			}
		})
	}
	heap := watchHeap()
	start := time.Now()
	most := 1
	for i := range inputs {
		most = max(most, inputs[i].step())
		if err := inputs[i].share(*mutations, func(m mutation) { jobs <- job{i, m} }); err != nil {
			t.Error(err)
			break
		}
	}
	close(jobs)
	wg.Wait()
	if peak := heap(); peak > mostHeap {
		t.Errorf("up to %d bytes were on the heap", peak)
	}
	var total tally
	all := 0
	for i, c := range counts {
		t.Logf("%s, %d bytes: %v", inputs[i].name, len(inputs[i].b), c)
		for o, n := range c {
			total[o] += n
		}
		all += inputs[i].count()
	}
	t.Logf("share %s of %d, of %d mutations: %v, %d failures, in %v", *mutations, most, all, total, failed, time.Since(start).Round(time.Second))
}

// attempt tries one mutation and clears the worker's folder.
func (w *worker) attempt(ctx context.Context, in *input, b []byte) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	out, err := in.try(ctx, w, b)
	if ctx.Err() != nil {
		err = errors.Join(err, errors.New("it hangs"))
	}
	return out, errors.Join(err, os.RemoveAll(w.dir))
}

// watchHeap looks at the heap until the function that it returns is called, which gives the most it saw.
func watchHeap() func() uint64 {
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		most := uint64(0)
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-tick.C:
				metrics.Read(s)
				most = max(most, s[0].Value.Uint64())
			case <-stop:
				tick.Stop()
				peak <- most
				return
			}
		}
	}()
	return func() uint64 { close(stop); return <-peak }
}
