package erofs_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

const goldenFile = "testdata/golden.txt"

// goldenEntries have one of everything that has a form of its own on disk.
func goldenEntries() [][]tree.Entry {
	return [][]tree.Entry{
		{
			with(dir("d", 0o1755), tree.Xattr{Name: "user.a", Value: []byte("b")}), reg("d/f", 5000, 1), reg("big", 2*mib+1, 2), hard("d/g", "big"),
			link("l", "d/f"), link("long", strings.Repeat("x", 4095)), {Name: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3}, {Name: "p", Type: tree.Fifo},
			{Name: "old", Type: tree.Regular, UID: 1 << 22, GID: 3, Mode: 0o4711, Mtime: tree.Time{Sec: -5, Nsec: 6}},
		},
		{with(reg("d/f", 17, 3), tree.Xattr{Name: "security.capability", Value: capability()}), reg("same", 17, 3), dir("e/f/g", 0o700)},
	}
}

// goldenCases are small trees that together have all that the layout has rules for.
func goldenCases() []imageCase {
	var names, tails, wide []tree.Entry
	for n := 1; n <= 255; n += 6 {
		names = append(names, reg(strings.Repeat("n", n), int64(n), int32(n)), link(strings.Repeat("l", n), strings.Repeat("t", n*16)))
	}
	for n := 1; n <= 100; n++ {
		e := dir(fmt.Sprintf("tails/%03d", n), 0o755)
		e.Xattrs = []tree.Xattr{{Name: "user.t", Value: make([]byte, n*57)}}
		tails = append(tails, e)
		for left := n * 41; left > 0; left -= 212 {
			tails = append(tails, reg(fmt.Sprintf("%s/%04d%s", e.Name, left, strings.Repeat("t", min(left, 195))), 0, 0))
		}
	}
	for i := range 3000 {
		wide = append(wide, reg(fmt.Sprintf("wide/%c%d", "!+-.09az~"[i%9], i), int64(i%3), int32(i%3)))
	}
	return []imageCase{
		{"empty", nil},
		{"everything", goldenEntries()},
		{"types", [][]tree.Entry{{
			{Name: ".", Type: tree.Dir, Mode: 0o1777, UID: 7, GID: 8, Mtime: tree.Time{Sec: 1, Nsec: 2}},
			{Name: "c", Type: tree.Char, Mode: 0o600, Major: 0xfff, Minor: 0xfffff}, {Name: "b", Type: tree.Block, Mode: 0o660, Major: 259, Minor: 70000},
			{Name: "p", Type: tree.Fifo, Mode: 0o644}, reg("r", 1, 1), link("l", "r"), dir("d", 0o7777), hard("p2", "p"),
			{Name: "early", Type: tree.Regular, Mtime: tree.Time{Sec: -1 << 40, Nsec: 999_999_999}}, {Name: "late", Type: tree.Regular, Mtime: tree.Time{Sec: 1 << 35}, UID: 1<<32 - 2},
		}}},
		{"hard links across directories", [][]tree.Entry{
			{dir("z", 0o755), dir("a/b", 0o755), reg("z/f", 5000, 1), hard("a/b/g", "z/f"), hard("m", "a/b/g"), reg("gone", 9, 2)},
			{reg("gone", 3, 3), hard("a/h", "gone"), reg("z/only", 5000, 1)},
		}},
		{"attributes", [][]tree.Entry{{
			with(dir("d", 0o755), tree.Xattr{Name: "system.posix_acl_access", Value: posixACL(1000)}, tree.Xattr{Name: "system.posix_acl_default", Value: posixACL(70000)}, tree.Xattr{Name: "user.x"}),
			with(reg("d/f", 10, 1), tree.Xattr{Name: "security.capability", Value: capability()}, tree.Xattr{Name: "user." + strings.Repeat("n", 250), Value: []byte("v")}, tree.Xattr{Name: "trusted.t", Value: []byte{0, 1}}),
			with(link("l", "target"), tree.Xattr{Name: "trusted.of-a-link", Value: []byte("v")}, tree.Xattr{Name: "other.dropped", Value: []byte("v")}),
			with(reg("big", 4097, 3), tree.Xattr{Name: "user.big", Value: make([]byte, 60_000)}),
		}}},
		{"big contents", [][]tree.Entry{
			{reg("a", 2*mib, 1), reg("b", 2*mib-1, 2), reg("low", 10, 7)},
			{reg("c", 2*mib+1, 3), reg("d", 1, 4), reg("a2", 2*mib, 1), reg("e", 4096, 5), reg("low", 0, 0)},
		}},
		{"identical contents", [][]tree.Entry{{reg("a", 17, 5), reg("b", 17, 1005), reg("c", 17, 2005)}, {reg("z", 17, 9005), reg("y", 18, 6)}}},
		{"names and targets of all sizes", [][]tree.Entry{names}},
		{"directories with tails of many sizes", [][]tree.Entry{tails}},
		{"a directory of 3,000", [][]tree.Entry{wide}},
	}
}

// TestGolden pins the bytes of whole images: those of one layout version are compared, cached and signed by their bytes.
func TestGolden(t *testing.T) {
	b, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, c := range goldenCases() {
		f, err := os.Open(newFixture(t, c.layers...).write(t))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%d %x %s\n", erofs.LayoutVersion, h.Sum(nil), c.name)
	}
	if d := cmp.Diff(strings.Split(string(b), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("The bytes of images have changed, so the layout version must be raised (LayoutVersion in layout.go, and what the package comment says of it);\n"+
			"then %s gets the new values. It has a layout version, a SHA-256 and a tree in each line (-golden +got):\n%s", goldenFile, d)
	}
}
