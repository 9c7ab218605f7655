package layer

import (
	"bytes"
	"errors"
	"iter"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/tree"
	"github.com/pexfs/pex/lazy/tree/treetest"
)

func each(entries []tree.Entry) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// readLayers reads the layers of a case, each from a tar, and merges them.
func readLayers(t *testing.T, c treetest.Case, read func(src []byte) ([]tree.Entry, []string)) (*tree.Tree, func(tree.Content) []byte, error) {
	b := tree.NewBuilder(tree.Options{})
	var contents [][]string
	for i := range c.Layers {
		var src bytes.Buffer
		if err := c.WriteTar(&src, i); err != nil {
			t.Fatal(err)
		}
		entries, texts := read(src.Bytes())
		contents = append(contents, texts)
		if err := b.AddLayer(each(entries)); err != nil {
			return nil, nil, err
		}
	}
	merged, err := b.Build()
	return merged, func(ct tree.Content) []byte { return []byte(contents[ct.Layer][ct.Index]) }, err
}

// casesInTar are the cases that tars can have.
func casesInTar(t *testing.T) (all []treetest.Case) {
	for _, c := range treetest.Cases(t) {
		if c.InTar() {
			all = append(all, c)
		}
	}
	return all
}

func readTar(t *testing.T, b []byte, diffID v1.Hash) ([]tree.Entry, []string) {
	t.Helper()
	s, err := stream(t, b, diffID, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	texts := make([]string, len(s.Contents))
	for i, c := range s.Contents {
		texts[i] = string(s.spool.b[c.SpoolOff:][:c.Size])
	}
	return s.Entries, texts
}

func TestCasesStreamed(t *testing.T) {
	for _, f := range []struct {
		name string
		pack func([]byte) []byte
	}{
		{"plain", func(b []byte) []byte { return b }},
		{"gzip", func(b []byte) []byte { return gz(t, b) }},
		{"zstd", func(b []byte) []byte { return zst(t, b) }},
	} {
		t.Run(f.name, func(t *testing.T) {
			treetest.Run(t, casesInTar(t), func(t *testing.T, c treetest.Case) (*tree.Tree, func(tree.Content) []byte, error) {
				return readLayers(t, c, func(src []byte) ([]tree.Entry, []string) { return readTar(t, f.pack(src), digestOf(src)) })
			})
		})
	}
}

// TestCasesByTOC wants what the cases say but for times, which are rounded.
func TestCasesByTOC(t *testing.T) {
	for _, f := range tocForms() {
		t.Run(f.name, func(t *testing.T) {
			all := casesInTar(t)
			if !f.asIs {
				// Forms of one layer have nothing to do with the number of layers: the two that leave the tar as it is have the large cases.
				all = slices.DeleteFunc(all, func(c treetest.Case) bool { return doubled(c) || len(c.Layers) > 100 })
			}
			for i := range all {
				if all[i].Err == "" {
					all[i].Want = rounded(t, all[i])
				}
			}
			treetest.Run(t, all, func(t *testing.T, c treetest.Case) (*tree.Tree, func(tree.Content) []byte, error) {
				return readLayers(t, c, func(src []byte) ([]tree.Entry, []string) {
					b, d, diffID := f.make(t, src)
					ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
					if errors.Is(err, ErrNoTOC) {
						entries, texts := readTar(t, b, diffID)
						return seconds(entries), texts
					}
					if err != nil {
						t.Fatal(err)
					}
					if err := Verify(bytes.NewReader(b), d, diffID, ix, Limits{}); err != nil {
						t.Error(err)
					}
					texts, err := contents(t, ix, b)
					if err != nil {
						t.Fatal(err)
					}
					return seconds(ix.Entries), texts
				})
			})
		})
	}
}

// doubled tells whether a layer of a case has a name twice.
func doubled(c treetest.Case) bool {
	for _, l := range c.Layers {
		seen := make(map[string]bool)
		for _, e := range l {
			name := cleaned(e.Name)
			if seen[name] {
				return true
			}
			seen[name] = true
		}
	}
	return false
}

// rounded is the listing of a case whose times are whole seconds.
func rounded(t *testing.T, c treetest.Case) string {
	t.Helper()
	b := tree.NewBuilder(tree.Options{})
	for _, l := range c.Layers {
		if err := b.AddLayer(each(seconds(l))); err != nil {
			t.Fatal(err)
		}
	}
	merged, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return treetest.List(merged, c.Content)
}
