package tree_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/tree"
	"github.com/pexfs/pex/lazy/tree/treetest"
)

// packed is a listing of trees packed, each from its layers under its prefix, in the order given.
func packed(t *testing.T, parts ...string) (*tree.Tree, string, error) {
	t.Helper()
	var all []tree.Part
	var contents [][]treetest.Content
	for i := 0; i < len(parts); i += 2 {
		c := stack(t, parts[i+1])
		contents = append(contents, c.Contents...)
		all = append(all, tree.Part{Prefix: parts[i], Tree: mustBuild(t, c)})
	}
	tr, err := tree.Pack(all)
	if err != nil {
		return nil, "", err
	}
	checkTree(t, tr)
	c := treetest.Case{Contents: contents}
	return tr, treetest.List(tr, c.Content), nil
}

func TestPack(t *testing.T) {
	deep := strings.Repeat("d/", 1000) + "x"
	implied := func(path string) (lines string) { // all directories above a path
		for i, c := range path {
			if c == '/' {
				lines += "/" + path[:i] + " dir 0755\n"
			}
		}
		return lines
	}
	for _, c := range []struct {
		name  string
		parts []string
		want  string
	}{
		{"nothing", nil, "/ dir 0755\n"},
		{"one", []string{"a", "dir . 700 uid=1 mtime=2 xattr=user.a:1\nfile x 644 1"}, "/ dir 0755\n/a dir 0700 uid=1 mtime=2 xattr=user.a:1\n/a/x file 0644 1\n"},
		{"an empty tree", []string{"a", "dir . 700"}, "/ dir 0755\n/a dir 0700\n"},
		{"several layers each", []string{
			"a", "-- layer0 --\nfile x 644 1\nfile y 644 2\n-- layer1 --\nfile x 644 3",
			"b", "-- layer0 --\nfile x 644 4\n-- layer1 --\nfile z 644 5\nfile .wh.x 644\n-- layer2 --\nfile z 644 6\nfile u 644 7",
		}, "/ dir 0755\n/a dir 0755\n/a/x file 0644 3\n/a/y file 0644 2\n/b dir 0755\n/b/u file 0644 7\n/b/z file 0644 6\n"},
		{"sorted by name, not by order", []string{"b", "file x 644 1", "a/z", "file x 644 2", "a/b/c", "file x 644 3"},
			"/ dir 0755\n/a dir 0755\n/a/b dir 0755\n/a/b/c dir 0755\n/a/b/c/x file 0644 3\n/a/z dir 0755\n/a/z/x file 0644 2\n/b dir 0755\n/b/x file 0644 1\n"},
		{"one that begins as another", []string{"a", "file x 644 1", "a-1", "file x 644 2", "a.b/c", "file x 644 3"},
			"/ dir 0755\n/a dir 0755\n/a/x file 0644 1\n/a-1 dir 0755\n/a-1/x file 0644 2\n/a.b dir 0755\n/a.b/c dir 0755\n/a.b/c/x file 0644 3\n"},
		{"hard links in each", []string{"a", "file x 644 1\nlink d/y x", "b", "file x 644 1\nlink y x"},
			"/ dir 0755\n/a dir 0755\n/a/d dir 0755\n/a/d/y file 0644 1 nlink=2\n/a/x = /a/d/y\n/b dir 0755\n/b/x file 0644 1 nlink=2\n/b/y = /b/x\n"},
		{"symlinks stay as they are", []string{"a", "symlink s /etc/x\nsymlink t ../x"}, "/ dir 0755\n/a dir 0755\n/a/s symlink /etc/x\n/a/t symlink ../x\n"},
		{"bytes", []string{"\xff b/..c", "fifo p 600"}, "/ dir 0755\n\"/\\xff b\" dir 0755\n\"/\\xff b/..c\" dir 0755\n\"/\\xff b/..c/p\" fifo 0600\n"},
		{"a long name", []string{strings.Repeat("n", 255), "fifo p 600"},
			"/ dir 0755\n/" + strings.Repeat("n", 255) + " dir 0755\n/" + strings.Repeat("n", 255) + "/p fifo 0600\n"},
		{"deep", []string{deep, "fifo p 600"}, "/ dir 0755\n" + implied(deep) + "/" + deep + " dir 0755\n/" + deep + "/p fifo 0600\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, got, err := packed(t, c.parts...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// TestPackSameTree packs a tree twice, whose contents then have other layers: what reads them finds that they are the same.
func TestPackSameTree(t *testing.T) {
	one := mustBuild(t, parse(t, "-- layer0 --\nfile x 644 1\n-- layer1 --\nfile y 644 2\nlink z y"))
	two, err := tree.Pack([]tree.Part{{Prefix: "a", Tree: one}, {Prefix: "b", Tree: one}})
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, two)
	var contents []tree.Content
	for i := range tree.Ino(two.Len()) {
		if ct := two.Stat(i).Content; ct.Layer >= 0 {
			contents = append(contents, ct)
		}
	}
	if d := cmp.Diff([]tree.Content{{Layer: 0}, {Layer: 1}, {Layer: 2}, {Layer: 3}}, contents); d != "" {
		t.Errorf("contents: -want +got:\n%s", d)
	}
	if two.Layers() != 4 || two.Len() != 1+2*one.Len() {
		t.Errorf("%d layers, %d inodes", two.Layers(), two.Len())
	}
}

func TestPackAmbiguous(t *testing.T) {
	a := "-- layer0 --\n-- layer1 --\nfile ../x 644"
	tr, _, err := packed(t, "a", a, "b", a)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`layer 1, entry 0 "../x": the name climbs above the root`,
		`layer 3, entry 0 "../x": the name climbs above the root`,
	}
	if d := cmp.Diff(want, texts(tr.Ambiguous())); d != "" || tr.AmbiguousCount() != 2 {
		t.Errorf("%d; -want +got:\n%s", tr.AmbiguousCount(), d)
	}
	many := strings.Repeat("file ../x 644\n", 70) // 139: each but the first is a name given before, too
	tr, _, err = packed(t, "a", many, "b", many)
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Ambiguous()) != 100 || tr.AmbiguousCount() != 278 {
		t.Errorf("%d of %d", len(tr.Ambiguous()), tr.AmbiguousCount())
	}
}

