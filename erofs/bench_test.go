package erofs_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// manyEntries makes about n files in directories of 50.
func manyEntries(n int) []tree.Entry {
	var es []tree.Entry
	for i := range n {
		es = append(es, reg(fmt.Sprintf("usr/share/dir%05d/file-name-%06d.ext", i/50, i), int64(i%1000*40), int32(i%1000)))
	}
	return es
}

func BenchmarkNewLayout(b *testing.B) {
	const n = 100_000
	t := buildTree(b, manyEntries(n))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := erofs.NewLayout(t, func(c tree.Content) [32]byte { return [32]byte{byte(c.Index), byte(c.Index >> 8)} }, [16]byte{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(t.Len()), "ns/inode")
}

func BenchmarkCheck(b *testing.B) {
	fx := newFixture(b, manyEntries(100_000))
	s := fx.sparse(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := erofs.Check(s, s.size); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(fx.tree.Len()), "ns/inode")
}

func BenchmarkLookup(b *testing.B) {
	s := newFixture(b, manyEntries(100_000)).sparse(b)
	im := s.open(b)
	dir := find(b, im, "usr", "share")
	b.ReportAllocs()
	for b.Loop() {
		nid, err := im.Lookup(dir, "dir01234")
		if err == nil {
			_, err = im.Inode(nid)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// TestReaderAllocates sees to it that looking up and reading an inode leave next to nothing to collect.
func TestReaderAllocates(t *testing.T) {
	s := newFixture(t, manyEntries(1000)).sparse(t)
	im := s.open(t)
	dir := find(t, im, "usr", "share")
	n := testing.AllocsPerRun(200, func() {
		nid, err := im.Lookup(dir, "dir00012")
		if err == nil {
			_, err = im.Inode(nid)
		}
		if err == nil {
			err = im.ReadDir(dir, 0, func(erofs.Dirent) bool { return true })
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if n > 2 {
		t.Errorf("%v allocations", n)
	}
}

// TestConcurrentReaders is for the race detector.
func TestConcurrentReaders(t *testing.T) {
	s := newFixture(t, goldenEntries()...).sparse(t)
	im := s.open(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := walk(im, 1000); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
