package e2e

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/lazy/tree"
	"github.com/pexfs/pex/lazy/tree/treetest"
)

// TestCases puts the cases of package treetest that make a tree through the programs, in all forms that an image may have: each is built
// into an image with all others, below a prefix of its own, which is seen through FUSE and by the kernel. umoci unpacks each, too.
func TestCases(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	cases := imageCases(t)
	want := files{"": {Mode: 0o40755}}
	for _, c := range cases {
		got := caseTree(t, c)
		maps.Insert(want, below("/"+c.Name, got))
		layers := caseTars(t, c)
		for _, f := range forms() {
			if err := writeImage(filepath.Join(dir, string(f), c.Name), f, packing{}, layers); err != nil {
				t.Fatalf("case %s as %s: %v", c.Name, f, err)
			}
		}
	}
	if len(cases) < 90 {
		t.Errorf("only %d cases", len(cases))
	}
	want = want.counted()
	for _, f := range forms() {
		t.Run(string(f), func(t *testing.T) {
			l, file := l.in(t), filepath.Join(dir, string(f)+".erofs")
			args := []string{"image", "build", "-q", "--pack", "-o", file}
			for _, c := range cases {
				args = append(args, c.Name+"=oci:"+filepath.Join(dir, string(f), c.Name))
			}
			l.do("pexfs", args...)
			l.do("pexfs", "image", "check", file)
			for how, got := range map[string]files{"view": l.viewed(file), "kernel": l.kernel(file)} {
				w := want
				if f.rounded() {
					w, got = w.seconds(), got.seconds()
				}
				if d := diff(w, got); d != "" {
					t.Errorf("-want +%s\n%s", how, d)
				}
			}
		})
	}
	t.Run("umoci", func(t *testing.T) { umociCases(t, cases, filepath.Join(dir, string(formGzip))) })
}

// tooBig is a case of which no EROFS image can be made: its attribute's size has 17 bits.
const tooBig = "attribute-of-65536-bytes"

// imageCases are the cases that make a tree and of which there can be an image.
func imageCases(t *testing.T) (cases []treetest.Case) {
	t.Helper()
	for _, c := range treetest.Cases(t) {
		if c.Err == "" && c.InTar() && c.Name != tooBig {
			cases = append(cases, c)
		}
	}
	return cases
}

// TestTooBig refuses what EROFS can't hold, by name.
func TestTooBig(t *testing.T) {
	l := newLab(t)
	cases := treetest.Cases(t)
	i := slices.IndexFunc(cases, func(c treetest.Case) bool { return c.Name == tooBig })
	if i < 0 {
		t.Fatalf("there is no case %s", tooBig)
	}
	for _, f := range forms() {
		dir := filepath.Join(t.TempDir(), string(f))
		if err := writeImage(dir, f, packing{}, caseTars(t, cases[i])); err != nil {
			t.Fatal(err)
		}
		l.fails(1, []string{"/a", "too big for EROFS"}, "pexfs", "mount", "oci:"+dir, t.TempDir())
	}
}

// viewed is an image file as `pexfs image mount` shows it through FUSE.
func (l *lab) viewed(file string) files {
	l.t.Helper()
	dir := l.t.TempDir()
	l.do("pexfs", "image", "mount", file, dir)
	defer l.umount(dir)
	return list(l.t, dir)
}

// kernel is an image file as `pexfs image mount --kernel` shows it.
func (l *lab) kernel(file string) files {
	l.t.Helper()
	dir := l.t.TempDir()
	l.do("pexfs", "image", "mount", "--kernel", file, dir)
	defer l.umount(dir)
	return list(l.t, dir)
}