func TestPackErrors(t *testing.T) {
	for _, c := range []struct {
		name     string
		prefixes []string
		want     string
	}{
		{"empty", []string{""}, `packing a tree below "": the prefix is not a clean relative path`},
		{"the root", []string{"/"}, `packing a tree below "/": the prefix is not a clean relative path`},
		{"itself", []string{"."}, `packing a tree below ".": the prefix is not a clean relative path`},
		{"absolute", []string{"/a"}, `packing a tree below "/a": the prefix is not a clean relative path`},
		{"a slash behind", []string{"a/"}, `packing a tree below "a/": the prefix is not a clean relative path`},
		{"two slashes", []string{"a//b"}, `packing a tree below "a//b": the prefix is not a clean relative path`},
		{"a dot", []string{"a/./b"}, `packing a tree below "a/./b": the prefix is not a clean relative path`},
		{"dots within", []string{"a/../b"}, `packing a tree below "a/../b": the prefix is not a clean relative path`},
		{"climbing", []string{"../a"}, `packing a tree below "../a": the prefix is not a clean relative path`},
		{"climbing later", []string{"a/../../b"}, `packing a tree below "a/../../b": the prefix is not a clean relative path`},
		{"a zero byte", []string{"a\x00"}, `packing a tree below "a\x00": a name with a zero byte`},
		{"a long name", []string{strings.Repeat("n", 256)}, `packing a tree below "` + strings.Repeat("n", 200) + `": a name with a component of 256 bytes, more than 255`},
		{"too deep", []string{strings.Repeat("d/", 2048) + "x"}, `packing a tree below "` + strings.Repeat("d/", 100) + `": a prefix of 4097 bytes, more than 4096`},
		{"a whiteout", []string{".wh.a"}, `packing a tree below ".wh.a": its component ".wh.a" is a whiteout's name`},
		{"a whiteout within", []string{"a/.wh..wh..opq/b"}, `packing a tree below "a/.wh..wh..opq/b": its component ".wh..wh..opq" is a whiteout's name`},
		{"equal", []string{"a/b", "c", "a/b"}, `packing a tree below "a/b": another tree goes there too`},
		{"inside", []string{"a", "a/b/c"}, `packing a tree below "a/b/c": the prefix is inside "a", where another tree goes`},
		{"around", []string{"a/b/c", "a"}, `packing a tree below "a": another tree goes inside it`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var parts []string
			for _, p := range c.prefixes {
				parts = append(parts, p, "file x 644 1")
			}
			if _, _, err := packed(t, parts...); err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}
