package tree_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/tree"
)

func texts(all []tree.Ambiguity) (s []string) {
	for _, a := range all {
		s = append(s, a.String())
	}
	return s
}

// TestAmbiguous has a stack for each kind of ambiguity, in the order of Ambiguity's comment, beside one that is as near to it as can
// be without being ambiguous. That no other of treetest's cases is ambiguous is for TestMerge to see.
func TestAmbiguous(t *testing.T) {
	const lower = "-- layer0 --\ndir d 755\nfile d/a 644 1\nfile f 644 2\nsymlink l d\n-- layer1 --\n"
	for _, c := range []struct {
		kind, layers, want, clear string // want is one of the ambiguities of layers; clear has none
	}{
		{
			"a name that climbs", "file ../x 644",
			`layer 0, entry 0 "../x": the name climbs above the root`,
			"file a/../x 644",
		},
		{
			"a hard link's target that climbs", "file f 644\nlink x a/../../f",
			`layer 0, entry 1 "x": the hard link's target "a/../../f" climbs above the root`,
			"file f 644\nlink x /a/../f",
		},
		{
			"a symlink among the parents that climbs", "dir d 755\nsymlink l ../d\nfile l/x 644",
			`layer 0, entry 2 "l/x": a symlink among the parents climbs above the root`,
			"dir d 755\nsymlink l /d\nfile l/x 644",
		},
		{
			"a name given before", "file x 644 1\nfile ./x 644 2",
			`layer 0, entry 1 "./x": the layer gave this name before`,
			"dir x 755\ndir ./x 700",
		},
		{
			"a name given before, below", lower + "file d/x 644\nfile d 644",
			`layer 1, entry 1 "d": the layer gave something below this name before`,
			lower + "file d 644",
		},
		{
			"a parent that is a lower symlink", lower + "file l/x 644",
			`layer 1, entry 0 "l/x": a parent is a symlink of a lower layer, or one to what this layer doesn't have: "l"`,
			lower + "file d/x 644",
		},
		{
			"a parent that is a symlink to a lower directory", lower + "symlink m d\nfile m/x 644",
			`layer 1, entry 1 "m/x": a parent is a symlink of a lower layer, or one to what this layer doesn't have: "d"`,
			lower + "dir d 755\nsymlink m d\nfile m/x 644",
		},
		{
			"a parent that was something else", lower + "file f/x 644",
			`layer 1, entry 0 "f/x": the parent "f" was no directory and becomes one`,
			lower + "dir f 755\nfile f/x 644",
		},
		{
			"an implied directory in one with setgid", "dir d 2755\nfile d/e/x 644",
			`layer 0, entry 1 "d/e/x": the parent "e" is only implied, in a directory with setgid`,
			"dir d 2755\ndir d/e 755\nfile d/e/x 644",
		},
		{
			"a whiteout behind an entry of its name", lower + "file f 644\nfile .wh.f 644",
			`layer 1, entry 1 ".wh.f": a whiteout behind an entry of "f" or below it`,
			lower + "file .wh.f 644\nfile f 644",
		},
		{
			"a whiteout behind an entry below its name", lower + "file d/x 644\nfile .wh.d 644",
			`layer 1, entry 1 ".wh.d": a whiteout behind an entry of "d" or below it`,
			lower + "file d/x 644\nfile d/.wh.a 644",
		},
		{
			"a whiteout, and a directory in place of a lower one", lower + "file .wh.d 644\ndir d 755",
			`layer 1, entry 1 "d": a whiteout of "d", which the layer makes a directory`,
			lower + "file .wh.f 644\ndir f 755",
		},
		{
			"a whiteout, and an implied directory", lower + "file .wh.f 644\nfile f/x 644",
			`layer 1, entry 1 "f/x": a whiteout of "f", which the layer makes a directory`,
			lower + "file .wh.f 644\ndir f 755\nfile f/x 644",
		},
		{
			"an opaque marker behind entries below directories not listed", lower + "file d/e/x 644\nfile d/.wh..wh..opq 644",
			`layer 1, entry 1 "d/.wh..wh..opq": an opaque marker behind entries below directories that the layer doesn't list`,
			lower + "dir d/e 755\nfile d/e/x 644\nfile d/.wh..wh..opq 644",
		},
		{
			"an entry below a whiteout's name", "file .wh.x/y 644",
			`layer 0, entry 0 ".wh.x/y": it is below the name ".wh.x" and left out`,
			"file .whx/y 644",
		},
		{
			"AUFS's own names", "file .wh..wh.aufs 644",
			`layer 0, entry 0 ".wh..wh.aufs": it has a name of AUFS's own and is left out`,
			"file .wh.aufs 644",
		},
		{
			"a hard link to a name that its layer doesn't give", lower + "link x f",
			`layer 1, entry 0 "x": a hard link to "f", which this layer doesn't give`,
			lower + "file f 644\nlink x f",
		},
		{
			"a hard link to itself", "file f 644\nlink ./f f",
			`layer 0, entry 1 "./f": a hard link to itself`,
			"file f 644\nlink ./g f",
		},
		{
			"a hard link to what it replaces", "file d/f 644\nlink d d/f",
			`layer 0, entry 1 "d": a hard link to "d/f", which goes with the directory that it replaces`,
			"file d/f 644\nlink d/g d/f",
		},
		{
			"a hard link of another mode", "file f 644\nlink x f mode=600",
			`layer 0, entry 1 "x": a hard link whose mode, owner, time or attributes aren't those of its target "f"`,
			"symlink f t\nlink x f mode=600",
		},
		{
			"a hard link of another owner", "file f 644\nlink x f gid=1",
			`layer 0, entry 1 "x": a hard link whose mode, owner, time or attributes aren't those of its target "f"`,
			"file f 644 gid=1\nlink x f",
		},
		{
			"a hard link of another time", "file f 644 mtime=1\nlink x f mtime=1.000000001",
			`layer 0, entry 1 "x": a hard link whose mode, owner, time or attributes aren't those of its target "f"`,
			"file f 644 mtime=1\nlink x f mtime=1.000000000",
		},
		{
			"a hard link with another attribute", "file f 644 xattr=user.a:1\nlink x f xattr=user.a:2",
			`layer 0, entry 1 "x": a hard link whose mode, owner, time or attributes aren't those of its target "f"`,
			"file f 644 xattr=user.a:1 xattr=user.b:1\nlink x f xattr=user.a:1\nlink y f",
		},
		{
			"an attribute given twice", "file f 644 xattr=user.a:1 xattr=user.a:2",
			`layer 0, entry 0 "f": the attribute "user.a" has two values`,
			"file f 644 xattr=user.a:1 xattr=user.a:1",
		},
		{
			"overlayfs's own attributes", "dir d 755 xattr=trusted.overlay.opaque:y",
			`layer 0, entry 0 "d": the attribute "trusted.overlay.opaque" is overlayfs's own and left out`,
			"dir d 755 xattr=trusted.overlays:y",
		},
		{
			"an id that is none", "dir d 755 uid=4294967295",
			`layer 0, entry 0 "d": the owner 4294967295:0, where 4294967295 means none`,
			"dir d 755 uid=4294967294",
		},
		{
			"a character device 0:0", "char c 600 0:0",
			`layer 0, entry 0 "c": a character device 0:0, which is a whiteout to overlayfs`,
			"block c 600 0:0\nchar d 600 0:1",
		},
	} {
		t.Run(c.kind, func(t *testing.T) {
			got := texts(mustBuild(t, stack(t, c.layers)).Ambiguous())
			if !slices.Contains(got, c.want) {
				t.Errorf("got %q, want %s", got, c.want)
			}
			if got := texts(mustBuild(t, stack(t, c.clear)).Ambiguous()); len(got) > 0 {
				t.Errorf("%s\nis not ambiguous; got %q", c.clear, got)
			}
		})
	}
}