// caseTree is the tree of a case, which has the listing that the case wants.
func caseTree(t *testing.T, c treetest.Case) files {
	t.Helper()
	b := tree.NewBuilder(tree.Options{})
	for _, l := range c.Layers {
		err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
			for _, e := range l {
				if !yield(e, nil) {
					return
				}
			}
		})
		if err != nil {
			t.Fatalf("case %s: %v", c.Name, err)
		}
	}
	tr, err := b.Build()
	if err != nil {
		t.Fatalf("case %s: %v", c.Name, err)
	}
	if d := cmp.Diff(c.Want, treetest.List(tr, c.Content)); d != "" {
		t.Errorf("case %s: -want +got\n%s", c.Name, d)
	}
	sums := make([][]string, len(c.Contents))
	for i, l := range c.Contents {
		for _, ct := range l {
			sum, err := shaOf(ct.Reader())
			if err != nil {
				t.Fatal(err)
			}
			sums[i] = append(sums[i], sum)
		}
	}
	return listMerged(tr, sums)
}

func caseTars(t *testing.T, c treetest.Case) []tarLayer {
	t.Helper()
	layers := make([]tarLayer, len(c.Layers))
	for i, l := range c.Layers {
		var b bytes.Buffer
		if err := c.WriteTar(&b, i); err != nil {
			t.Fatalf("case %s: %v", c.Name, err)
		}
		layers[i].tar = b.Bytes()
		seen := map[string]bool{}
		for _, e := range l {
			name := path.Clean("/" + e.Name)
			layers[i].plain = layers[i].plain || seen[name] || !utf8.ValidString(e.Name) || !utf8.ValidString(e.Linkname)
			seen[name] = true
		}
	}
	return layers
}

// below puts a tree below a prefix.
func below(prefix string, fs files) iter.Seq2[string, file] {
	return func(yield func(string, file) bool) {
		for p, f := range fs {
			if f.Same != "" {
				f.Same = prefix + f.Same
			}
			if !yield(prefix+p, f) {
				return
			}
		}
	}
}

// umociCases compares umoci's trees with those that the cases want: how they differ is known.
func umociCases(t *testing.T, cases []treetest.Case, dir string) {
	start := time.Now()
	got := map[string][]string{}
	for _, c := range cases {
		if c.Name == "times" {
			continue // the file system that umoci unpacks to may end before the year 3000
		}
		out := filepath.Join(t.TempDir(), "rootfs")
		msg, err := exec.Command("umoci", "raw", "unpack", "--image", filepath.Join(dir, c.Name)+":latest", out).CombinedOutput()
		if err != nil {
			words := strings.TrimSpace(string(msg))
			got[c.Name] = []string{"refused: " + words[strings.LastIndex(words, ": ")+2:]}
		} else if d := differences(caseTree(t, c).counted(), list(t, out).counted(), start); len(d) > 0 {
			got[c.Name] = d
		}
		if err := os.RemoveAll(out); err != nil {
			t.Error(err)
		}
	}
	want := map[string][]string{}
	for name, d := range umociDiffers {
		want[name] = d.how
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("differences between the cases' trees and umoci's, -known +seen\n%s", d)
	}
}

