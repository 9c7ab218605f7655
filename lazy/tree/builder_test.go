package tree

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

func seq(entries []Entry) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func build(o Options, layers ...[]Entry) (*Tree, error) {
	b := NewBuilder(o)
	for _, l := range layers {
		if err := b.AddLayer(seq(l)); err != nil {
			return nil, err
		}
	}
	return b.Build()
}

// TestMerge runs testdata/*.txtar, which are the specification of merging by example: layers in, tree out.
func TestMerge(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(f)
			if err != nil {
				t.Fatal(err)
			}
			var layers [][]Entry
			want := ""
			for _, f := range ar.Files {
				if f.Name == "want" {
					want = string(f.Data)
				} else {
					layers = append(layers, parseLayer(t, string(f.Data)))
				}
			}
			tr, err := build(Options{Strict: !strings.Contains(f, "climbing-name")}, layers...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, list(tr)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		layer string
		opt   Options
		say   string
	}{
		"strict climb":        {"file a 644 1\nfile ../x 644 1", Options{Strict: true}, "climbs"},
		"strict link climb":   {"file a 644 1\nlink y ../a", Options{Strict: true}, "climbs"},
		"link to nothing":     {"file a 644 1\nlink y nothing", Options{}, `"nothing", which does not exist`},
		"link to directory":   {"dir d 755\nlink y d", Options{}, `"d", which is a directory`},
		"link to root":        {"file a 644 1\nlink y /", Options{}, "root"},
		"empty whiteout":      {"file a 644 1\nfile .wh. 644 0", Options{}, "whiteout"},
		"long component":      {"file a 644 1\nfile " + strings.Repeat("n", 256) + " 644 1", Options{}, "256 bytes"},
		"long path":           {"file a 644 1\nfile " + strings.Repeat("n/", 2100) + " 644 1", Options{}, "4200 bytes"},
		"symlink loop":        {"symlink a b\nsymlink b a\nfile a/x 644 1", Options{}, "40 symlinks"},
		"file as root":        {"file a 644 1\nfile ./ 644 1", Options{}, "root"},
		"more inodes":         {"file a 644 1\nfile b/c 644 1", Options{MaxInodes: 3}, "more than 3"},
		"symlink to nowhere":  {"file a 644 1\nsymlink l \"\"", Options{}, "target"},
		"zero byte in a name": {"file a 644 1\nfile \"a\\x00b\" 644 1", Options{}, "zero byte"},
	} {
		t.Run(name, func(t *testing.T) {
			layer := parseLayer(t, c.layer)
			_, err := build(c.opt, []Entry{}, layer)
			var e *EntryError
			if !errors.As(err, &e) || !strings.Contains(err.Error(), c.say) {
				t.Fatalf("got %v, want an EntryError that says %q", err, c.say)
			}
			if want := (EntryError{1, len(layer) - 1, layer[len(layer)-1].Name, e.Err}); *e != want {
				t.Errorf("got %+v, want %+v", *e, want)
			}
		})
	}
}

// naive merges by copying: the new layer's own entries are applied to an empty tree of paths beside the old one. It knows no
// symlinked parents, so the stacks it judges have none.
type naiveFile struct {
	kind    Type
	mode    uint32
	content Content
}

