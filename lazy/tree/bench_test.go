package tree_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/pexfs/pex/lazy/tree"
)

// millionEntries are ten layers of 100,000 entries each, with 20 files in a folder as in a distribution. Half of what an upper layer
// has is new; the rest replaces and removes what the layer below it gave, and links within the layer and across layers.
func millionEntries() [][]tree.Entry {
	layers := make([][]tree.Entry, 10)
	for l := range layers {
		all := make([]tree.Entry, 0, 100_000)
		for i := 0; len(all) < cap(all); i++ {
			dir := fmt.Sprintf("usr/lib/package%d/%d", l, i/20)
			if i%20 == 0 {
				all = append(all, tree.Entry{Name: dir + "/", Type: tree.Dir, Mode: 0o755, Mtime: tree.Time{Sec: 1}})
			}
			e := tree.Entry{Name: fmt.Sprintf("%s/file-%d.h", dir, i), Type: tree.Regular, Mode: 0o644, Size: 1000, Mtime: tree.Time{Sec: 1}, Content: int32(i)}
			below := fmt.Sprintf("usr/lib/package%d/%d/", l-1, i/20)
			switch {
			case i%50 == 1:
				e.Type, e.Linkname = tree.Symlink, "../file"
			case i%50 == 2:
				e.Type, e.Linkname = tree.HardLink, all[len(all)-2].Name
			case l > 0 && i%10 == 3:
				e.Type, e.Linkname = tree.HardLink, below+fmt.Sprintf("file-%d.h", i)
			case l > 0 && i%10 == 4:
				e.Name = below + fmt.Sprintf(".wh.file-%d.h", i)
			case l > 0 && i%10 >= 7:
				e.Name = below + fmt.Sprintf("file-%d.h", i)
			}
			all = append(all, e)
		}
		layers[l] = all
	}
	return layers
}

// BenchmarkMerge merges a million entries. Beside what is allocated in all it tells how much memory the Builder has per inode when the
// layers are in it, and the tree when it is built; the entries themselves are in neither.
func BenchmarkMerge(b *testing.B) {
	layers := millionEntries()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := build(tree.Options{}, layers...); err != nil {
			b.Fatal(err)
		}
	}
	empty := heap()
	bu := tree.NewBuilder(tree.Options{})
	for _, l := range layers {
		if err := bu.AddLayer(seq(l)); err != nil {
			b.Fatal(err)
		}
	}
	built := heap() - empty
	t, err := bu.Build()
	if err != nil {
		b.Fatal(err)
	}
	bu = nil
	frozen := heap() - empty
	b.ReportMetric(float64(built)/float64(t.Len()), "builder-B/inode")
	b.ReportMetric(float64(frozen)/float64(t.Len()), "tree-B/inode")
	b.ReportMetric(float64(t.Len()), "inodes")
	runtime.KeepAlive(layers)
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