// differences names what differs of each path. A directory may have the time of unpacking, which begins with start, where the tree
// wants another: umoci gives it to those that no entry lists, and to those that it changes after their entry.
func differences(want, got files, start time.Time) (all []string) {
	for _, p := range slices.Sorted(maps.Keys(want)) {
		w := want[p]
		g, ok := got[p]
		if !ok {
			all = append(all, p+" is not there")
			continue
		}
		if w.Mode&unix.S_IFMT == unix.S_IFDIR && g.Mtime.Sec >= start.Unix() {
			g.Mtime = w.Mtime
		}
		if w == g {
			continue
		}
		vw, vg := reflect.ValueOf(w), reflect.ValueOf(g)
		for i := range vw.NumField() {
			if a, b := vw.Field(i).Interface(), vg.Field(i).Interface(); a != b {
				all = append(all, fmt.Sprintf("%s has %s %v, not %v", p, vw.Type().Field(i).Name, b, a))
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			all = append(all, p+" is there")
		}
	}
	return all
}

// difference is how umoci's tree differs from a case's, and why.
type difference struct {
	why string
	how []string
}

// umociDiffers are the cases of which umoci 0.4.7 makes another tree.
var umociDiffers = map[string]difference{
	"and-back":                {underFile, []string{"refused: not a directory"}},
	"implied-over-file":       {underFile, []string{"refused: not a directory"}},
	"implied-over-special":    {underFile, []string{"refused: not a directory"}},
	"through-symlink-to-file": {underFile, []string{"refused: not a directory"}},

	"link-across-layers": {linkKeeps, []string{
		"/x has Mode 33188, not 33152", "/x has UID 0, not 3", "/y has Mode 33188, not 33152", "/y has UID 0, not 3"}},
	"link-last-attributes-win": {linkKeeps, []string{
		"/x has Mode 33188, not 33152", "/x has UID 1, not 2", "/x has GID 1, not 3", "/x has Mtime {1 0}, not {4 0}",
		"/y has Mode 33188, not 33152", "/y has UID 1, not 2", "/y has GID 1, not 3", "/y has Mtime {1 0}, not {4 0}"}},
	"symlink-mode": {linkKeeps, []string{
		"/v has UID 0, not 2", "/v has GID 0, not 3", "/v has Mtime {0 0}, not {4 0}",
		"/w has UID 0, not 2", "/w has GID 0, not 3", "/w has Mtime {0 0}, not {4 0}"}},
	"link-replaces-its-folder": {linkRemoves, []string{"refused: no such file or directory"}},
	"link-to-itself":           {linkRemoves, []string{"refused: no such file or directory"}},
	"link-to-lower-itself":     {linkRemoves, []string{"refused: no such file or directory"}},

	"opaque-of-new-directory":    {markerMakesNothing, []string{" has Nlink 2, not 3", "/d is not there", "/d/e is not there"}},
	"whiteout-of-nothing":        {markerMakesNothing, []string{" has Nlink 2, not 3", "/q is not there"}},
	"marker-below-then-whiteout": {markerMakesNothing, []string{" has Nlink 2, not 3", "/x is not there"}},
	"whiteout-then-marker-below": {markerMakesNothing, []string{" has Nlink 2, not 3", "/x is not there"}},
	"opaque-over-file": {markerMakesNothing, []string{
		" has Nlink 2, not 3", "/x has Mode 33188, not 16877", "/x has Nlink 1, not 2", "/x has Size 1, not 0",
		"/x has Sum 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b, not "}},

	"implied-in-setgid":      {"a directory that is implied below one with setgid has setgid and its group", []string{"/d/e has Mode 17901, not 16877", "/d/e has GID 50, not 0"}},
	"whiteout-after-implied": {"a directory that is whited out and implied in the same layer is still the lower one", []string{"/x has Mode 16832, not 16877", "/x has UID 5, not 0"}},

	"aufs-names":         {"names of AUFS's own are made", []string{" has Nlink 3, not 2", "/.wh..wh.plnk is there", "/.wh..wh.plnk/12.34 is there"}},
	"below-a-whiteout":   {"a folder with a whiteout's name is made", []string{" has Nlink 3, not 2", "/.wh.x is there", "/.wh.x/y is there"}},
	"attributes":         {"neither attributes of SELinux nor empty ones are set", []string{"/c has Xattrs , not  security.selinux=6c6162656c", "/f has Xattrs  trusted.t=31 user.b=00ff, not  trusted.t=31 user.a= user.b=00ff"}},
	"path-of-4096-bytes": {"a path that is unpacked has the destination before it", []string{"refused: file name too long"}},
}

const (
	underFile          = "what is below a lower layer's file does not replace it"
	linkKeeps          = "a hard link's entry does not change mode, owner and time"
	linkRemoves        = "what a hard link replaces is removed before the link is made"
	markerMakesNothing = "a whiteout or an opaque marker does not imply its directory"
)