// TestUnambiguous has what Ambiguity's comment excludes in words.
func TestUnambiguous(t *testing.T) {
	c := parse(t, `
-- layer0 --
dir . 755
file ./a/b 644 1
file /c/../d 644 2
dir e 755
dir e/ 700
symlink lib usr/lib
dir usr/lib 755
file lib/x 644 3
symlink abs /usr/lib
file abs/y 644 4
-- layer1 --
file a/f 644 5
file .wh.nothing 644
file usr/.wh..wh..opq 644
file usr/n/m 644 6
file q/.wh..wh..opq 644
file .wh.d 644
file d 644 7
dir e 711
`)
	if got := texts(mustBuild(t, c).Ambiguous()); len(got) > 0 {
		t.Errorf("got %q", got)
	}
}

func TestAmbiguousBounded(t *testing.T) {
	var l []tree.Entry
	for i := range 1000 {
		l = append(l, tree.Entry{Name: fmt.Sprintf("../%d", i), Type: tree.Regular})
	}
	tr, err := build(tree.Options{}, nil, l)
	if err != nil {
		t.Fatal(err)
	}
	all := tr.Ambiguous()
	if len(all) != 100 || tr.AmbiguousCount() != 1000 {
		t.Fatalf("%d of %d", len(all), tr.AmbiguousCount())
	}
	want := tree.Ambiguity{Layer: 1, Entry: 99, Name: "../99", What: "the name climbs above the root"}
	if d := cmp.Diff(want, all[99]); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
