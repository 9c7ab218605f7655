package tree_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/pexfs/pex/lazy/tree"
)

// checkTree checks what a Tree's comments promise of its numbers and names.
func checkTree(t *testing.T, tr *tree.Tree) {
	t.Helper()
	names := make([]uint32, tr.Len())
	next := tree.Ino(1)
	for i := range tree.Ino(tr.Len()) {
		a := tr.Stat(i)
		subdirs, last := uint32(0), ""
		for d := range tr.Children(i) {
			if d.Name <= last || len(d.Name) > 255 || strings.Contains(d.Name, "/") || strings.HasPrefix(d.Name, ".wh.") {
				t.Fatalf("name %q behind %q", d.Name, last)
			}
			last = d.Name
			if d.Ino > next || d.Ino == 0 || d.Ino <= i && d.Type == tree.Dir {
				t.Fatalf("directory %d has the inode %d; %d is next", i, d.Ino, next)
			}
			if d.Ino == next {
				next++
			}
			if names[d.Ino]++; d.Type == tree.Dir {
				subdirs++
			}
			if d.Type != tr.Stat(d.Ino).Type {
				t.Fatalf("%q is of type %d and %d", d.Name, d.Type, tr.Stat(d.Ino).Type)
			}
		}
		if a.Type != tree.Dir && last != "" {
			t.Fatalf("inode %d has names and is no directory", i)
		}
		if a.Type == tree.Dir {
			names[i] += 1 + subdirs
		}
		if i == 0 {
			names[i]++
		}
		if a.Type == tree.Symlink && (a.Mode != 0o777 || a.Target == "" || int(a.Size) != len(a.Target)) || a.Mode > 0o7777 || a.UID == math.MaxUint32 {
			t.Fatalf("inode %d: %+v", i, a)
		}
		if (a.Content.Layer >= 0) != (a.Type == tree.Regular && a.Size > 0) || int(a.Content.Layer) >= tr.Layers() {
			t.Fatalf("inode %d: %+v", i, a)
		}
		var attrs []string
		for name := range tr.Xattrs(i) {
			attrs = append(attrs, name)
		}
		if !slices.IsSorted(attrs) || len(slices.Compact(slices.Clone(attrs))) != len(attrs) {
			t.Fatalf("inode %d has the attributes %q", i, attrs)
		}
	}
	for i := range tree.Ino(tr.Len()) {
		if a := tr.Stat(i); a.Nlink != names[i] || a.Nlink == 0 {
			t.Fatalf("inode %d has nlink %d and %d names", i, a.Nlink, names[i])
		}
	}
	if int(next) != tr.Len() {
		t.Fatalf("%d of %d inodes have names", next, tr.Len())
	}
}
