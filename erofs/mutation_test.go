package erofs_test

import (
	"bytes"
	"context"
	"flag"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/compress"
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// The tests of mutations change every byte of an image's metadata in several ways. All these are more than every run needs, so a run
// takes a share of them, the same one each time; these are all, and a number in the place of "all" takes another share:
//
//	go test ./erofs -run Mutations -timeout 1h -v -mutations all
var mutations = flag.String("mutations", "0", `share of the mutations to try: a number, or "all"`)

// mutationEntries are a tree with some of everything that metadata has: inline and other directories and targets, attributes,
// devices, hard links.
func mutationEntries() []tree.Entry {
	entries := []tree.Entry{
		dir("d", 0o755), reg("d/a", 10, 1), reg("d/b", 5000, 2), dir("d/sub", 0o755), reg("same", 5000, 2), reg("big", 2*mib, 4),
		reg("none", 0, 0), reg("h1", 1, 6), hard("h2", "h1"), link("l", "target"), link("long", strings.Repeat("x", 4090)),
		{Name: "c", Type: tree.Char, Major: 1, Minor: 3}, {Name: "p", Type: tree.Fifo},
		with(reg("x", 1, 7), tree.Xattr{Name: "trusted.a", Value: []byte("1")}, tree.Xattr{Name: "user.b", Value: []byte("22222")}),
		with(dir("wide", 0o700), tree.Xattr{Name: "user.c", Value: nil}),
	}
	for c := 'a'; c <= 't'; c++ {
		entries = append(entries, reg("wide/"+strings.Repeat(string(c), 210), 0, 0))
	}
	return entries
}

// Kinds of mutations of a byte.
const (
	flips    = 3 // xor 0x01, 0x80, 0xff
	splices  = 4 // bytes that are left out, doubled, of another place, and of another image
	truncate = flips + splices
	kinds    = truncate + 1
)

// mutate gives a mutation of b other than its truncation; splices are of some bytes.
func mutate(b, other []byte, kind, at int) []byte {
	n := min(1+(at*7+kind)%24, len(b)-at)
	switch kind - flips {
	case 0: // what follows moves up, as the size stays
		return append(append(b[:at:at], b[at+n:]...), make([]byte, n)...)
	case 1:
		return append(b[:at+n:at+n], b[at:]...)[:len(b)]
	}
	out := bytes.Clone(b)
	switch {
	case kind < flips:
		out[at] ^= [...]byte{0x01, 0x80, 0xff}[kind]
	case kind == flips+2:
		copy(out[at:at+n], b[(at*31+kind*97)%len(b):])
	default:
		copy(out[at:at+n], other[min(at, len(other)):])
	}
	return out
}

// share gives the first mutation to try and the distance of the others, if every one of n is tried by n shares.
func share(t *testing.T, n int) (first, step int) {
	t.Helper()
	if *mutations == "all" {
		return 0, 1
	}
	k, err := strconv.ParseUint(*mutations, 10, 31)
	if err != nil {
		t.Fatalf("-mutations %q is neither a number nor all", *mutations)
	}
	return int(k) % n, n
}

// TestMutations changes the metadata of an image. Nothing panics; what passes Check can be read; and what passes it and looks different
// was a change of what Check cannot know.
func TestMutations(t *testing.T) {
	good := newFixture(t, mutationEntries()).sparse(t)
	other := newFixture(t, mutationEntries()[5:]).sparse(t)
	mutateImage(t, good, other, labels(t, good), 47)
}

// TestMutationsCompressed changes compressed images, contents included. Of these the compressors' forms notice some changes.
func TestMutationsCompressed(t *testing.T) {
	s := newFixture(t, []tree.Entry{dir("d", 0o755), reg("d/long", 140_000, 1), reg("d/short", 6000, 2), reg("tiny", 10, 3), link("l", "d/long"), hard("h", "tiny")}).sparse(t)
	plain, err := erofs.Open(filled{s}, s.size)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []compress.Algorithm{compress.LZ4, compress.Zstd} {
		t.Run(a.String(), func(t *testing.T) {
			good := &sparse{metaOff: disk.BlockSize}
			if good.size, err = compress.Write(context.Background(), good, plain, compress.Options{Algorithm: a}); err != nil {
				t.Fatal(err)
			}
			// what comes before the inodes are contents
			meta := int(good.open(t).Super().MetaOffset) - disk.BlockSize
			inodes := &sparse{super: good.super, metaOff: disk.BlockSize + int64(meta), meta: good.meta[meta:], size: good.size}
			mutateImage(t, good, s, append(slices.Repeat([]string{"content"}, meta), labels(t, inodes)...), 97)
		})
	}
}

// tally is what became of the mutations of bytes of one label.
type tally struct{ tried, unreadable, missed int }

// mutateImage tries one of step mutations of an image whose bytes behind the superblock have these labels.
func mutateImage(t *testing.T, good, other *sparse, label []string, step int) {
	t.Helper()
	want, err := see(good, good.size)
	if err != nil {
		t.Fatal(err)
	}
	if err := erofs.Check(good, good.size); err != nil {
		t.Fatal(err)
	}
	type job struct {
		super    bool
		kind, at int
	}
	counts := make(map[string]tally)
	var mu sync.Mutex
	try := func(s *sparse, what string, j job) {
		checked := erofs.Check(s, s.size)
		got, err := see(s, s.size)
		mu.Lock()
		defer mu.Unlock()
		c := counts[what]
		c.tried++
		if err != nil {
			c.unreadable++
		}
		switch {
		case checked == nil && err != nil:
			t.Errorf("%s, kind %d at %d: Check passes it, but: %v", what, j.kind, j.at, err)
		case checked == nil:
			c.missed++
			if j.kind < flips && !free()[what] {
				t.Errorf("%s, kind %d at %d: Check passes it", what, j.kind, j.at)
			}
			if got == want && j.kind < flips && what != "content" {
				t.Errorf("%s, kind %d at %d: nothing shows it", what, j.kind, j.at)
			}
		}
		counts[what] = c
	}
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for j := range jobs {
				s, what := *good, "splices"
				switch {
				case j.super:
					s.super, what = mutate(good.super, other.super, j.kind, j.at), "superblock"
				case j.kind == truncate:
					s.size, what = good.metaOff+int64(j.at), "truncations"
				default:
					s.meta = mutate(good.meta, other.meta, j.kind, j.at)
					if j.kind < flips {
						what = label[j.at]
					}
				}
				if bytes.Equal(s.super, good.super) && bytes.Equal(s.meta, good.meta) && s.size == good.size {
					continue
				}
				try(&s, what, j)
				if sum := disk.SuperOffset + 4; j.super && (j.at < sum || j.at >= sum+4) {
					s.fixChecksum()
					what += ", its checksum made right"
					if uuid := disk.SuperOffset + 48; j.kind < flips && j.at >= uuid && j.at < uuid+16 {
						what = "UUID"
					}
					try(&s, what, j)
				}
			}
		})
	}
	first, step := share(t, step)
	for x := first; x < len(good.meta)*kinds; x += step {
		jobs <- job{false, x % kinds, x / kinds}
	}
	for x := first; x < len(good.super)*truncate; x += step {
		jobs <- job{true, x % truncate, x / truncate}
	}
	close(jobs)
	wg.Wait()
	var sum tally
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		c := counts[what]
		t.Logf("%s: %d mutations, %d make the image unreadable; Check passes %d", what, c.tried, c.unreadable, c.missed)
		sum.tried, sum.unreadable, sum.missed = sum.tried+c.tried, sum.unreadable+c.unreadable, sum.missed+c.missed
	}
	t.Logf("all of %d bytes: %d mutations, %d make the image unreadable; Check passes %d", len(good.meta), sum.tried, sum.unreadable, sum.missed)
}
