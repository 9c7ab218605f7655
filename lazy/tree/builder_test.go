package tree_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/tree"
	"github.com/pexfs/pex/lazy/tree/treetest"
)

func seq(entries []tree.Entry) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func build(o tree.Options, layers ...[]tree.Entry) (*tree.Tree, error) {
	b := tree.NewBuilder(o)
	for _, l := range layers {
		if err := b.AddLayer(seq(l)); err != nil {
			return nil, err
		}
	}
	return b.Build()
}

// parse reads layers in the form of treetest's cases, which begin with "-- layer0 --".
func parse(t testing.TB, text string) treetest.Case {
	t.Helper()
	c, err := treetest.Parse(t.Name(), text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stack is parse, of a single layer where no layer is begun.
func stack(t testing.TB, text string) treetest.Case {
	t.Helper()
	if !strings.HasPrefix(text, "--") {
		text = "-- layer0 --\n" + text
	}
	return parse(t, text)
}

func mustBuild(t testing.TB, c treetest.Case) *tree.Tree {
	t.Helper()
	tr, err := build(tree.Options{}, c.Layers...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestMerge(t *testing.T) {
	treetest.Run(t, treetest.Cases(t), func(t *testing.T, c treetest.Case) (*tree.Tree, func(tree.Content) []byte, error) {
		tr, err := build(tree.Options{}, c.Layers...)
		if err == nil {
			checkTree(t, tr)
			if d := cmp.Diff(c.Ambiguous, texts(tr.Ambiguous())); d != "" {
				t.Errorf("ambiguous: -want +got:\n%s", d)
			}
			return tr, c.Content, nil
		}
		// it is the last entry of the last layer that is at fault in all cases
		layer := len(c.Layers) - 1
		entry := len(c.Layers[layer]) - 1
		var e *tree.EntryError
		if !errors.As(err, &e) || e.Layer != layer || e.Entry != entry || e.Name != c.Layers[layer][entry].Name || e.Err.Error() != c.Err {
			t.Errorf("error %q, want %q of layer %d, entry %d", err, c.Err, layer, entry)
		}
		return nil, nil, err
	})
}

func TestMaxInodes(t *testing.T) {
	c := parse(t, "-- layer0 --\nfile a 644\nlink l a\n-- layer1 --\nfile a 644\nfile b/c 644")
	if _, err := build(tree.Options{MaxInodes: 5}, c.Layers...); err != nil {
		t.Error(err)
	}
	_, err := build(tree.Options{MaxInodes: 4}, c.Layers...)
	if want := `layer 1, entry 1 "b/c": the layers have more than 4 inodes`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestAfterAnError checks that a Builder that failed does nothing more, and reads no more of the layer.
func TestAfterAnError(t *testing.T) {
	broken := errors.New("broken tar")
	for name, c := range map[string]struct {
		entry tree.Entry
		err   error
		want  string
	}{
		"an entry's":   {tree.Entry{Name: ".wh."}, nil, `layer 0, entry 1 ".wh.": a whiteout of ""`},
		"the sequence": {tree.Entry{}, broken, "broken tar"},
	} {
		t.Run(name, func(t *testing.T) {
			b := tree.NewBuilder(tree.Options{})
			read := 0
			err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
				read++
				if !yield(tree.Entry{Name: "a"}, nil) {
					return
				}
				read++
				if !yield(c.entry, c.err) {
					return
				}
				read++
			})
			if err == nil || err.Error() != c.want || read != 2 {
				t.Errorf("got %v after %d entries, want %s", err, read, c.want)
			}
			if again := b.AddLayer(seq(nil)); again != err {
				t.Errorf("AddLayer: %v", again)
			}
			if _, again := b.Build(); again != err {
				t.Errorf("Build: %v", again)
			}
		})
	}
}

func TestBuiltTwice(t *testing.T) {
	b := tree.NewBuilder(tree.Options{})
	if _, err := b.Build(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(); err == nil {
		t.Error("built twice")
	}
	if err := b.AddLayer(seq(nil)); err == nil {
		t.Error("a layer was added to a tree that was built")
	}
}

// TestStepsBounded follows 40 symlinks of 2,000 components each over and over.
func TestStepsBounded(t *testing.T) {
	var text strings.Builder
	text.WriteString("-- layer0 --\ndir d 755\nsymlink l0 {d/../*800}d\n")
	for i := range 39 {
		fmt.Fprintf(&text, "symlink l%d {d/../*800}l%d\n", i+1, i)
	}
	c := parse(t, text.String())
	_, err := build(tree.Options{}, c.Layers[0], slices.Repeat([]tree.Entry{{Name: "l39/x", Type: tree.Regular}}, 300))
	if err == nil || !strings.Contains(err.Error(), "have more than 50") {
		t.Errorf("got %v", err)
	}
}
