package tree_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/tree"
)

var noContent = tree.Content{Layer: -1}

// naive merges by copying: the new layer's own entries are applied to an empty tree of paths beside the old one. It knows no
// symlinked parents, so the stacks it judges have none.
type naiveFile struct {
	kind    tree.Type
	mode    uint32
	content tree.Content
}

func naive(layers [][]tree.Entry) (map[string]*naiveFile, bool) {
	lower := map[string]*naiveFile{}
	for n, layer := range layers {
		// what markers take from the lower layers, wherever they stand
		gone := func(string) bool { return false }
		for _, e := range layer {
			dir, base := "", e.Name
			if i := strings.LastIndex(e.Name, "/"); i >= 0 {
				dir, base = e.Name[:i+1], e.Name[i+1:]
			}
			prev := gone
			if base == ".wh..wh..opq" {
				gone = func(p string) bool { return prev(p) || strings.HasPrefix(p, dir) }
			} else if x, ok := strings.CutPrefix(base, ".wh."); ok {
				gone = func(p string) bool { return prev(p) || p == dir+x || strings.HasPrefix(p, dir+x+"/") }
			}
		}
		state := map[string]*naiveFile{}
		for p, f := range lower {
			if !gone(p) {
				state[p] = f
			}
		}
		remove := func(p string) {
			for q := range state {
				if q == p || strings.HasPrefix(q, p+"/") {
					delete(state, q)
				}
			}
		}
		for k, e := range layer {
			for i := range e.Name {
				if e.Name[i] == '/' {
					p := e.Name[:i]
					if f := state[p]; f == nil || f.kind != tree.Dir {
						remove(p)
						state[p] = &naiveFile{kind: tree.Dir, mode: 0o755, content: noContent}
					}
				}
			}
			if strings.Contains(e.Name, ".wh.") {
				continue // it implied its directory
			}
			if e.Type == tree.HardLink {
				f := state[e.Linkname]
				if f == nil || f.kind == tree.Dir {
					return nil, false
				}
				f.mode = e.Mode
				if e.Name != e.Linkname {
					remove(e.Name)
					state[e.Name] = f
				}
				continue
			}
			f := &naiveFile{kind: e.Type, mode: e.Mode, content: noContent}
			if e.Type == tree.Regular {
				f.content = tree.Content{int32(n), int32(k)}
			}
			if old := state[e.Name]; old == nil || old.kind != tree.Dir || e.Type != tree.Dir {
				remove(e.Name)
			}
			state[e.Name] = f
		}
		lower = state
	}
	return lower, true
}

func listNaive(m map[string]*naiveFile) string {
	var paths []string
	for p := range m {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	first := map[*naiveFile]string{}
	var b strings.Builder
	for _, p := range paths {
		f := m[p]
		if old, ok := first[f]; ok && f.kind != tree.Dir {
			fmt.Fprintf(&b, "%s = %s\n", p, old)
			continue
		}
		first[f] = p
		fmt.Fprintf(&b, "%s %d %o %v\n", p, f.kind, f.mode, f.content)
	}
	return b.String()
}

func listPaths(tr *tree.Tree) string {
	m := map[string]*naiveFile{}
	files := map[tree.Ino]*naiveFile{}
	type item struct {
		path string
		ino  tree.Ino
	}
	for todo := []item{{"", 0}}; len(todo) > 0; {
		it := todo[0]
		todo = todo[1:]
		for d := range tr.Children(it.ino) {
			f := files[d.Ino]
			if f == nil {
				a := tr.Stat(d.Ino)
				f = &naiveFile{kind: a.Type, mode: a.Mode, content: a.Content}
				files[d.Ino] = f
			}
			m[it.path+d.Name] = f
			if f.kind == tree.Dir {
				todo = append(todo, item{it.path + d.Name + "/", d.Ino})
			}
		}
	}
	return listNaive(m)
}

// TestAgainstNaive merges random stacks and compares with the naive way.
//
// A layer that hides a name with a whiteout and also links to it, or that implies a directory which its own marker hides,
// has a result that depends on order; the naive way takes markers first. Only stacks with markers first are compared.
func TestAgainstNaive(t *testing.T) {
	names := []string{"a", "b", "c", "a/a", "a/b", "b/a", "a/a/a", "a/b/c", "b/a/b", "c/c/c"}
	compared := 0
	for seed := range uint64(20000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var layers [][]tree.Entry
		for range 1 + r.IntN(4) {
			var markers, l []tree.Entry
			for range r.IntN(3) {
				n := names[r.IntN(len(names))]
				dir, base := "", n
				if i := strings.LastIndex(n, "/"); i >= 0 {
					dir, base = n[:i+1], n[i+1:]
				}
				if r.IntN(3) == 0 {
					base = ".wh..opq"
				}
				markers = append(markers, tree.Entry{Name: dir + ".wh." + base, Type: tree.Regular})
			}
			for range r.IntN(6) {
				e := tree.Entry{Name: names[r.IntN(len(names))], Mode: uint32(0o600 + r.IntN(8))}
				switch r.IntN(5) {
				case 0, 1:
					e.Type = tree.Dir
				case 2:
					e.Type, e.Linkname = tree.HardLink, names[r.IntN(len(names))]
				default:
					e.Type, e.Size = tree.Regular, 1
				}
				l = append(l, e)
			}
			l = append(markers, l...)
			for i := range l {
				l[i].Content = int32(i)
			}
			layers = append(layers, l)
		}
		want, ok := naive(layers)
		tr, err := build(tree.Options{}, layers...)
		if !ok {
			if err == nil {
				t.Fatalf("seed %d: a link to nothing was taken", seed)
			}
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		compared++
		if d := cmp.Diff(listNaive(want), listPaths(tr)); d != "" {
			t.Fatalf("seed %d: -naive +got:\n%s\n%+v", seed, d, layers)
		}
	}
	if compared < 5000 {
		t.Errorf("only %d stacks were compared", compared)
	}
}

// TestMarkersCommute checks that where markers stand among a layer's entries makes no difference, but for links and
// types that change.
func TestMarkersCommute(t *testing.T) {
	c := parse(t, `
-- layer0 --
dir a 700
file a/x 644 1
dir a/d 700
file a/d/y 644 2
file b 644 3
-- layer1 --
file a/n 644 4
dir a/d 711
file a/d/z 644 5
file .wh.a 644
file .wh.b 644
file a/.wh..wh..opq 644`)
	lower, upper := c.Layers[0], c.Layers[1]
	want := ""
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		l := slices.Clone(upper)
		r.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] })
		tr, err := build(tree.Options{}, lower, l)
		if err != nil {
			t.Fatal(err)
		}
		if got := listPaths(tr); want == "" {
			want = got
		} else if got != want {
			t.Fatalf("%v\n%s", l, cmp.Diff(want, got))
		}
	}
}