func naive(layers [][]Entry) (map[string]*naiveFile, bool) {
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
					if f := state[p]; f == nil || f.kind != Dir {
						remove(p)
						state[p] = &naiveFile{kind: Dir, mode: 0o755, content: noContent}
					}
				}
			}
			if strings.Contains(e.Name, ".wh.") {
				continue // it implied its directory
			}
			if e.Type == HardLink {
				f := state[e.Linkname]
				if f == nil || f.kind == Dir {
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
			if e.Type == Regular {
				f.content = Content{int32(n), int32(k)}
			}
			if old := state[e.Name]; old == nil || old.kind != Dir || e.Type != Dir {
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
		if old, ok := first[f]; ok && f.kind != Dir {
			fmt.Fprintf(&b, "%s = %s\n", p, old)
			continue
		}
		first[f] = p
		fmt.Fprintf(&b, "%s %d %o %v\n", p, f.kind, f.mode, f.content)
	}
	return b.String()
}

func listPaths(tr *Tree) string {
	m := map[string]*naiveFile{}
	files := map[Ino]*naiveFile{}
	type item struct {
		path string
		ino  Ino
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
			if f.kind == Dir {
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
		var layers [][]Entry
		for range 1 + r.IntN(4) {
			var markers, l []Entry
			for range r.IntN(3) {
				n := names[r.IntN(len(names))]
				dir, base := "", n
				if i := strings.LastIndex(n, "/"); i >= 0 {
					dir, base = n[:i+1], n[i+1:]
				}
				if r.IntN(3) == 0 {
					base = ".wh..opq"
				}
				markers = append(markers, Entry{Name: dir + ".wh." + base, Type: Regular})
			}
			for range r.IntN(6) {
				e := Entry{Name: names[r.IntN(len(names))], Mode: uint32(0o600 + r.IntN(8))}
				switch r.IntN(5) {
				case 0, 1:
					e.Type = Dir
				case 2:
					e.Type, e.Linkname = HardLink, names[r.IntN(len(names))]
				default:
					e.Type, e.Size = Regular, 1
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
		tr, err := build(Options{}, layers...)
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
	lower := parseLayer(t, "dir a 700\nfile a/x 644 1\ndir a/d 700\nfile a/d/y 644 2\nfile b 644 3")
	upper := parseLayer(t, "file a/n 644 4\ndir a/d 711\nfile a/d/z 644 5\nfile .wh.a 644 0\nfile .wh.b 644 0\nfile a/.wh..wh..opq 644 0")
	want := ""
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		l := slices.Clone(upper)
		r.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] })
		tr, err := build(Options{}, lower, l)
		if err != nil {
			t.Fatal(err)
		}
		if got := list(tr); want == "" {
			want = got
		} else if got != want {
			t.Fatalf("%v\n%s", l, cmp.Diff(want, got))
		}
	}
}

func TestManyLayers(t *testing.T) {
	var layers [][]Entry
	for i := range 300 {
		layers = append(layers, []Entry{{Name: fmt.Sprintf("d/%03d", i), Type: Regular, Size: 1}, {Name: fmt.Sprintf("d/.wh.%03d", i-1), Type: Regular}})
	}
	tr, err := build(Options{}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := list(tr), "/ dir 0755\n/d dir 0755\n/d/299 file 0000 layer299:0\n"; got != want {
		t.Errorf("got %s", got)
	}
}

func ExampleBuilder() {
	b := NewBuilder(Options{})
	b.AddLayer(seq([]Entry{{Name: "etc/", Type: Dir, Mode: 0o755}, {Name: "etc/old", Type: Regular}}))
	b.AddLayer(seq([]Entry{{Name: "etc/.wh.old", Type: Regular}, {Name: "etc/new", Type: Symlink, Linkname: "x"}}))
	t, err := b.Build()
	if err != nil {
		panic(err)
	}
	fmt.Print(list(t))
	// Output:
	// / dir 0755
	// /etc dir 0755
	// /etc/new symlink x
}

func FuzzBuilder(f *testing.F) {
	f.Add([]byte("a\x00b\x01a/.wh.b\x02"))
	f.Add([]byte("\x02a/b\x00.wh..wh..opq\x01../x\x03a\x04"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var layers [][]Entry
		layer := []Entry{}
		name := []byte{}
		for _, c := range in {
			if c >= 0x20 {
				name = append(name, c)
				continue
			}
			if c == 0x1f {
				layers = append(layers, layer)
				layer = nil
				continue
			}
			e := Entry{Name: string(name), Type: Type(c % 8), Linkname: "a", Mode: uint32(c), Size: int64(c)}
			if e.Type == Symlink && len(name) > 0 {
				e.Linkname = "../" + string(name[len(name)/2:])
			}
			layer = append(layer, e)
			name = nil
		}
		tr, err := build(Options{MaxInodes: 10000}, append(layers, layer)...)
		if err != nil {
			return
		}
		for i := range Ino(tr.Len()) {
			a := tr.Stat(i)
			subdirs := uint32(0)
			last := ""
			for d := range tr.Children(i) {
				if d.Name <= last || strings.Contains(d.Name, "/") || strings.HasPrefix(d.Name, ".wh.") {
					t.Fatalf("name %q behind %q", d.Name, last)
				}
				last = d.Name
				if d.Type == Dir {
					subdirs++
				}
			}
			if a.Type == Dir && a.Nlink != 2+subdirs {
				t.Fatalf("directory %d has nlink %d", i, a.Nlink)
			}
			if a.Nlink == 0 {
				t.Fatalf("inode %d has no name", i)
			}
		}
	})
}
