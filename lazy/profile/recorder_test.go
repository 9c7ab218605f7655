package profile

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestRecorder(t *testing.T) {
	const k = BlockSize
	type touch struct{ off, n int64 }
	for _, c := range []struct {
		name    string
		touches []touch
		want    []Read
	}{
		{"nothing", nil, nil},
		{"a byte", []touch{{5 * k, 1}}, []Read{{Block: 5, Blocks: 1}}},
		{"across an edge", []touch{{5*k - 1, 2}}, []Read{{Block: 4, Blocks: 2}}},
		{"twice", []touch{{0, k}, {0, k}, {1, k - 1}}, []Read{{Block: 0, Blocks: 1}}},
		{"one after the other", []touch{{0, k}, {k, 130 * k}, {131 * k, 1}}, []Read{{Block: 0, Blocks: 132}}},
		{"backwards", []touch{{k, 1}, {0, 1}}, []Read{{Block: 1, Blocks: 1}, {Block: 0, Blocks: 1}}},
		{"around what is known", []touch{{63 * k, 2 * k}, {60 * k, 10 * k}}, []Read{{Block: 63, Blocks: 2}, {Block: 60, Blocks: 3}, {Block: 65, Blocks: 5}}},
		{"the last block", []touch{{199 * k, k}}, []Read{{Block: 199, Blocks: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewRecorder(200 * k)
			for _, x := range c.touches {
				r.Touch(x.off, x.n)
			}
			if diff := cmp.Diff(c.want, r.Reads(), cmpopts.IgnoreFields(Read{}, "At"), cmpopts.EquateEmpty()); diff != "" {
				t.Error("-want +got:", diff)
			}
			if r.Last().IsZero() != (len(c.touches) == 0) {
				t.Errorf("the last was at %v", r.Last())
			}
		})
	}
	var none *Recorder
	none.Touch(0, 1)
}

// TestRecorderEnds has more reads than are kept, and an end.
func TestRecorderEnds(t *testing.T) {
	r := NewRecorder(4 * MaxTouches * BlockSize)
	for i := range int64(2 * MaxTouches) {
		r.Touch(2*i*BlockSize, 1)
	}
	if got := len(r.Reads()); got != MaxTouches {
		t.Errorf("%d reads", got)
	}
	r = NewRecorder(10 * BlockSize)
	r.Touch(0, 1)
	r.End()
	r.Touch(5*BlockSize, 1)
	if got := len(r.Reads()); got != 1 {
		t.Errorf("%d reads", got)
	}
}

// TestRecorderConcurrent has several readers: each block is noted once.
func TestRecorderConcurrent(t *testing.T) {
	const blocks = 5000
	r := NewRecorder(blocks * BlockSize)
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(g, 0))
			for range 5000 {
				b := rnd.Int64N(blocks)
				r.Touch(b*BlockSize, min(rnd.Int64N(20)+1, blocks-b)*BlockSize)
			}
		})
	}
	wg.Wait()
	seen := make(map[int64]bool)
	for _, x := range r.Reads() {
		for b := x.Block; b < x.Block+x.Blocks; b++ {
			if seen[b] || b >= blocks {
				t.Fatalf("block %d twice", b)
			}
			seen[b] = true
		}
	}
}
