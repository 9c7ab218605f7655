package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// short runs a part in its short form, with the programs that make built.
func short(t *testing.T, p part, o options) {
	t.Helper()
	build := os.Getenv("PEX_BUILD")
	if build == "" {
		t.Fatal("PEX_BUILD is not set: run the tests by `make test`")
	}
	o.bin = filepath.Join(build, "bin", "pexfs")
	o.seed = uint64(time.Now().UnixNano()) % 1_000_000
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r := do(ctx, p, o)
	t.Logf("seed %d: %v", o.seed, r.Counts)
	for _, s := range r.Wrong {
		t.Error(s)
	}
}

func TestKills(t *testing.T) {
	short(t, part{name: "kills", run: kills}, options{kills: 12, scale: 1, victims: []string{"daemon", "view"}})
}

// TestSend counts what is sent of a blob for one image.
func TestSend(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		name  string
		sends [][3]int64 // from, to, and the end that was asked for
		other [2]int64   // sent for another image
		want  sends
	}{
		{"once", [][3]int64{{0, size, size}}, [2]int64{}, sends{}},
		{"all of it twice", [][3]int64{{0, 1000, 1000}, {0, 1000, 1000}}, [2]int64{}, sends{Repeated: 1000}},
		{"neighbours", [][3]int64{{0, 1000, 1000}, {1000, 2000, 2000}}, [2]int64{}, sends{}},
		{"a gap", [][3]int64{{1000, 3000, 3000}, {0, 4000, 4000}}, [2]int64{}, sends{Gaps: 2000}},
		{"too large for a gap", [][3]int64{{1000, 1001 + gap, 1001 + gap}, {0, size, size}}, [2]int64{}, sends{Repeated: gap + 1}},
		{"at the beginning and at the end", [][3]int64{{0, 10, 10}, {90, 100, 100}, {0, 100, 100}}, [2]int64{}, sends{Repeated: 20}},
		{"cut off in a gap", [][3]int64{{50, 80, 80}, {0, 80, 100}}, [2]int64{}, sends{Gaps: 30}},
		{"for another image", [][3]int64{{0, 100, 100}}, [2]int64{0, 100}, sends{Shared: 100}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got sends
			b := newBlob(make([]byte, size), false)
			other, sent := make([]bool, size), make([]bool, size)
			b.sent["a"], b.sent["b"] = other, sent
			for i := c.other[0]; i < c.other[1]; i++ {
				other[i] = true
			}
			for _, s := range c.sends {
				b.send(&got, sent, s[0], s[1], s[2])
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	short(t, part{name: "mounts", run: mounts}, options{mounts: 16, scale: 1})
}

func TestReaders(t *testing.T) {
	short(t, part{name: "readers", run: manyReaders}, options{readers: 200, scale: 1})
}

func TestLayers(t *testing.T) {
	short(t, part{name: "layers", run: manyLayers}, options{layers: 40})
}
